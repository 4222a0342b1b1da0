"""Training over two machines, and what happens to it when one of them goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pandas as pd
import pytest

from tests.cluster.bed import Bed, wait_for
from tests.cluster.project import Project, agree, take

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
RECOVERY_SECONDS = 60.0


@pytest.fixture(scope="module")
def ready(rebuilt: str, project: Project) -> Project:
    """The checkout with data, RECIPE and params of its own."""
    assert rebuilt
    take(project)
    return project


@pytest.fixture(scope="module")
def reference(ready: Project) -> pd.DataFrame:
    """The history of a run on both nodes that nothing disturbed."""
    return ready.train()


@pytest.fixture
def nodes(bed: Bed) -> Iterator[None]:
    """Both nodes are up again after the test."""
    yield
    bed.link("node2", up=True)
    bed.crash("node2")
    bed.deploy("node2")
    wait_for(lambda: list(bed.ray_nodes().values()).count("ALIVE") == 3, "three machines")


def test_two_nodes_and_one_worker_agree_on_every_epoch(reference: pd.DataFrame, ready: Project) -> None:
    take(ready, train__num_workers=1)
    alone = ready.train()
    take(ready)
    agree(alone, reference)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_node_that_is_lost_costs_no_run(how: str, reference: pd.DataFrame, bed: Bed, ready: Project) -> None:
    with ready.training(f"node {how}") as run:
        run.wait_for("epoch 1/4")
        if how == "killed":
            bed.crash("node2")
        else:
            bed.link("node2", up=False)
        seconds = run.wait_for(f"1 worker: {bed.addresses['node1']}")
        print(f"a node was {how}: training again after {seconds:.1f} s")
        assert seconds <= RECOVERY_SECONDS
    agree(ready.history(), reference)


@pytest.mark.usefixtures("nodes")
def test_a_node_that_is_told_to_go_leaves_a_checkpoint(reference: pd.DataFrame, bed: Bed, ready: Project) -> None:
    with ready.training("preempted") as run:
        run.wait_for("epoch 1/4")
        bed.processes["node2"].send_signal(signal.SIGTERM)
        seconds = run.wait_for("a machine is leaving: saved epoch")
        assert bed.ray_nodes()[bed.addresses["node2"]] == "ALIVE"
        print(f"a checkpoint {seconds:.1f} s after SIGTERM")
    assert bed.processes["node2"].wait(60) is not None
    agree(ready.history(), reference)


@pytest.mark.usefixtures("nodes")
def test_the_search_fills_a_node_that_joins(bed: Bed, ready: Project) -> None:
    bed.crash("node2")
    wait_for(lambda: bed.ray_nodes().get(bed.addresses["node2"]) == "DEAD", "node2 to be missed")
    ready.set(search__num_trials=16, search__train_rows=4000, search__seed=5)
    process = bed.spawn("client", "search", ["python", "-m", "pipelines", "search"], cwd=ready.folder)
    wait_for(lambda: f"on {bed.addresses['node1']}:" in bed.log("search"), "a trial on node1", timeout=120)
    bed.deploy("node2")
    assert process.wait(400) == 0, bed.log("search")[-3000:]
    take(ready)
    assert f"on {bed.addresses['node2']}:" in bed.log("search")
