"""Test runs during which the worker, the Prefect server or the storage goes away and comes back."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.cluster.bed import Bed, wait_for
from tests.cluster.project import Project, Training, use_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
OUTAGE_SECONDS = 30


@pytest.fixture(scope="module")
def ready(checkout: Project) -> Project:
    use_recipe(checkout, train__seed=1)
    return checkout


def check_once(run: Training) -> None:
    """Check that every epoch was trained and reported once, and that no two flow runs share a name."""
    for epoch in range(1, 5):
        assert run.log.count(f"epoch {epoch}/4") == 1, run.log[-3000:]
    assert list(run.project.history().epoch) == [1, 2, 3, 4]
    names = [entry["name"] for entry in run.project.bed.prefect("flow_runs/filter", body={"limit": 200})]
    assert len(names) == len(set(names))


def test_a_training_survives_a_restart_of_the_worker(bed: Bed, ready: Project) -> None:
    with ready.training("without a worker") as run:
        run.wait_for("epoch 1/4")
        bed.kill("worker")
        time.sleep(5)
        bed.deploy("worker")
    check_once(run)


@pytest.mark.slow
def test_a_training_resumes_after_the_worker_and_its_run_are_killed(bed: Bed, ready: Project) -> None:
    with ready.training("without a run") as run:
        run.wait_for("epoch 1/4")
        bed.kill("worker")
        [pid] = bed.pids("head", of="prefect.engine")
        os.kill(pid, signal.SIGKILL)
        bed.deploy("worker")
        print(f"the run was missed after {run.wait_for('its process is gone'):.1f} s")
        print(f"and trained again after {run.wait_for('workers: ', count=2):.1f} s more")
    for epoch in range(1, 5):
        assert run.log.count(f"epoch {epoch}/4") == 1, run.log[-3000:]
    assert list(ready.history().epoch) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("gone", "seed"), [("worker", 2), ("prefect-server", 3)])
def test_a_run_can_be_cancelled_after_an_outage(gone: str, seed: int, bed: Bed, ready: Project) -> None:
    use_recipe(ready, train__seed=seed, train__num_epochs=100)
    with ready.training(f"cancelled without {gone}", ends_with=128 + signal.SIGTERM) as run:
        run.wait_for("epoch 1/100")
        bed.kill(gone)
        if gone == "prefect-server":
            time.sleep(OUTAGE_SECONDS)
        bed.deploy(gone)
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(60)
    use_recipe(ready, train__seed=1)
    flow_run = re.search(r"(train-\S+): Running", run.log)
    assert flow_run
    seconds = wait_for(lambda: bed.run_state(flow_run[1]) == "Cancelled", "the run to be cancelled", timeout=90)
    print(f"{gone} was away: cancelled after {seconds:.1f} s")
    assert bed.pids("head", of="prefect.engine") == []


def test_a_training_survives_a_prefect_outage(bed: Bed, ready: Project) -> None:
    with ready.training("without a server") as run:
        run.wait_for("epoch 1/4")
        bed.kill("prefect-server")
        time.sleep(OUTAGE_SECONDS)
        bed.deploy("prefect-server")
    check_once(run)
    assert run.log.count("does not answer; retrying") == 1


def test_a_training_survives_a_storage_outage(bed: Bed, ready: Project) -> None:
    with ready.training("without a storage") as run:
        run.wait_for("epoch 1/4")
        bed.storage_fails(True)
        time.sleep(OUTAGE_SECONDS)
        bed.storage_fails(False)
    check_once(run)
