"""Test training on two nodes, and the loss of one of them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.cluster.bed import Bed, wait_for
from tests.cluster.project import Project, assert_histories_agree, use_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
RECOVERY_SECONDS = 60.0
# A run with a seed that another test has used would resume its checkpoint; test_outages uses 1, 2 and 3.


@pytest.fixture(scope="module")
def ready(checkout: Project) -> Project:
    """Checkout that trains RECIPE with params of its own."""
    use_recipe(checkout)
    return checkout


@pytest.fixture(scope="module")
def reference(ready: Project) -> pd.DataFrame:
    """History of an undisturbed run on both nodes."""
    return ready.train()


@pytest.fixture
def nodes(bed: Bed) -> Iterator[None]:
    """Restart the second node after the test, so that both are up and the next training counts both."""
    yield
    bed.link("node2", up=True)
    bed.crash("node2")
    bed.deploy("node2")
    wait_for(lambda: list(bed.ray_nodes().values()).count("ALIVE") == 3, "three machines")
    time.sleep(21)  # Ray checks every 20 s which nodes an elastic run can use


def test_two_nodes_and_one_worker_agree_on_every_epoch(reference: pd.DataFrame, ready: Project) -> None:
    use_recipe(ready, train__num_workers=1)
    alone = ready.train()
    use_recipe(ready)
    assert_histories_agree(alone, reference)


@pytest.mark.slow
def test_training_from_streamed_rows_is_as_accurate(reference: pd.DataFrame, ready: Project) -> None:
    use_recipe(ready, train__data="stream")
    streamed = ready.train()
    use_recipe(ready)
    assert list(streamed.epoch) == list(reference.epoch)
    difference = abs(streamed.validation_accuracy.iloc[-1] - reference.validation_accuracy.iloc[-1])
    print(f"validation accuracy differs by {difference:.4f} after the last epoch")
    assert difference < 0.005  # the order of the rows differs


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_training_continues_after_a_node_is_lost(how: str, reference: pd.DataFrame, bed: Bed, ready: Project) -> None:
    with ready.training(f"node {how}") as run:
        run.wait_for("2 workers: ")
        run.wait_for("epoch 1/4")
        if how == "killed":
            bed.crash("node2")
        else:
            bed.link("node2", up=False)
        seconds = run.wait_for(f"1 worker: {bed.addresses['node1']}")
        print(f"a node was {how}: training again after {seconds:.1f} s")
        assert seconds <= RECOVERY_SECONDS
    assert_histories_agree(ready.history(), reference)


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_a_training_continues_after_a_worker_hangs(reference: pd.DataFrame, bed: Bed, ready: Project) -> None:
    with ready.training("hung") as run:
        run.wait_for("2 workers: ")
        run.wait_for("epoch 1/4")
        starts = len(re.findall(r"\d workers?: ", run.log))
        [pid] = bed.pids("node2", of="RayTrainWorker")
        os.kill(pid, signal.SIGSTOP)
        seconds = wait_for(lambda: len(re.findall(r"\d workers?: ", run.log)) > starts, "a new start", timeout=240)
        print(f"a worker hung: training again after {seconds:.1f} s")
        assert seconds <= RECOVERY_SECONDS
    assert_histories_agree(ready.history(), reference)


@pytest.mark.usefixtures("nodes")
def test_a_node_saves_a_checkpoint_after_sigterm(reference: pd.DataFrame, bed: Bed, ready: Project) -> None:
    with ready.training("preempted") as run:
        run.wait_for("epoch 1/4")
        bed.processes["node2"].send_signal(signal.SIGTERM)
        seconds = run.wait_for("a node is about to leave: saved a checkpoint")
        assert bed.ray_nodes()[bed.addresses["node2"]] == "ALIVE"
        print(f"a checkpoint {seconds:.1f} s after SIGTERM")
    assert bed.processes["node2"].wait(60) is not None
    assert_histories_agree(ready.history(), reference)


@pytest.mark.slow
def test_a_shared_directory_can_replace_the_bucket(
    reference: pd.DataFrame, bed: Bed, ready: Project, tmp_path: Path
) -> None:
    file = bed.settings_file("head")
    bed.write_settings(file, {**bed.settings("head"), "MNIST_PIPE_STORAGE": str(tmp_path)})
    bed.kill("worker")
    bed.deploy("worker")
    try:
        done = ready.run("python", "-m", "pipelines", "train", env={"MNIST_PIPE_STORAGE": str(tmp_path)}, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        bed.write_settings(file, bed.settings("head"))
        bed.kill("worker")
        bed.deploy("worker")
    assert "2 workers: " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= {"objects", "runs"}
    assert_histories_agree(ready.history(), reference)


@pytest.mark.slow
def test_a_stopped_training_releases_its_nodes(ready: Project) -> None:
    use_recipe(ready, train__seed=3)
    with ready.training("stopped", ends_with=128 + signal.SIGINT) as stopped:
        stopped.wait_for("epoch 1/4")
        stopped.process.send_signal(signal.SIGINT)
        stopped.process.wait(20)
    with ready.training("next") as run:
        seconds = run.wait_for("2 workers: ")
        print(f"the next training had both machines after {seconds:.1f} s")
        assert seconds <= RECOVERY_SECONDS
    assert "epoch 1/4" not in run.log
    use_recipe(ready)


@pytest.mark.slow
def test_a_training_waits_until_nodes_are_free(bed: Bed, ready: Project, tmp_path: Path) -> None:
    another = ready.copy(tmp_path / "main")
    use_recipe(ready, train__seed=5, train__num_epochs=100)
    use_recipe(another, train__seed=4)
    with ready.training("first", ends_with=128 + signal.SIGINT) as first:
        first.wait_for("epoch 1/100")
        with another.training("second") as second:
            second.wait_for("waiting for free nodes")
            runs = [psutil.Process(pid) for pid in bed.pids("head", of="prefect.engine")]
            for process in runs:
                process.cpu_percent()  # start of the measurement
            time.sleep(10)
            load = sum(process.cpu_percent() for process in runs) / 100
            print(f"{len(runs)} runs take {load:.2f} of a processor")
            assert load < 0.3
            first.process.send_signal(signal.SIGINT)
            seconds = second.wait_for("2 workers: ")
            print(f"the second training had both machines after {seconds:.1f} s")
            assert seconds <= RECOVERY_SECONDS
    use_recipe(ready)


@pytest.mark.usefixtures("nodes")
def test_a_search_uses_a_node_that_joins(bed: Bed, ready: Project) -> None:
    bed.crash("node2")
    wait_for(lambda: bed.ray_nodes().get(bed.addresses["node2"]) == "DEAD", "node2 to be missed")
    ready.set(search__num_trials=30, search__train_rows=6000, search__seed=5)
    process = bed.spawn("client", "search", ["python", "-m", "pipelines", "search"], cwd=ready.folder)
    wait_for(lambda: f"on {bed.addresses['node1']}:" in bed.log("search"), "a trial on node1", timeout=120)
    bed.deploy("node2")
    assert process.wait(400) == 0, bed.log("search")[-3000:]
    use_recipe(ready)
    assert f"on {bed.addresses['node2']}:" in bed.log("search")
