"""Ray Train: workers agree, and whatever is killed, the run ends with the same weights."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from mnist_pipe import machine
from mnist_pipe.errors import InputError
from mnist_pipe.training import checkpoint, distributed
from mnist_pipe.training.distributed import Cluster, Scale, TrainingResult
from mnist_pipe.training.loop import DivergedError, Recipe
from tests import ray_data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
ONE = Scale(num_workers=1, use_gpu=False, cpus_per_worker=1)
TWO = Scale(num_workers=2, use_gpu=False, cpus_per_worker=1)

DRIVER = """
import os, sys
from pathlib import Path
from mnist_pipe.training import distributed
from tests import ray_data
from tests.test_distributed import ONE
data, storage = Path(sys.argv[1]), Path(sys.argv[2])
def show(metrics): print("epoch", metrics["epoch"])
with distributed.cluster():
    result = distributed.fit(ray_data.RECIPE, data=data, name="run", storage=storage, scale=ONE, on_epoch=show)
    print(result.state)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ray_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with distributed.cluster() as available:
        yield available


@pytest.fixture(scope="module")
def reference(data: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:  # noqa: ARG001
    """A run of one worker that nothing disturbed."""
    storage = tmp_path_factory.mktemp("reference")
    return distributed.fit(ray_data.RECIPE, data=data, name="run", storage=storage, scale=ONE)


def weights(state: Path) -> torch.Tensor:
    tensors = safetensors.torch.load_file(state / checkpoint.STATE)
    return torch.cat([tensors[key].flatten().double() for key in sorted(tensors) if key.startswith("model.")])


def test_one_worker_on_ray_is_the_plain_loop(data: Path, reference: TrainingResult) -> None:
    from mnist_pipe.data.table import read_normalized
    from mnist_pipe.training import loop

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    training, validation = (
        loop.resident(read_normalized(data / f"{name}.parquet"), device=cpu) for name in ("train", "validation")
    )
    model, optimizer = loop.new_run(ray_data.RECIPE, device=cpu)
    history = list(
        loop.train(ray_data.RECIPE, model=model, optimizer=optimizer, training=training, validation=validation)
    )
    assert history == reference.history


def test_two_workers_give_the_metrics_of_one(data: Path, reference: TrainingResult, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    result = distributed.fit(ray_data.RECIPE, data=data, name="two", storage=tmp_path, scale=TWO, on_epoch=seen.append)
    assert seen == result.history
    for ours, theirs in zip(result.history, reference.history, strict=True):
        # Sums are added in another order, and the difference grows with the steps.
        assert ours == pytest.approx(theirs, rel=0.02, abs=0.002)
    torch.testing.assert_close(weights(result.state), weights(reference.state), rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(data: Path, reference: TrainingResult, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_at_two(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2 and not killed:
            descendants = psutil.Process().children(recursive=True)
            workers = [process for process in descendants if "RayTrainWorker" in " ".join(process.cmdline())]
            for worker in workers:
                killed.append(worker.pid)
                worker.kill()

    result = distributed.fit(ray_data.RECIPE, data=data, name="run", storage=tmp_path, scale=ONE, on_epoch=kill_at_two)
    assert killed
    assert result.history == reference.history
    assert torch.equal(weights(result.state), weights(reference.state))


@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_same_weights(data: Path, reference: TrainingResult, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", DRIVER, str(data), str(tmp_path)]
    first = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while checkpoint.newest_valid(list(tmp_path.glob("run.*/checkpoint_*"))) is None:
        assert first.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # All at once, as when the power goes: Ray's workers would train on for a while without their driver.
    for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    first.wait()
    newest = checkpoint.newest_valid(list(tmp_path.glob("run.*/checkpoint_*")))
    assert newest is not None
    kept = json.loads((newest / checkpoint.PROGRESS).read_text())["progress"]["epoch"]
    # A snapshot that the kill cut short must not stand in the way.
    for snapshot in tmp_path.glob("run.*/checkpoint_manager_snapshot.json"):
        snapshot.write_text(snapshot.read_text()[:10])
    second = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    state = Path(second.stdout.splitlines()[-1])
    assert state.parent.name == "run.1"
    assert torch.equal(weights(state), weights(reference.state))
    assert second.stdout.splitlines()[0] == f"epoch {kept + 1}"


@pytest.mark.slow
def test_divergence_is_told_and_not_retried(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**ray_data.RECIPE.to_dict(), "model": "lenet5", "model_params": {}, "learning_rate": 1e18,
                       "optimizer": "sgd"})  # fmt: skip
    with pytest.raises(DivergedError, match="the loss must stay finite, but got nan in epoch 1"):
        distributed.fit(recipe, data=data, name="diverges", storage=tmp_path, scale=ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["diverges.0"]


def test_a_batch_that_does_not_divide_is_refused_before_work_starts(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**ray_data.RECIPE.to_dict(), "batch_size": 63})
    with pytest.raises(InputError) as caught:
        distributed.fit(recipe, data=data, name="run", storage=tmp_path, scale=TWO)
    assert str(caught.value) == (
        "train: batch_size must be a multiple of the 2 workers, but got 63; "
        "set search.space.batch_size or train.num_workers"
    )


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "expected"),
    [
        (8, 0, ("auto", "auto"), Scale(num_workers=1, use_gpu=False, cpus_per_worker=2)),
        (64, 4, ("auto", "auto"), Scale(num_workers=4, use_gpu=True, cpus_per_worker=1)),
        (64, 4, (2, "auto"), Scale(num_workers=2, use_gpu=True, cpus_per_worker=1)),
        (8, 4, (2, False), Scale(num_workers=2, use_gpu=False, cpus_per_worker=1)),
    ],
)
def test_auto_is_every_gpu_or_one_cpu_worker(
    cpus: int, gpus: int, asked: tuple[int | str, bool | str], expected: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "num_cpus", lambda: 2)
    available = Cluster(num_cpus=cpus, num_gpus=gpus, address="")
    assert distributed.scale(available, num_workers=asked[0], use_gpu=asked[1]) == expected


def test_everything_that_ray_opens_is_on_loopback() -> None:
    session = psutil.Process()
    open_to_all = [
        (process.name(), connection.laddr)
        for process in session.children(recursive=True)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
    ]
    assert open_to_all == []


def test_the_thread_of_progress_ends_with_the_run(reference: TrainingResult) -> None:
    assert reference.history
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("training-progress")] == []
