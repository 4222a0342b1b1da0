"""Test the ensembles of the frontier against averages by hand, and that no network is selected by its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from mnist_pipe import paths
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.params import loader
from mnist_pipe.training.recipe import recipe_of
from studies.common.ledger import Run
from studies.frontier import findings, runs
from tests.support import ROOT
from tests.support.studies import check_rendered, measured, points, recorded

ROWS = 200


def _test_split() -> NormalizedSplit:
    generator = np.random.default_rng(0)
    return NormalizedSplit(
        images=generator.random((ROWS, 28, 28), np.float32),
        labels=generator.integers(0, 10, ROWS).astype(np.uint8),
        index=np.arange(ROWS, dtype=np.uint32),
        provenance={"mean": 0.0, "std": 1.0},
    )


def _logs(split: NormalizedSplit, seed: int) -> NDArray[np.float32]:
    """Return log-probabilities, float32 `(ROWS, 10)`, of a network that is right on about three rows of four."""
    noise = np.random.default_rng(seed).normal(0, 1, (ROWS, 10))
    found: NDArray[np.float32] = log_softmax(noise + 2.2 * np.eye(10)[split.labels], axis=1).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def split() -> NormalizedSplit:
    return _test_split()


@pytest.fixture(scope="module")
def done(split: NormalizedSplit) -> list[Run]:
    params = runs.Params(num_networks=7, ensemble_size=3, channels=[4], num_epochs=1)
    found = []
    for config in runs.plan(params):
        logs = _logs(split, config["seed"])
        accuracy = float((logs.argmax(1) == split.labels).mean())
        result = {"test_accuracy": accuracy, "one_look_accuracy": accuracy, "num_parameters": 1}
        found.append(Run(config=config, result=result, intermediate={"log_probabilities": runs.packed(logs)}))
    return found


def test_the_recipe_is_the_main_pipelines_best() -> None:
    best = loader.load(ROOT / paths.PARAMS, names=None).recipes["best"]
    ours = runs.recipe_of({"channels": [24, 48, 96], "num_epochs": best.num_epochs, "seed": 0})
    assert ours == recipe_of(best.model_dump(), found={}, models={}, seed=0)
    assert best.test_time_augmentation


def test_probabilities_survive_the_round_trip_within_half_precision(split: NormalizedSplit) -> None:
    logs = _logs(split, 0)
    np.testing.assert_allclose(runs.unpacked(runs.packed(logs)), logs, rtol=1e-3)


def test_an_ensemble_averages_the_log_probabilities_of_its_networks(done: list[Run], split: NormalizedSplit) -> None:
    found = runs.conclude(done, {"test": split})
    logs = np.stack([_logs(split, seed).astype(np.float16).astype(np.float32) for seed in range(7)])
    right = logs.mean(0).argmax(1) == split.labels
    assert found["whole_ensemble"] == right.mean()
    assert found["by_size"][-1] == pytest.approx(right.mean(), abs=1e-6)
    assert [mistake["row"] for mistake in found["mistakes"]] == np.flatnonzero(~right).tolist()
    assert found["wrong_of_all"] == (logs.argmax(2) != split.labels).all(0).sum()
    # The ensembles of three are disjoint; the seventh network belongs only to the ensemble of all.
    expected = [(logs[group].mean(0).argmax(1) == split.labels).mean() for group in (slice(0, 3), slice(3, 6))]
    assert found["ensembles"] == expected


def test_one_network_has_the_mean_accuracy_of_all(done: list[Run], split: NormalizedSplit) -> None:
    found = runs.conclude(done, {"test": split})
    assert found["by_size"][0] == pytest.approx(np.mean([run.result["test_accuracy"] for run in done]), abs=0.005)


def test_an_inaccurate_network_stays_in_the_ensemble(done: list[Run], split: NormalizedSplit) -> None:
    """Check that every seed is trained and belongs to the ensemble, whatever its score."""
    bad = runs.packed(log_softmax(np.random.default_rng(0).normal(0, 9, (ROWS, 10)), axis=1).astype(np.float32))
    spoiled = [*done[:-1], replace(done[-1], intermediate={"log_probabilities": bad})]
    found = runs.conclude(spoiled, {"test": split})
    assert found["whole_ensemble"] != runs.conclude(done, {"test": split})["whole_ensemble"]


def test_every_published_record_has_a_result_of_ours(done: list[Run], split: NormalizedSplit) -> None:
    rows = findings.rows(measured(done, runs.conclude(done, {"test": split})))
    records = [row for row in rows if row.published is not None]
    assert len(records) == 6
    assert all(row.values and "theirs: " in row.note for row in records)


def test_the_figures_show_every_ensemble_size_record_and_mistake(
    done: list[Run], split: NormalizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = recorded(monkeypatch)
    conclusions = runs.conclude(done, {"test": split})
    assert findings.draw(tmp_path, measured(done, conclusions)) == ["figure.png", "mistakes.png"]
    for name, figure in drawn.items():
        check_rendered(tmp_path / name, figure)
    curve, crosses, *records = drawn["figure.png"].axes[0].lines
    by_size, ensembles = points(curve), points(crosses)
    assert by_size[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(by_size[1], 100 * (1 - np.array(conclusions["by_size"])), atol=1e-4)
    assert ensembles[0].tolist() == [3, 3]
    published = {row.published.value for row in findings.rows(measured(done, conclusions)) if row.published}
    assert {points(line)[1, 0] for line in records} == published
    tiles = [axes for axes in drawn["mistakes.png"].axes if axes.get_visible()]
    assert len(tiles) == len(conclusions["mistakes"])
