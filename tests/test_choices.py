"""Test what every sampler and every scheduler of a search promises; a new entry of either dict is tested at once."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from mnist_pipe import preflight
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster
from mnist_pipe.errors import InputError
from mnist_pipe.tuning.ledger import best_trial, ledger_of
from mnist_pipe.tuning.samplers import SAMPLERS
from mnist_pipe.tuning.schedulers import SCHEDULERS
from mnist_pipe.tuning.space import grid
from tests.support import ROOT
from tests.support.search import RECIPE, SPACE, run, run_until_killed

PAIRS = dict.fromkeys([*itertools.product(SAMPLERS, ["asha"]), *itertools.product(["tpe"], SCHEDULERS)])
CASES = [  # half a minute each: CI runs the default, `make test-all` all
    pytest.param(*pair, id="-".join(pair), marks=pytest.mark.long if pair == ("tpe", "asha") else pytest.mark.slow)
    for pair in PAIRS
]
NUM_TRIALS, NUM_BEFORE = 13, 11  # TPE and GP learn from the eleventh trial on
CHANGES: dict[str, Any] = {
    "space": {
        **SPACE,
        "model": ["mlp"],
        "learning_rate": {"nesterov": [1e18, 1e19]},  # diverges at once
        "batch_size": [32],
    },
    "num_trials": NUM_TRIALS,
    "reduction_factor": 2,
}


@pytest.mark.ray
@pytest.mark.parametrize(("algorithm", "scheduler"), CASES)
def test_a_search_is_repeatable_resumes_after_sigkill_and_outlives_a_diverging_trial(
    cluster: Cluster, tmp_path: Path, algorithm: str, scheduler: str
) -> None:
    changes = {**CHANGES, "algorithm": algorithm, "scheduler": scheduler}
    # A new interpreter: a server of forks keeps the environment of the test that started it, without this Ray's token.
    child = multiprocessing.get_context("spawn").Process(
        target=run_until_killed, args=(cluster.address, tmp_path / "killed", NUM_BEFORE, changes)
    )
    child.start()
    undisturbed = run(cluster, folder=tmp_path / "undisturbed", **changes)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    ledger = ledger_of("search", storage=storage.open_uri(str(tmp_path / "killed")))
    before = ledger.read()
    assert before == undisturbed[:NUM_BEFORE]
    assert run(cluster, folder=tmp_path / "killed", **changes) == undisturbed
    assert [record.seconds for record in ledger.read()[:NUM_BEFORE]] == [record.seconds for record in before]

    statuses = {record.status for record in undisturbed}
    assert statuses >= {"finished", "diverged"}
    assert statuses <= {"finished", "stopped", "diverged"}
    if algorithm == "tpe":
        assert ("stopped" in statuses) == (scheduler != "fifo")
    assert all((record.status == "diverged") == (record.config["optimizer"] == "nesterov") for record in undisturbed)
    assert best_trial(undisturbed).config["optimizer"] == "adam"


def test_a_grid_has_each_combination_once_with_its_own_dimensions_only() -> None:
    space = {
        "model": ["mlp", "convnet"],
        "model_params": {"convnet": {"channels": [[4], [4, 8]]}},
        "optimizer": ["adam", "muon"],
        "learning_rate": {"adam": [0.001, 0.1], "muon": [0.01, 0.01]},
        "rotation_degrees": [0, 10],
    }
    points = grid(RECIPE.model_dump(), space=space, num_points=3)
    models = [{"model": "mlp"}, *({"model": "convnet", "model_params.convnet.channels": c} for c in ("[4]", "[4, 8]"))]
    rates = [("adam", 0.001), ("adam", 0.01), ("adam", 0.1), ("muon", 0.01)]
    assert points == [
        {
            **model,
            "optimizer": optimizer,
            f"learning_rate.{optimizer}": pytest.approx(rate),
            "rotation_degrees": degrees,
        }
        for model in models
        for optimizer, rate in rates
        for degrees in (0, 5, 10)
    ]
    assert grid(RECIPE.model_dump(), space={"weight_decay": [1e-6, 1e-4]}, num_points=1) == [
        {"weight_decay": pytest.approx(1e-5)}
    ]


def test_a_grid_that_no_memory_holds_is_refused_in_one_line() -> None:
    space = preflight.load_params(ROOT / "params.yaml").search.space
    with pytest.raises(InputError) as caught:
        grid(RECIPE.model_dump(), space=space, num_points=1000)
    assert str(caught.value) == (
        "search.space: the grid must have at most 100,000 points, but got more; lower search.grid_points or name "
        "fewer values"
    )


@pytest.mark.ray
def test_a_grid_search_ends_with_its_last_point(cluster: Cluster, tmp_path: Path) -> None:
    space = {"batch_size": [32, 64], "rotation_degrees": [0.0, 5.0]}
    arguments: dict[str, Any] = {"space": space, "num_epochs": 1, "algorithm": "grid", "scheduler": "fifo"}
    records = run(cluster, folder=tmp_path / "all", num_trials=9, **arguments)
    configs = [record.config for record in records]
    assert sorted(map(str, configs)) == sorted(
        str({"batch_size": size, "rotation_degrees": degrees}) for size in (32, 64) for degrees in (0.0, 5.0)
    )
    some = run(cluster, folder=tmp_path / "some", num_trials=3, **arguments)
    assert [record.config for record in some] == configs[:3]
