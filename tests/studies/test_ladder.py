"""Test the ladder's counts and statistics against real modules, hand computation and exact least squares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_pipe import models
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import forward
from mnist_pipe.training.batches import DeviceSplit, to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.ledger import Result, Run
from studies.common.packing import packed, unpacked
from studies.ladder import figures, findings, runs
from studies.ladder.runs import Params
from tests.support.studies import check_rendered, measured, points, recorded

SMALL: dict[str, Any] = {"channels": [8, 16]}
LARGER = {"channels": [24, 48, 96], "convolutions": 2}
LINEAR = {"model": "linear", "model_params": {}, "optimizer": "adam", "learning_rate": 0.01}
CONVNET = {"model": "convnet", "model_params": {"channels": [2, 3]}, "optimizer": "muon", "learning_rate": 0.03}


def _params(**changes: Any) -> Params:
    values = {
        "seeds": [0, 1, 2],
        "num_epochs": 1,
        "batch_size": 20,
        "schedule": "triangle",
        "weight_decay": 0.0,
        "classifiers": {
            "linear softmax": LINEAR,
            "small convnet": CONVNET,
            "small convnet, moved images": {**CONVNET, "translation_pixels": 1.0},
        },
        "regressors": {"linear": LINEAR, "small convnet": {**CONVNET, "optimizer": "adam"}},
        "shifts": [0, 1, 4],
        "rotations": [0, 15, 45],
        "shuffled": ["linear softmax", "small convnet"],
        "prototypes": [1, 4],
        "few": {"classifiers": ["linear softmax", "small convnet"], "num_rows": 50, "num_epochs": 2},
    }
    return Params.model_validate({**values, **changes})


def _split(num_rows: int, *, seed: int) -> NormalizedSplit:
    """Return slanted strokes whose lean and position depend on their class, in standardised grey."""
    random = np.random.default_rng(seed)
    labels = (np.arange(num_rows) % 10).astype(np.uint8)
    y, x = np.mgrid[:28, :28] - 13.5
    leans = (labels / 10 - 0.4 + random.normal(0, 0.03, num_rows))[:, None, None]
    places = (labels - 5.0 + random.normal(0, 1, num_rows))[:, None, None]  # so that no model is always right
    ink = np.exp(-((x + leans * y - places) ** 2) / 4) * (np.abs(y) < 9)
    images = ((ink - 0.1) / 0.3).astype(np.float32)
    index = np.arange(num_rows, dtype=np.uint32)
    return NormalizedSplit(images=images, labels=labels, index=index, provenance={"mean": 0.1, "std": 0.3})


@pytest.fixture(scope="module")
def splits() -> dict[str, NormalizedSplit]:
    training = _split(250, seed=0)
    validation = replace(_split(50, seed=1), index=np.arange(250, 300, dtype=np.uint32))
    return {"train": training, "validation": validation, "test": _split(100, seed=2)}


@pytest.fixture(scope="module")
def done(splits: dict[str, NormalizedSplit]) -> list[Run]:
    results = [(config, runs.run(config, splits)) for config in runs.plan(_params())]
    return [Run(config=config, result=one.metrics, intermediate=one.intermediate) for config, one in results]


def _at_another_size(name: str, arguments: dict[str, Any], *, side: int, pooled: bool) -> nn.Module:
    """Return the real model with its classifier replaced by one for images of `side` pixels."""
    model = models.build(name, **arguments).eval()
    layers = [cast(nn.Module, model.features)] if name == "convnet" else []
    body = nn.Sequential(*layers, *([nn.AdaptiveAvgPool2d(1)] if pooled else []), nn.Flatten())
    return nn.Sequential(body, nn.Linear(body(torch.zeros(1, 1, side, side)).shape[1], 10))


@pytest.mark.parametrize("side", [14, 28, 56, 112, 224])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("linear", {}), ("convnet", SMALL), ("convnet", {"channels": [3, 4, 5]}), ("convnet", LARGER)],
)
def test_parameter_counts_agree_with_real_modules(
    name: str, arguments: dict[str, Any], side: int, pooled: bool
) -> None:
    if name == "linear" and pooled:
        return  # it has no feature maps to pool
    with torch.inference_mode():
        real = _at_another_size(name, arguments, side=side, pooled=pooled)
    count = sum(parameter.numel() for parameter in real.parameters())
    assert runs.num_parameters(name, arguments, side=side, pooled=pooled) == count


@pytest.mark.parametrize(("name", "arguments"), [("linear", {}), ("convnet", SMALL), ("convnet", LARGER)])
def test_parameter_counts_at_28_pixels_agree_with_the_models(name: str, arguments: dict[str, Any]) -> None:
    count = sum(parameter.numel() for parameter in models.build(name, **arguments).parameters())
    assert runs.num_parameters(name, arguments, side=28) == count


def test_images_are_shifted_and_rotated_as_specified() -> None:
    split = _split(3, seed=0)
    background = np.float32(-0.1 / 0.3)
    right, down = runs.moved(split, right=5).images, runs.moved(split, down=2).images
    np.testing.assert_allclose(right[:, :, 5:], split.images[:, :, :-5], atol=1e-5)
    np.testing.assert_allclose(right[:, :, :5], background, atol=1e-5)
    np.testing.assert_allclose(down[:, 2:], split.images[:, :-2], atol=1e-5)
    np.testing.assert_allclose(runs.moved(split, degrees=90).images, np.rot90(split.images, -1, (1, 2)), atol=1e-4)


def test_lost_ink_agrees_with_a_count_by_hand() -> None:
    images = np.zeros((2, 4, 4), np.float32)
    images[0, 0, 0] = images[1, 2, 1] = 1.0
    # A shift by 1 left or up loses the first pixel; by 2 left, the second too; by 2 down, the second.
    np.testing.assert_allclose(runs.lost_ink(images, shifts=[0, 1, 2]), [0, 2 / 8, 4 / 8])


def test_the_nearest_average_agrees_with_brute_force() -> None:
    random = np.random.default_rng(0)
    means, images = random.normal(size=(10, 784)), random.normal(size=(40, 28, 28)).astype(np.float32)
    distances = [[float(((image.ravel() - mean) ** 2).sum()) for mean in means] for image in images]
    assert runs.nearest(images, means).tolist() == np.argmin(distances, axis=1).tolist()


def test_likeness_ignores_scale_and_what_all_templates_share() -> None:
    random = np.random.default_rng(0)
    means = random.normal(size=(10, 784))
    np.testing.assert_allclose(runs.likeness(3 * means + random.normal(size=784), means), 1.0)
    np.testing.assert_allclose(runs.likeness(-means, means), -1.0)


def test_a_packed_array_survives_the_round_trip() -> None:
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float16)
    assert (unpacked(packed(values), np.float16).reshape(10, 3) == values).all()


def _linear_task() -> tuple[DeviceSplit, NDArray[np.float32]]:
    """Return rows of noise, and targets that are linear in them up to a little noise."""
    random = np.random.default_rng(0)
    images = np.zeros((600, 28, 28), np.float32)
    images[:, 10:13, 10:13] = random.normal(size=(600, 3, 3))
    targets = images[:, 10:13, 10:13].sum((1, 2)) / 3 + random.normal(0, 0.1, 600)
    index, labels = np.arange(600, dtype=np.uint32), np.zeros(600, np.uint8)
    split = NormalizedSplit(images=images, labels=labels, index=index, provenance={"mean": 0.0, "std": 1.0})
    return to_device(split, device=torch.device("cpu")), targets.astype(np.float32)


def test_the_linear_regressor_finds_the_least_squares_solution() -> None:
    data, targets = _linear_task()
    recipe = Recipe(
        model="linear", optimizer="adam", learning_rate=0.02, batch_size=50, num_epochs=40, schedule="triangle"
    )
    model = runs.regress(recipe, training=data, targets=torch.tensor(targets))
    inputs = np.hstack([data.images.flatten(1).numpy(), np.ones((600, 1), np.float32)])
    exact = inputs @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    np.testing.assert_allclose(forward.logits(model, data.images[:, 0].numpy())[:, 0], exact, atol=0.03)


def test_a_regressor_has_one_output_and_the_classifiers_features() -> None:
    data, targets = _linear_task()
    recipe = Recipe(
        model="convnet", model_params=SMALL, optimizer="adam", learning_rate=0.01, batch_size=300, num_epochs=1
    )
    model = runs.regress(recipe, training=data, targets=torch.tensor(targets))
    classifier = models.build("convnet", **SMALL)
    shapes, others = ({key: value.shape for key, value in one.state_dict().items()} for one in (model, classifier))
    assert shapes.pop("output.weight") == (1, 784)
    assert shapes.pop("output.bias") == (1,)
    assert shapes == {key: shape for key, shape in others.items() if not key.startswith("output")}


def test_plans_each_model_with_each_seed_the_largest_first() -> None:
    planned = runs.plan(_params())
    assert len(planned) == 10 * 3
    sizes = [
        runs.num_parameters(one["recipe"]["model"], one["recipe"]["model_params"], side=28)
        for one in planned
        if "recipe" in one
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_same_config_gives_the_same_result(splits: dict[str, NormalizedSplit], done: list[Run]) -> None:
    for one in done[::4]:
        assert runs.run(one.config, splits) == Result(metrics=one.result, intermediate=one.intermediate)


def test_unmoved_images_have_the_test_accuracy(done: list[Run]) -> None:
    for one in done:
        if one.config["task"] == "classify":
            for kind in ("shifted", "turned"):
                assert one.result[kind]["accuracy"][0] == one.result["test_accuracy"]
                # All classes have the same size, so the mean over classes is the accuracy.
                np.testing.assert_allclose(np.mean(one.result[kind]["by_class"], axis=1), one.result[kind]["accuracy"])


def test_the_table_has_the_published_row_and_every_model(splits: dict[str, NormalizedSplit], done: list[Run]) -> None:
    rows = findings.rows(measured(done, runs.conclude(done, splits)))
    published = [row for row in rows if row.published]
    assert [(row.system, row.published and row.published.value) for row in published] == [("linear softmax", 92.0)]
    assert {row.system for row in rows} >= {"linear softmax", "small convnet"}
    assert [row.variant for row in rows if row.system == "small convnet"] == ["plain", "moved images"]
    assert all(len(row.values) == 3 for row in rows)


def test_the_findings_follow_the_numbers(splits: dict[str, NormalizedSplit], done: list[Run]) -> None:
    conclusions = runs.conclude(done, splits)
    rows = findings.rows(measured(done, conclusions))

    def rendered(**step: Any) -> str:
        steps = [{**one, **step} for one in conclusions["steps"]]
        return findings.render_findings(measured(done, {**conclusions, "steps": steps}), rows)

    better = rendered(gains=[0.01, 0.02, 0.03], p_value=1e-9)
    assert "Every step improves the test metric measurably." in better
    assert better.count("| holds |") == 2
    unclear = rendered(gains=[0.01, 0.02, -0.03], p_value=0.4)
    assert "Not every step improves the test metric measurably: " in unclear
    assert "| 2 of 3 |" in unclear
    assert unclear.count("| not decided |") == 2
    assert rendered(gains=[-0.01, -0.02, -0.03], p_value=1e-9).count("| contradicted |") == 2


def test_shuffled_pixels_are_the_same_pixels_in_one_order_for_all_splits() -> None:
    first, second = _split(3, seed=0), _split(3, seed=1)
    found = [runs.shuffled(split).images.reshape(3, -1) for split in (first, second)]
    assert sorted(found[0][0]) == sorted(first.images[0].ravel())
    numbered = replace(first, images=np.arange(784, dtype=np.float32).reshape(1, 28, 28))
    back = np.argsort(runs.shuffled(numbered).images.ravel())
    for shuffled, split in zip(found, (first, second), strict=True):
        np.testing.assert_array_equal(shuffled[:, back], split.images.reshape(3, -1))


def test_a_class_of_two_shapes_needs_two_templates() -> None:
    split = _split(100, seed=0)
    means = runs.class_means(split)
    np.testing.assert_allclose(runs.prototypes(split, number=1, seed=0)[:, 0], means, atol=1e-5)
    random = np.random.default_rng(0)
    shapes = random.normal(size=(20, 784)).astype(np.float32)  # classes of two shapes each
    images = shapes[np.arange(200) % 20] + random.normal(0, 0.01, (200, 784)).astype(np.float32)
    two = replace(
        split,
        images=images.reshape(-1, 28, 28),
        labels=(np.arange(200) % 20 // 2).astype(np.uint8),
        index=np.arange(200, dtype=np.uint32),
    )
    found = np.sort(runs.prototypes(two, number=2, seed=0).reshape(20, 784) @ shapes.T, axis=1)[:, -1]
    np.testing.assert_allclose(found, np.sort((shapes**2).sum(1))[np.argsort(np.argsort(found))], rtol=0.05)


@pytest.mark.parametrize(
    ("values", "reached"), [([90.0, 60.0, 40.0], 1.5), ([90.0, 80.0, 70.0], None), ([90.0, 50.0, 40.0], 1.0)]
)
def test_crossing_interpolates_where_a_curve_falls_to_a_level(values: list[float], reached: float | None) -> None:
    assert findings.crossing([0, 1, 2], values, level=50) == reached


def test_the_figures_show_every_model_and_task(
    splits: dict[str, NormalizedSplit], done: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = recorded(monkeypatch)
    names = figures.draw(tmp_path, measured(done, runs.conclude(done, splits)))
    assert list(names) == list(drawn)
    assert next(iter(names)) == "figure.png"
    for name in names:
        check_rendered(tmp_path / name, drawn[name])
    ladder, *_ = drawn["figure.png"].axes
    assert len(ladder.containers) == 3  # mean and deviation of each classifier
    labels = " ".join(text.get_text() for text in ladder.texts)
    assert "linear softmax" in labels
    assert labels.count("p ") == 2  # for the step to the convnet, and for that to moved images
    shifts, turns = drawn["failure.png"].axes
    assert [points(axes.lines[0])[0].tolist() for axes in (shifts, turns)] == [[0, 1, 4], [0, 15, 45]]
    assert len(drawn["classes.png"].axes) == 2 * 3
    assert len(drawn["regression.png"].axes) == 2
