"""Test the study of the augmented-CNN report: its trainings, its conclusions and its findings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from mnist_pipe import models, paths
from mnist_pipe.data import augment
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.training import loop
from mnist_pipe.training.recipe import Recipe
from studies.cnn import findings, runs
from studies.common import catalogue, fitting
from studies.common.ledger import Run
from tests.support.studies import check_rendered, legend, measured, recorded

PARAMS = runs.Params(
    num_seeds=3, batch_size=64, num_epochs=5, decay_epochs=8, example_epochs=14, dropout=0.5, train_rows=None
)
TRAININGS = (runs.CONTROL, runs.UNMOVED, *runs.IMPROVEMENTS, *runs.CONTROLS, runs.EXAMPLE)
NUM_TEST = 400


def _split(num_rows: int, *, first: int = 0) -> NormalizedSplit:
    """Return a split whose images show their digit as a bright row; its arrays are read-only, as Ray returns them."""
    random = np.random.default_rng(first)
    labels = (np.arange(num_rows) % 10).astype(np.uint8)
    images = random.normal(-0.4, 0.1, (num_rows, 28, 28)).astype(np.float32)
    images[np.arange(num_rows), 4 + 2 * labels] += 3
    images.flags.writeable = False
    index = np.arange(first, first + num_rows, dtype=np.uint32)
    return NormalizedSplit(images=images, labels=labels, index=index, provenance={"mean": 0.13, "std": 0.31})


@pytest.fixture(scope="module")
def splits() -> dict[str, NormalizedSplit]:
    return {"train": _split(256), "validation": _split(64, first=256), "test": _split(NUM_TEST, first=1000)}


def _wrong(labels: np.ndarray, rows: dict[int, int]) -> str:
    digits = labels.copy()
    for row, taken in rows.items():
        digits[row] = taken
    return "".join(map(str, digits))


def _run(training: str, seed: int, labels: np.ndarray, *, wrong: dict[int, int], known_loss: float = 0.02) -> Run:
    config = next(one for one in runs.plan(PARAMS) if (one["training"], one["seed"]) == (training, seed))
    accuracy = 1 - len(wrong) / len(labels)
    epochs = [
        {
            "train_loss": 0.3 / (1 + epoch),
            "train_accuracy": 0.9,
            "test_loss": 0.05 + 0.01 * abs(epoch - 2),
            "test_accuracy": accuracy - 0.001 * (config["num_epochs"] - 1 - epoch),
        }
        for epoch in range(config["num_epochs"])
    ]
    result = {
        "num_parameters": 1000,
        "epochs": epochs,
        "known_loss": known_loss + 0.001 * seed,
        "known_accuracy": 0.99,
    }
    return Run(config=config, result=result, intermediate={"digits": _wrong(labels, wrong)})


def _done(labels: np.ndarray, wrong: dict[str, dict[int, int]], *, known: dict[str, float] | None = None) -> list[Run]:
    return [
        _run(training, seed, labels, wrong=wrong.get(training, {}), known_loss=(known or {}).get(training, 0.02))
        for training in TRAININGS
        for seed in range(3)
    ]


def _recipe(config: dict[str, Any]) -> Recipe:
    return Recipe(**{key: value for key, value in config.items() if key not in ("training", "train_rows")})


def test_the_plan_is_every_training_with_every_seed_the_longest_first() -> None:
    plan = runs.plan(PARAMS)
    assert {(one["training"], one["seed"]) for one in plan} == {(name, seed) for name in TRAININGS for seed in range(3)}
    epochs = [one["num_epochs"] for one in plan]
    assert epochs == sorted(epochs, reverse=True)
    assert json.loads(json.dumps(plan)) == plan
    without = runs.plan(PARAMS.model_copy(update={"example_epochs": None}))
    assert [one for one in plan if one["training"] != runs.EXAMPLE] == without


def test_the_control_has_the_reports_architecture_and_settings() -> None:
    recipe = runs.recipes(PARAMS)[runs.CONTROL]
    model, optimizer = loop.new_run(recipe, device=torch.device("cpu"))
    assert [tuple(weight.shape) for weight in model.parameters() if weight.ndim > 1] == [
        (32, 1, 3, 3),
        (64, 32, 3, 3),
        (128, 64 * 14 * 14),
        (10, 128),
    ]
    assert isinstance(optimizer, torch.optim.Adam)
    assert {group["lr"] for group in optimizer.param_groups} == {0.001}
    assert (recipe.rotation_degrees, recipe.translation_pixels) == pytest.approx((10, 2.8))
    assert (recipe.schedule, recipe.num_epochs, recipe.label_smoothing, recipe.weight_decay) == ("constant", 5, 0, 0)


@pytest.mark.parametrize(
    ("training", "changed"),
    [
        (runs.UNMOVED, {"rotation_degrees", "translation_pixels"}),
        ("dropout", {"model_params"}),
        ("decay", {"schedule", "num_epochs"}),
        ("batch norm", {"model_params"}),
        ("resnet", {"model"}),
        ("together", {"model", "model_params", "schedule", "num_epochs"}),
        (runs.LONGER, {"num_epochs"}),
        (runs.BILINEAR, set()),
        ("batches of 128", {"batch_size"}),
    ],
)
def test_a_training_differs_from_the_control_in_the_setting_it_names(training: str, changed: set[str]) -> None:
    control, other = (runs.recipes(PARAMS)[name].to_dict() for name in (runs.CONTROL, training))
    assert {key for key in control if control[key] != other[key]} == changed


def test_together_combines_all_four_improvements() -> None:
    recipe = runs.recipes(PARAMS)["together"]
    model = models.build(recipe.model, **recipe.model_params)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"ResNet", "BatchNorm2d", "Dropout"} <= kinds
    assert recipe.schedule == "cosine"


def test_images_are_moved_as_by_torchvision() -> None:
    from benchmarks.vision import transforms

    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[..., :5, :] = images[..., -5:, :] = images[..., :5] = images[..., -5:] = 0  # nothing leaves the frame
    moves = augment.draw(
        40, rotation_degrees=10, translation_pixels=2.8, generator=torch.Generator().manual_seed(1)
    ).double()
    ours = runs.moved(images, moves.float(), background=0.0)
    for image, found, (angle, *shifts) in zip(images, ours, moves.tolist(), strict=True):
        rotated = transforms.functional.rotate(image, -math.degrees(angle))  # to the nearest pixel, as RandomRotation
        whole = [round(shift) for shift in shifts]  # as RandomAffine
        expected = transforms.functional.affine(rotated, angle=0, translate=whole, scale=1, shear=[0, 0])
        assert (found == expected).float().mean() > 0.995  # a pixel may lie in the middle of two


def test_only_the_bilinear_control_moves_images_as_the_project_does(splits: dict[str, NormalizedSplit]) -> None:
    params = PARAMS.model_copy(update={"num_epochs": 1, "batch_size": 32, "train_rows": 300})
    plan = {one["training"]: one for one in runs.plan(params) if one["seed"] == 0}
    found = {name: runs.run(plan[name], splits).metrics["epochs"] for name in (runs.CONTROL, runs.BILINEAR)}
    assert found[runs.CONTROL] != found[runs.BILINEAR]
    _, history = fitting.fit(
        _recipe(plan[runs.BILINEAR]), training=fitting.whole(splits).first(300), watched=splits["test"]
    )
    assert found[runs.BILINEAR][0]["train_loss"] == pytest.approx(history[0]["train_loss"], abs=1e-6)


def test_a_run_follows_its_config_and_is_deterministic(splits: dict[str, NormalizedSplit]) -> None:
    params = PARAMS.model_copy(update={"num_seeds": 2, "num_epochs": 2, "batch_size": 32, "train_rows": 300})
    config = next(one for one in runs.plan(params) if one["training"] == "dropout")
    computed = runs.run(config, splits)
    assert runs.run(config, splits) == computed
    assert json.loads(json.dumps(vars(computed))) == vars(computed)
    result = computed.metrics
    assert len(result["epochs"]) == 2
    assert set(result["epochs"][0]) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    digits = np.array([int(digit) for digit in computed.intermediate["digits"]])
    assert np.mean(digits == splits["test"].labels) == pytest.approx(result["epochs"][-1]["test_accuracy"], abs=1e-6)
    assert result["num_parameters"] == 1_625_866


def test_seeds_are_compared_pair_by_pair(splits: dict[str, NormalizedSplit]) -> None:
    labels = splits["test"].labels
    wrong = {runs.CONTROL: {row: (labels[row] + 1) % 10 for row in range(12)}, "dropout": {10: 7, 11: 7, 12: 7}}
    against = runs.conclude(_done(labels, wrong), splits)["against_control"]
    assert set(against) == {runs.UNMOVED, *runs.IMPROVEMENTS, *runs.CONTROLS}
    assert against["dropout"]["gains"] == [pytest.approx(100 * 9 / NUM_TEST)] * 3
    # Only one of the two is right on rows 0 to 9 (the network with dropout) and on row 12 (the control).
    expected = binomtest(1, 11).pvalue
    assert against["dropout"]["p_values"] == [pytest.approx(expected, rel=1e-3)] * 3
    assert against["dropout"]["p_value"] == pytest.approx(1.5 * expected, rel=1e-3)  # the median of three


def test_confusions_are_counted_per_seed(splits: dict[str, NormalizedSplit]) -> None:
    labels = splits["test"].labels
    confusion = runs.conclude(_done(labels, {runs.CONTROL: {9: 4, 19: 4, 4: 9}}), splits)["confusion"]
    assert np.array(confusion).shape == (3, 10, 10)
    assert [(one[9][4], one[4][9], sum(map(sum, one))) for one in confusion] == [(2, 1, NUM_TEST)] * 3


def test_every_published_result_has_a_row(splits: dict[str, NormalizedSplit]) -> None:
    done = _done(splits["test"].labels, {})
    rows = findings.rows(measured(done, runs.conclude(done, splits)))
    table = pd.read_csv(paths.PUBLISHED)
    expected = table[table["source"].isin(["cnn_report", "pytorch_examples"])]
    columns = ["system", "variant", "metric", "value", "setting"]
    found = [(row.system, row.variant, row.metric, row.published.value, row.published.setting) for row in rows
             if row.published]  # fmt: skip
    assert sorted(found) == sorted(expected[columns].itertuples(index=False, name=None))
    assert len(rows) == len(found) + len(runs.IMPROVEMENTS)
    by_setting = {row.published.setting: row for row in rows if row.published and row.metric == "test_accuracy"}
    assert by_setting["epoch 2"].values == [pytest.approx(99.7)] * 3  # `_run` gains 0.1 points in each epoch


def test_figures_can_omit_pytorch_examples(
    splits: dict[str, NormalizedSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = [run for run in _done(splits["test"].labels, {}) if run.config["training"] != runs.EXAMPLE]
    found = measured(done, runs.conclude(done, splits))
    assert all(row.system != "CNN 32-64 + dropout" for row in findings.rows(found))
    drawn = recorded(monkeypatch)
    pictures = findings.draw(tmp_path, found)
    assert list(pictures) == list(drawn) == ["figure.png", "confusion.png", "improvements.png"]
    for name in pictures:
        check_rendered(tmp_path / name, drawn[name])
    loss, _, accuracy, _ = drawn["figure.png"].axes
    assert legend(loss) == ["train", "test", "the report"]
    assert len(loss.lines) == 2 * (3 + 1) + 2 * 5 + 1  # seeds and means, the report's values, and their legend entry
    assert accuracy.get_ylabel() == "accuracy"
    labels = [text.get_text() for text in drawn["improvements.png"].axes[0].get_yticklabels()]
    assert len(labels) == 3 + len(runs.IMPROVEMENTS)
    assert labels[:2] == ["without augmentation, 5 epochs", "the report's training, 5 epochs"]
    entries = {"the report's training, mean ± s", "the report's number", "mean ± s over the seeds", "a seed"}
    assert set(legend(drawn["improvements.png"])) == entries


def _rendered(splits: dict[str, NormalizedSplit], wrong: dict[str, dict[int, int]], **known: float) -> str:
    done = _done(splits["test"].labels, wrong, known={runs.UNMOVED: known.get("unmoved", 0.02)})
    conclusions = runs.conclude(done, splits)
    found = measured(
        [Run(config=run.config, result=run.result) for run in done], conclusions
    )  # as runs.json stores them
    return findings.render_findings(found, findings.rows(found))


def test_the_finding_on_9_as_4_follows_the_counts(splits: dict[str, NormalizedSplit]) -> None:
    first = _rendered(splits, {runs.CONTROL: {9: 4, 19: 4, 5: 3}})
    assert "That holds: a 9 is read as a 4 in every seed (2, 2, 2)" in first
    assert "4 and 9 are the most confused pair of the 3 augmented networks, with 6 of 9 mistakes" in first
    second = _rendered(splits, {runs.CONTROL: {9: 4, 5: 3, 15: 3}})
    assert "That holds: a 9 is read as a 4 in every seed (1, 1, 1)" in second
    assert "4 and 9 are number 2 of the confused pairs of the 3 augmented networks, with 3 of 9 mistakes" in second
    assert "That is not decided: a 9 is read as a 4 in 0 of 3 seeds" in _rendered(splits, {runs.CONTROL: {5: 3}})


def test_the_finding_on_overfitting_follows_the_losses(splits: dict[str, NormalizedSplit]) -> None:
    assert "Augmentation reduces overfitting in every seed." in _rendered(splits, {}, unmoved=0.001)
    text = _rendered(splits, {}, unmoved=0.2)
    assert "Augmentation does not reduce overfitting in every seed." in text
    assert "is lowest after epoch 3, at 0.0500, and 0.0700 after epoch 5" in text


def test_the_finding_on_an_improvement_follows_its_test(splits: dict[str, NormalizedSplit]) -> None:
    labels = splits["test"].labels
    many = {row: (labels[row] + 1) % 10 for row in range(20)}
    text = _rendered(
        splits, {runs.CONTROL: many, "resnet": {**many, 30: 9}, "decay": {**many, **dict.fromkeys(range(50, 90), 0)}}
    )
    lines = {line.split(":")[0]: line for line in text.splitlines() if line.startswith("- ")}
    assert "measurably better" in lines["- dropout, 5 epochs"]
    assert "not decided, better in 0 and worse in 3 of 3 seeds" in lines["- ResNet, 5 epochs"]
    assert "measurably worse" in lines["- falling learning rate, 8 epochs"]
    assert "Over that control, the other trainings of its length gain:" in text
    assert "**Proposed improvements.** 3 of 5 trainings are measurably better" in text


def test_shipped_params_are_valid() -> None:
    params = catalogue.params_of("cnn")
    assert isinstance(params, runs.Params)
    assert len(runs.plan(params)) >= 3 * len(TRAININGS)
