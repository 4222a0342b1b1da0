"""Test runs on Ray: each is computed once, kept in order, survives the driver's death, and raises its own error."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster
from mnist_pipe.errors import InputError
from studies.common.executor import run_all
from studies.common.ledger import Config, Result, Run, ledger_of

pytestmark = pytest.mark.ray
SHARED = {"numbers": np.arange(10.0)}


def compute(config: Config, shared: Mapping[str, Any]) -> Result:
    """Return a run's own number of the shared ones, and leave a file that proves that it was computed."""
    if config.get("wrong"):
        raise InputError("a rule must hold, but did not")
    time.sleep(config.get("wait", 0.0))
    Path(config["folder"], f"{config['number']}-{os.getpid()}-{time.monotonic_ns()}").touch()
    assert not shared["numbers"].flags.writeable  # a node's processes share one copy
    number = float(shared["numbers"][config["number"]])
    return Result(metrics={"number": number}, intermediate={"twice": 2 * number})


def _spread(configs: list[Config], root: Path, *, available: Cluster) -> tuple[list[Run], list[Run]]:
    told: list[Run] = []
    ledger = ledger_of("a-study", storage=storage.project_storage(root))
    runs = run_all(compute, configs, shared=SHARED, available=available, ledger=ledger, on_run=told.append)
    return runs, told


def test_each_run_is_computed_once_and_returned_in_the_requested_order(cluster: Cluster, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    configs: list[Config] = [{"number": n, "folder": str(work), "wait": 0.2 * (n == 3)} for n in (3, 1, 2)]
    runs, told = _spread(configs, tmp_path, available=cluster)
    assert [(run.config, run.result) for run in runs] == [(c, {"number": float(c["number"])}) for c in configs]
    assert [run.intermediate for run in runs] == [{"twice": 2.0 * c["number"]} for c in configs]
    assert sorted(run.config["number"] for run in told) == [1, 2, 3]
    assert len(list(work.iterdir())) == 3
    # A restarted study requests all runs again: only the additional one is computed.
    more = [*configs, {"number": 4, "folder": str(work)}]
    runs, told = _spread(more, tmp_path, available=cluster)
    assert [run.result["number"] for run in runs] == [3, 1, 2, 4]
    assert [run.intermediate["twice"] for run in runs] == [6, 2, 4, 8]
    assert [run.config["number"] for run in told] == [4]
    assert len(list(work.iterdir())) == 4


def test_a_failed_run_raises_its_own_error_and_finished_runs_are_kept(cluster: Cluster, tmp_path: Path) -> None:
    configs: list[Config] = [{"number": 1, "folder": str(tmp_path)}, {"wrong": True}]
    _spread(configs[:1], tmp_path, available=cluster)
    with pytest.raises(InputError, match=r"^a rule must hold, but did not$"):
        _spread(configs, tmp_path, available=cluster)
    ledger = ledger_of("a-study", storage=storage.project_storage(tmp_path))
    assert [run.config for run in ledger.read()] == configs[:1]
