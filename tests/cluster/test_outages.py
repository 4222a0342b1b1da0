"""The worker, the Prefect server or the storage goes away in mid-run, and comes back."""

from __future__ import annotations

import time

import pytest

from tests.cluster.bed import Bed
from tests.cluster.project import Project, Training, take

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
OUTAGE_SECONDS = 30


@pytest.fixture(scope="module")
def ready(rebuilt: str, project: Project) -> Project:
    assert rebuilt
    take(project, train__seed=1)
    return project


def check_once(run: Training) -> None:
    """Every epoch was trained and told once, and the flow run is the only one of its name."""
    for epoch in range(1, 5):
        assert run.log.count(f"epoch {epoch}/4") == 1, run.log[-3000:]
    assert list(run.project.history().epoch) == [1, 2, 3, 4]
    names = [entry["name"] for entry in run.project.bed.prefect("flow_runs/filter", body={"limit": 200})]
    assert len(names) == len(set(names))


def test_the_worker_is_killed_and_started_again(bed: Bed, ready: Project) -> None:
    with ready.training("without a worker") as run:
        run.wait_for("epoch 1/4")
        bed.kill("worker")
        time.sleep(5)
        bed.deploy("worker")
    check_once(run)


def test_the_prefect_server_is_away_for_half_a_minute(bed: Bed, ready: Project) -> None:
    with ready.training("without a server") as run:
        run.wait_for("epoch 1/4")
        bed.kill("prefect-server")
        time.sleep(OUTAGE_SECONDS)
        bed.deploy("prefect-server")
    check_once(run)
    assert run.log.count("waiting for it") == 1


def test_the_storage_answers_503_for_half_a_minute(bed: Bed, ready: Project) -> None:
    with ready.training("without a storage") as run:
        run.wait_for("epoch 1/4")
        bed.storage_fails(True)
        time.sleep(OUTAGE_SECONDS)
        bed.storage_fails(False)
    check_once(run)
