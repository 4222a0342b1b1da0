"""Test the distortions against SciPy's interpolation, and kernels, snapshots, distillation and averages by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import log_softmax, softmax
from torch import nn

from mnist_pipe.data import augment
from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from studies.frontier import distortions, ensembles, networks
from studies.frontier.distortions import Distortion

RECIPE = Recipe(
    model="convnet",
    model_params={"channels": [4, 6], "convolutions": 2},
    optimizer="muon",
    learning_rate=0.03,
    batch_size=20,
    num_epochs=4,
    schedule="triangle",
    precision="float32",
)
STILL = Distortion()


def rows(num_rows: int = 60) -> DeviceSplit:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_rows) % 10
    images = torch.randn(num_rows, 1, 28, 28, generator=generator) * 0.1
    for image, label in zip(images, labels, strict=True):
        image[0, 4:24, 4 + 2 * label : 6 + 2 * label] += 2
    return DeviceSplit(images=images, labels=labels, background=0.0)


def draws(**columns: float) -> torch.Tensor:
    """Return one draw, with all but these columns at rest."""
    names = ("angle", "right", "down", "widen", "heighten", "shear", "field", "sign")
    return torch.tensor([[columns.get(name, 1.0 if name == "sign" else 0.0) for name in names]])


def test_without_more_a_distortion_is_the_rotation_and_shift_of_the_pipeline() -> None:
    images = rows().images
    found = distortions.draw(60, Distortion(rotation_degrees=10, translation_pixels=1.5), generator=torch.Generator())
    ours = distortions.distorted(images, found, fields=torch.zeros(0), background=-0.4)
    torch.testing.assert_close(ours, augment.affine(images, found[:, :3], background=-0.4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("columns", "matrix"),
    [
        ({"widen": 0.2}, [[1, 0], [0, np.exp(-0.2)]]),  # rows and columns of the source, by those of the result
        ({"heighten": -0.3}, [[np.exp(0.3), 0], [0, 1]]),
        ({"shear": 0.25}, [[1, 0], [0.25, 1]]),
    ],
)
def test_scale_and_shear_read_where_their_matrix_says(columns: dict[str, float], matrix: list[list[float]]) -> None:
    image = rows().images[3:4]
    found = distortions.distorted(image, draws(**columns), fields=torch.zeros(0), background=0.0)
    places = np.tensordot(np.array(matrix), np.indices((28, 28)) - 13.5, axes=1) + 13.5
    expected = map_coordinates(image[0, 0].numpy(), places, order=1, mode="grid-constant")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_field_moves_each_pixel_by_its_own_displacement(sign: float) -> None:
    image, field = rows().images[5:6], np.zeros((2, 2, 28, 28), np.float32)
    field[1] = gaussian_filter(np.random.default_rng(0).normal(0, 20, (2, 28, 28)), (0, 4, 4))
    found = distortions.distorted(image, draws(field=1, sign=sign), fields=torch.from_numpy(field / 14), background=0.0)
    places = np.indices((28, 28)) + sign * field[1, ::-1]  # a field has x first, an index has y
    expected = map_coordinates(image[0, 0].numpy(), places, order=1, mode="grid-constant")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)


def test_fields_are_smooth_and_as_large_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "_NUM_FIELDS", 200)
    fields = 14 * distortions.fields_of(Distortion(elastic_pixels=1.5), seed=0)
    assert fields.std() == pytest.approx(1.5, rel=1e-3)
    step = (fields[..., 1:] - fields[..., :-1]).std()
    assert step == pytest.approx(1.5 / (4 * np.sqrt(2)), rel=0.05)  # of smoothed white noise: std / (sigma sqrt(2))
    assert not len(distortions.fields_of(STILL, seed=0))


def test_the_fields_of_simard_have_the_documented_size() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (400, 29, 29))
    assert 34 * gaussian_filter(noise, (0, 4, 4), mode="wrap").std() == pytest.approx(1.4, abs=0.05)


def test_draws_stay_within_their_limits_and_reach_them() -> None:
    limits = Distortion(rotation_degrees=18, translation_pixels=2, scale=0.1, shear=0.2, elastic_pixels=1)
    found = distortions.draw(4000, limits, generator=torch.Generator().manual_seed(0))
    largest = found.abs().amax(0)
    expected = torch.tensor([np.pi / 10, 2, 2, 0.1, 0.1, 0.2])
    assert (largest[:6] <= expected + 1e-6).all()
    assert (largest[:6] > 0.98 * expected).all()
    assert set(found[:, 7].tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("crop", [0, 3])
def test_larger_kernels_keep_the_maps_and_have_the_more_weights(crop: int) -> None:
    cropped = {"crop": crop, "last_pool": False} if crop else {}
    recipe = Recipe(**{**RECIPE.to_dict(), "model_params": {**RECIPE.model_params, **cropped}})
    sizes = {}
    for kernel in (3, 5, 7):
        model, optimizer = networks.build(recipe, kernel=kernel)
        kernels = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        assert {layer.kernel_size for layer in kernels} == {(kernel, kernel)}
        assert model(rows().images).shape == (60, 10)
        sizes[kernel] = sum(layer.weight.numel() for layer in kernels)
        optimized = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert optimized == {id(weight) for weight in model.parameters()}
    assert sizes[5] / sizes[3] == pytest.approx(25 / 9)
    assert sizes[7] / sizes[3] == pytest.approx(49 / 9)


def test_one_cycle_is_the_training_of_the_main_pipeline() -> None:
    model, optimizer = loop.new_run(RECIPE, device=torch.device("cpu"))
    learner = loop.Network(RECIPE, model=model, optimizer=optimizer)
    *_, (_, metrics) = loop.epochs(learner, RECIPE, training=rows())
    ((ours, accuracy),) = networks.train(RECIPE, distortion=STILL, training=rows())
    assert accuracy == pytest.approx(float(metrics[1]))
    for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_each_cycle_ends_in_a_snapshot_at_rate_zero() -> None:
    before, weights = [], []
    for model, _ in networks.train(RECIPE, distortion=STILL, cycles=2, training=rows()):
        weights.append([weight.detach().clone() for weight in model.parameters()])
        before.append(model)
    assert len(weights) == 2
    assert before[0] is before[1]  # a cycle goes on from the last
    assert any((first != second).any() for first, second in zip(*weights, strict=True))


def test_a_student_of_its_teacher_alone_does_not_see_the_labels() -> None:
    """Check that with a share of 1 the labels do not matter, and that with less they do."""
    teacher, _ = networks.build(RECIPE, kernel=3)
    teacher.eval()
    data = rows(20)

    def after_a_step(share: float, labels: torch.Tensor) -> torch.Tensor:
        model, optimizer = networks.build(RECIPE, kernel=3)
        learner = networks.Learner(
            RECIPE, model=model, optimizer=optimizer, distortion=STILL, teacher=teacher, distilled=share
        )
        learner.start_epoch()
        moves = learner.draw(20, generator=torch.Generator())
        learner.step(data.images, labels, moves=moves, batch=loop.Batch(size=20, multiplier=1, background=0.0))
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    others = data.labels.flip(0)
    torch.testing.assert_close(after_a_step(1.0, data.labels), after_a_step(1.0, others), atol=0, rtol=0)
    assert not torch.equal(after_a_step(0.5, data.labels), after_a_step(0.5, others))


def test_a_distilled_network_learns_and_is_not_its_teacher() -> None:
    distilled = list(networks.train(RECIPE, distortion=STILL, distilled=0.5, training=rows()))
    plain = list(networks.train(RECIPE, distortion=STILL, training=rows()))
    assert len(distilled) == 1
    assert distilled[0][1] > 0.5
    pairs = zip(distilled[0][0].parameters(), plain[0][0].parameters(), strict=True)
    assert any((mine != other).any() for mine, other in pairs)


def test_averages_are_those_by_hand() -> None:
    first, second = (log_softmax(np.random.default_rng(seed).normal(0, 2, (50, 10)), axis=1) for seed in (0, 1))
    expected = {
        "logarithms": first + second,
        "probabilities": np.log(np.exp(first) + np.exp(second)),
        "scaled logarithms": first / 0.5 - np.log(np.exp(first / 0.5).sum(1))[:, None]
        + second / 2 - np.log(np.exp(second / 2).sum(1))[:, None],
    }  # fmt: skip
    halves = [np.exp(logs / at) / np.exp(logs / at).sum(1)[:, None] for logs, at in ((first, 0.5), (second, 2))]
    expected["scaled probabilities"] = np.log(halves[0] + halves[1])
    assert expected.keys() == set(ensembles.AVERAGES)
    divisor = {how: 2 if how.endswith("logarithms") else 1 for how in expected}
    for how, values in expected.items():
        parts = [ensembles.part(logs, how=how, temperature=at) for logs, at in ((first, 0.5), (second, 2))]
        found = ensembles.average(parts, how=how)
        np.testing.assert_allclose(found, log_softmax(values / divisor[how], axis=1), atol=1e-9)
        np.testing.assert_allclose(np.exp(found).sum(1), 1)


def test_the_score_is_that_at_the_best_temperature() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 500).astype(np.uint8)
    logs = log_softmax(generator.normal(0, 1, (500, 10)) + 3 * np.eye(10)[labels], axis=1)
    found, temperature = ensembles.brier(logs, labels)
    tried = [-log_softmax(logs / at, axis=1)[np.arange(500), labels].mean() for at in np.linspace(0.2, 1, 401)]
    assert temperature == pytest.approx(np.linspace(0.2, 1, 401)[np.argmin(tried)], abs=0.005)
    probabilities = softmax(logs / temperature, axis=1)
    assert found == pytest.approx(((probabilities - np.eye(10)[labels]) ** 2).sum() / 500)
    assert ensembles.brier(log_softmax(3 * logs, axis=1), labels)[0] == pytest.approx(found, abs=1e-6)


def test_the_choice_prefers_different_networks_to_better_copies() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 2000).astype(np.uint8)
    noise = generator.normal(0, 1, (2, 2000, 10))

    def network(own: np.ndarray, strength: float) -> np.ndarray:
        return log_softmax(own + strength * np.eye(10)[labels], axis=1)

    parts = {"best": network(noise[0], 3.0), "copy": network(noise[0], 2.99), "other": network(noise[1], 2.7)}
    assert ensembles.choose(parts, labels, how="logarithms", most=2) == ["best", "other"]
    assert ensembles.choose({"best": parts["best"], "copy": parts["copy"]}, labels, how="logarithms", most=2) == [
        "best"
    ]


def test_the_overlap_is_the_share_of_mistakes_that_two_networks_have_in_common() -> None:
    labels = np.zeros(10, np.uint8)
    wrong = np.eye(10)[1]
    first, second, third = (np.tile(np.eye(10)[0], (10, 1)) for _ in range(3))
    first[[0, 1, 2]] = wrong
    second[[2]] = wrong
    third[[5]] = wrong
    assert ensembles.overlap([first], [second], labels) == 0.5  # one of (3 + 1) / 2
    assert ensembles.overlap([first, second, third], [first, second, third], labels) == pytest.approx(0.5 / 3)


def test_a_vote_is_the_majority_and_without_one_the_first() -> None:
    digits = [np.array(values) for values in ([1, 1, 2, 7], [2, 1, 3, 8], [2, 5, 2, 9])]
    assert ensembles.vote(digits).tolist() == [2, 1, 2, 7]


def test_selections_try_every_combination_of_different_kinds() -> None:
    labels = np.array([0, 1, 2, 3], np.uint8)
    right, wrong = np.eye(10)[labels], np.eye(10)[labels + 1]
    kinds = [[right, wrong], [wrong, wrong], [wrong], [right]]
    assert ensembles.best_vote(kinds, labels) == (1.0, 4 + 4 + 2 + 2)  # kinds 1-2-3, 1-2-4, 1-3-4 and 2-3-4
    assert ensembles.best_average([[right, wrong], [1.5 * wrong, wrong]], labels)[1] == 4
    assert ensembles.best_vote(kinds[:2], labels) == (0.0, 0)
