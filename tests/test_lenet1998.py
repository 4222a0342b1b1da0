"""Test the networks of 1998 against the numbers and equations of the papers that describe them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.models import lenet1998
from mnist_pipe.models.lenet1998 import LeNet4, LeNet5RBF, ScaledTanh, Subsampling, TableConv, digit_codes
from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe

# Table I has a column for each of the 16 maps of C3, with an X in each row whose map of S2 it reads.
TABLE_1 = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""


def _num_parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def test_c3_reads_the_maps_of_table_1() -> None:
    rows = [row.split() for row in TABLE_1.split("\n") if row]
    assert [[source for source in range(6) if rows[source][column] == "X"] for column in range(16)] == [
        sorted(sources) for sources in lenet1998.LENET5_C3
    ]


def test_lenet5_has_the_papers_sizes_and_parameters_in_each_layer() -> None:
    model, maps, seen = LeNet5RBF(), torch.randn(1, 1, 28, 28), []
    for layer in model.features:
        maps = layer(maps)
        if _num_parameters(layer):
            seen.append((tuple(maps.shape[1:]), _num_parameters(layer)))
    assert seen == [
        ((6, 28, 28), 156),
        ((6, 14, 14), 12),
        ((16, 10, 10), 1_516),
        ((16, 5, 5), 32),
        ((120, 1, 1), 48_120),
        ((84,), 10_164),
    ]
    assert _num_parameters(model) == 60_000


def test_lenet1_has_2578_parameters_and_two_separate_halves() -> None:
    assert _num_parameters(models.build("lenet1")) == 2_578
    layer = TableConv(lenet1998.LENET1_H3, num_inputs=4)
    maps = torch.randn(1, 4, 12, 12)
    others = torch.cat([maps[:, :2], torch.randn(1, 2, 12, 12)], 1)
    assert torch.equal(layer(maps)[:, :6], layer(others)[:, :6])
    assert not torch.equal(layer(maps)[:, 6:], layer(others)[:, 6:])


def test_lenet4_has_about_17_000_parameters_and_reads_every_map() -> None:
    assert round(_num_parameters(models.build("lenet4")), -3) == 17_000
    for table, num_inputs in ((lenet1998.LENET4_C3, 8), (lenet1998.LENET4_C5, 16)):
        read = [source for sources in table for source in sources]
        assert set(read) == set(range(num_inputs))
        assert all(len(set(sources)) == len(sources) for sources in table)
        counts = [read.count(source) for source in range(num_inputs)]
        assert max(counts) - min(counts) <= 2, counts


@pytest.mark.parametrize("side", [5, 9])
def test_a_table_convolution_is_a_convolution_with_zeroed_kernels(side: int) -> None:
    table = [[0, 2], [1], [0, 1, 2]]
    layer = TableConv(table, num_inputs=3)
    dense, kernels = torch.zeros(3, 3, 5, 5), iter(layer.weight.view(-1, 5, 5))
    for output, sources in enumerate(table):
        for source in sources:
            dense[output, source] = next(kernels)
    maps = torch.randn(2, 3, side, side)
    torch.testing.assert_close(layer(maps), F.conv2d(maps, dense, layer.bias), atol=1e-5, rtol=1e-5)


def test_initial_kernels_are_within_the_bound_of_their_maps_inputs() -> None:
    layer = TableConv([[0]] * 50 + [range(4)] * 50, num_inputs=4)
    one, four = layer.weight[:50].abs().max(), layer.weight[50:].abs().max()
    assert 0.9 * 2.4 / 25 < one <= 2.4 / 25
    assert 0.9 * 2.4 / 100 < four <= 2.4 / 100


def test_subsampling_is_the_sum_of_four_times_a_coefficient_plus_a_bias() -> None:
    layer = Subsampling(2, num_outputs=4)
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    maps = torch.randn(3, 2, 6, 6)
    for output in range(4):
        total = sum(maps[:, output // 2, y::2, x::2] for y in (0, 1) for x in (0, 1))
        expected = layer.gain[output] / 4 * total + layer.bias[output]
        torch.testing.assert_close(layer(maps)[:, output], expected)


def test_the_scaled_tanh_maps_1_to_1_and_curves_most_there() -> None:
    one = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    squash = ScaledTanh()
    assert squash(one).item() == pytest.approx(1.0, abs=1e-4)
    points = torch.linspace(0, 3, 3001, dtype=torch.float64)
    slopes = 1.7159 * 2 / 3 / torch.cosh(points * 2 / 3) ** 2
    bend = (slopes[1:] - slopes[:-1]).abs()
    assert points[bend.argmax()].item() == pytest.approx(1.0, abs=0.02)


def test_a_digits_code_is_its_bitmap() -> None:
    codes = digit_codes()
    assert codes.shape == (10, 7 * 12)
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    one = ["".join("#" if pixel > 0 else "." for pixel in row) for row in codes[1].view(12, 7).tolist()]
    assert one[:3] == ["...##..", "..###..", ".####.."]
    assert one[9:] == [".######", ".......", "......."]
    apart = torch.cdist(codes, codes).square() / 4 + 84 * torch.eye(10)
    assert apart.min() >= 13  # number of pixels in which the two most similar digits, 6 and 8, differ


def test_the_logits_are_the_negated_penalties() -> None:
    model, images = LeNet5RBF(), torch.randn(4, 1, 28, 28)
    f6 = model.features(images)
    penalties = torch.stack([(f6 - code).square().sum(1) for code in digit_codes()], 1)
    torch.testing.assert_close(model.penalties(images), penalties)
    torch.testing.assert_close(model(images).log_softmax(1), (-penalties).log_softmax(1))


def test_with_rubbish_the_cross_entropy_is_equation_9() -> None:
    model, images, labels = LeNet5RBF(rubbish=20.0), torch.randn(6, 1, 28, 28), torch.arange(6)
    penalties = model.penalties(images).double()
    right = penalties[torch.arange(6), labels]
    expected = (right + torch.log(math.exp(-20.0) + torch.exp(-penalties).sum(1))).mean()
    assert F.cross_entropy(model(images), labels).item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.eval()(images).shape == (6, 10)


def test_a_rubbish_penalty_is_positive() -> None:
    with pytest.raises(InputError, match=r"lenet5_rbf\.rubbish must be > 0"):
        models.build("lenet5_rbf", rubbish=-1.0)


def test_the_frame_repeats_the_border_pixels() -> None:
    images = torch.full((1, 1, 28, 28), -0.42)
    assert torch.equal(lenet1998.Frame()(images), torch.full((1, 1, 32, 32), -0.42))


@pytest.mark.parametrize("name", ["lenet1", "lenet4", "lenet5_rbf"])
def test_the_training_loop_fits_ten_images(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    images = torch.randn(10, 1, 28, 28, generator=generator)[labels]
    data = DeviceSplit(images=images, labels=labels, background=0.0)
    recipe = Recipe(
        model=name,
        model_params={"rubbish": 10.0} if name == "lenet5_rbf" else {},
        optimizer="adamw",
        learning_rate=0.01,
        batch_size=20,
        num_epochs=4,
    )
    model, optimizer = loop.new_run(recipe, device=torch.device("cpu"))
    *_, last = loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=data)
    assert last["validation_accuracy"] == 1.0


def test_the_hidden_layer_of_lenet4_can_be_read() -> None:
    model, images = LeNet4(), torch.randn(3, 1, 28, 28)
    features = model.features(images)
    assert features.shape == (3, 120)
    assert torch.equal(model.output(features), model(images))
