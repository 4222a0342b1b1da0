"""Test the contract of every entry of MODELS; a new model needs no test of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.data.facts import Facts
from mnist_pipe.errors import InputError
from mnist_pipe.models import MODELS

# Counted by hand from the layers: in*out + out for a dense layer, k*k*in*out (+ out) for a convolution.
PARAMETERS = {
    "linear": 784 * 10 + 10,
    "mlp": (784 * 15 + 15) + (15 * 10 + 10),
    "lenet5": (25 * 6 + 6) + (25 * 6 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10),
    "lenet1": 4 * 26 + 4 * 2 + (20 * 25 + 12) + 12 * 2 + (192 * 10 + 10),
    "lenet4": 4 * 26 + 8 * 2 + (60 * 25 + 16) + 16 * 2 + (560 * 25 + 120) + (120 * 10 + 10),
    "lenet5_rbf": 156 + 12 + 1_516 + 32 + 48_120 + 10_164,  # layer by layer, as in the paper
    "cnn": (9 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * 14 * 14 * 128 + 128) + (128 * 10 + 10),
    "convnet": 9 * 16 + 9 * 16 * 32 + 9 * 32 * 64 + 2 * (16 + 32 + 64) + (64 * 3 * 3 * 10 + 10),
    "resnet": 9 * 32  # the first convolution, which has no bias, like the others
    + 2 * (2 * 9 * 32 * 32 + 2 * 2 * 32)
    + (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 2 * (32 + 64))  # the shortcut of the widening block is 1x1
    + (2 * 9 * 64 * 64 + 2 * 2 * 64)
    + (2 * 64 + 64 * 10 + 10),
}


def test_a_cropped_convnet_ignores_the_border() -> None:
    model = models.build("convnet", channels=[4, 8], crop=3).eval()
    image = torch.randn(1, 1, 28, 28)
    other = image.clone()
    other[..., :3, :] = other[..., -3:, :] = other[..., :, :3] = other[..., :, -3:] = 9.0
    assert torch.equal(model(image), model(other))
    other[..., 3, 3] += 9.0
    assert not torch.equal(model(image), model(other))


def test_convnet_arguments_set_convolutions_per_block_and_the_last_pool() -> None:
    def count(**arguments: Any) -> int:
        return sum(parameter.numel() for parameter in models.build("convnet", **arguments).parameters())

    twice = 9 * 4 + 9 * 4 * 4 + 9 * 4 * 8 + 9 * 8 * 8 + 2 * (4 + 4 + 8 + 8) + (8 * 7 * 7 * 10 + 10)
    assert count(channels=[4, 8], convolutions=2) == twice
    # 22 pixels after the crop, 20 after the first convolution, which is not padded, and 10 after the only pool.
    assert count(channels=[4, 8], crop=3, last_pool=False) == 9 * 4 + 9 * 4 * 8 + 2 * (4 + 8) + (8 * 10 * 10 * 10 + 10)


def data(channels: int, height: int, width: int, num_classes: int) -> Facts:
    return Facts(shape=(channels, height, width), labels=tuple(map(str, range(num_classes))))


DATA = [data(1, 28, 28, 10), data(1, 8, 8, 10), data(1, 28, 28, 47), data(3, 32, 32, 5), data(1, 64, 48, 2)]
PAPER = "the images must be 1x28x28, as the paper's"
REFUSALS = {
    ("lenet5", 1): "the model lenet5: the images must have sides of 12 pixels or more, but got 1x8x8",
    **{
        (name, number): f"the model {name}: {PAPER}, but got {got}"
        for name in ("lenet1", "lenet4")
        for number, got in ((1, "1x8x8"), (3, "3x32x32"), (4, "1x64x48"))
    },
    **{
        ("lenet5_rbf", number): f"the model lenet5_rbf: {PAPER}, and ten classes, but got {got} classes"
        for number, got in ((1, "1x8x8 and 10"), (2, "1x28x28 and 47"), (3, "3x32x32 and 5"), (4, "1x64x48 and 2"))
    },
}
"""The models that do not take each of `DATA`, by name and place, and what they say."""
TAKEN = [(name, number) for name in MODELS for number in range(len(DATA)) if (name, number) not in REFUSALS]


@pytest.fixture(params=TAKEN, ids=lambda one: f"{one[0]}-{'x'.join(map(str, DATA[one[1]].shape))}")
def built(request: pytest.FixtureRequest) -> tuple[str, Facts]:
    name, number = request.param
    return name, DATA[number]


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("name", "number"), REFUSALS)
def test_a_model_says_in_one_line_which_images_it_does_not_take(name: str, number: int) -> None:
    with pytest.raises(InputError) as caught:
        models.build(name, facts=DATA[number])
    assert str(caught.value) == f"{REFUSALS[name, number]}; name another one in the recipe and search.space.model"


def test_maps_a_batch_of_images_to_a_logit_for_each_class(built: tuple[str, Facts]) -> None:
    name, facts = built
    assert models.build(name, facts=facts)(torch.randn(3, *facts.shape)).shape == (3, facts.num_classes)


def test_ends_in_logits_and_not_in_probabilities(built: tuple[str, Facts]) -> None:
    name, facts = built
    model = models.build(name, facts=facts)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    outputs = model(torch.randn(64, *facts.shape))
    assert (outputs < 0).any()
    assert (outputs > 1).any()


def test_every_parameter_gets_a_gradient(built: tuple[str, Facts]) -> None:
    name, facts = built
    model = models.build(name, facts=facts)
    F.cross_entropy(model(torch.randn(8, *facts.shape)), torch.arange(8) % facts.num_classes).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_overfits_32_images(built: tuple[str, Facts]) -> None:
    torch.manual_seed(0)
    name, facts = built
    model, images = models.build(name, facts=facts), torch.randn(32, *facts.shape)
    labels = torch.arange(32) % facts.num_classes
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 if facts.num_values <= 28 * 28 else 0.002)
    for _ in range(80):
        logits = model(images)
        if (logits.argmax(1) == labels).all():
            return
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    pytest.fail("80 steps are not enough")


def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(models.build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_prediction_of_an_image_does_not_depend_on_its_batch(built: tuple[str, Facts]) -> None:
    name, facts = built
    model = models.build(name, facts=facts).eval()
    images = torch.randn(16, *facts.shape)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


def test_has_the_known_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in models.build(name).parameters()) == PARAMETERS[name]


def test_hidden_sizes_set_the_layers_of_the_mlp() -> None:
    model = models.build("mlp", hidden=[300, 100], activation="tanh")
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(300, 784), (100, 300), (10, 100)]
    assert any(isinstance(module, torch.nn.Tanh) for module in model.modules())


def test_a_cropped_mlp_ignores_the_border() -> None:
    model, image = models.build("mlp", hidden=[300], crop=4), torch.randn(1, 1, 28, 28)
    assert sum(parameter.numel() for parameter in model.parameters()) == 400 * 300 + 300 + 300 * 10 + 10
    assert torch.equal(model(image), model(F.pad(image[..., 4:24, 4:24], (4, 4, 4, 4))))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lenet", {}, f"models: model must be one of {', '.join(sorted(MODELS))}, but got 'lenet'; "
         "did you mean 'lenet5'?"),
        ("mlp", {"hiden": [3]}, "params.yaml: models.mlp.hiden must be a known key, but got 'hiden'; "
         "did you mean 'hidden'?"),
        ("mlp", {"activation": "rely"}, "params.yaml: models.mlp.activation must be one of sigmoid, tanh, relu, "
         "but got 'rely'; did you mean 'relu'?"),
        ("mlp", {"hidden": 15}, "params.yaml: models.mlp.hidden must be a list, but got 15"),
        ("mlp", {"hidden": "15"}, "params.yaml: models.mlp.hidden must be a list, but got '15'"),
        ("convnet", {"channels": [0]}, "params.yaml: models.convnet.channels[0] must be >= 1, but got 0"),
        ("mlp", {"num_classes": 3}, "params.yaml: models.mlp.num_classes must be a known key, but got 'num_classes'; "
         "known here: activation, crop, hidden"),
        ("linear", {"width": 3}, "params.yaml: models.linear.width must be a known key, but got 'width'; "
         "known here: none"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_argument_is_reported_in_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        models.build(name, **arguments)
    assert str(caught.value) == message


def test_check_reports_every_error_at_once() -> None:
    with pytest.raises(InputError) as caught:
        models.check({"mlp": {"hidden": [-1]}, "convnet": {"chanels": [1]}})
    assert len(str(caught.value).splitlines()) == 2
