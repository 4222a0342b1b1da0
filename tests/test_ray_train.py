"""Test Ray Train: workers agree, and whatever is killed, the run ends with the same weights."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from mnist_pipe import models
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster, Scale
from mnist_pipe.cluster.ray_session import scale as scale_of
from mnist_pipe.errors import InputError, UnavailableError
from mnist_pipe.training import checkpoint, loop, optimizers, ray_train
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.loop import DivergedError
from mnist_pipe.training.ray_train import TrainingResult
from mnist_pipe.training.recipe import Recipe
from tests.support import ROOT, ray_data
from tests.support.ray_runs import TWO, Recorder, fit, is_loopback, listeners, workers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


DRIVER = """
import sys, threading
from pathlib import Path
from mnist_pipe.cluster.ray_session import connected
from tests.support.ray_runs import Recorder, fit
class Shown(Recorder):
    def on_epoch(self, metrics):
        print("epoch", metrics["epoch"], flush=True)
        if "--stop" in sys.argv: threading.Event().wait()  # until the test kills this process
with connected("a-test"):
    fit(Path(sys.argv[1]), progress=Shown())
"""


def progress(folder: Path) -> dict[str, Any] | None:
    """Return the progress of the most advanced checkpoint under `folder`."""
    if ray_train.restore(storage.open_uri(str(folder)), name="run", into=folder / "found") is None:
        return None
    content: dict[str, Any] = json.loads((folder / "found" / checkpoint.PROGRESS).read_text())["progress"]
    return content


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def reference(folder: Path) -> TrainingResult:
    """Result of an undisturbed run of one worker; its last state is in `folder/state`."""
    return fit(folder)


def weights(folder: Path) -> torch.Tensor:
    tensors = safetensors.torch.load_file(folder / "state" / checkpoint.STATE)
    return torch.cat([tensors[key].flatten().double() for key in sorted(tensors) if key.startswith("model.")])


@pytest.mark.usefixtures("one_thread")
def test_one_ray_worker_agrees_with_the_plain_loop(reference: TrainingResult) -> None:
    cpu = torch.device("cpu")
    training, validation = (
        to_device(split, device=cpu) for split in (ray_data.split(3200), ray_data.split(501, seed=1))
    )
    model, optimizer = loop.new_run(ray_data.RECIPE, device=cpu)
    history = list(
        loop.train(ray_data.RECIPE, model=model, optimizer=optimizer, training=training, validation=validation)
    )
    assert history == reference.history


def test_local_mode_is_the_plain_loop_in_this_process(
    reference: TrainingResult, folder: Path, tmp_path: Path, cluster: Cluster
) -> None:
    recorder = Recorder()
    result = fit(tmp_path, scale=scale_of(cluster, num_workers=0, use_gpu=False, batch_size=32), progress=recorder)
    assert recorder.epochs == result.history
    for ours, theirs in zip(result.history, reference.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)  # the number of threads differs: one for each CPU
    torch.testing.assert_close(weights(tmp_path), weights(folder), rtol=1e-3, atol=1e-3)
    assert not (tmp_path / "ray").exists()


def test_two_workers_give_the_metrics_of_one(reference: TrainingResult, folder: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    result = fit(tmp_path, scale=TWO, progress=recorder)
    assert recorder.epochs == result.history
    assert [len(addresses) for addresses in recorder.starts] == [2]
    for ours, theirs in zip(result.history, reference.history, strict=True):
        # Sums are added in another order, and the difference grows with the steps.
        assert ours == pytest.approx(theirs, rel=0.02, abs=0.002)
    torch.testing.assert_close(weights(tmp_path), weights(folder), rtol=0.02, atol=0.02)


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_no_epoch_is_lost(
    reference: TrainingResult, folder: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    class Killer(Recorder):
        def on_epoch(self, metrics: dict[str, float]) -> None:
            if metrics["epoch"] == 2 and not killed:
                descendants = psutil.Process().children(recursive=True)
                found = [process for process in descendants if "RayTrainWorker" in " ".join(process.cmdline())]
                for worker in found:
                    killed.append(worker.pid)
                    worker.kill()

    killer = Killer()
    result = fit(tmp_path, progress=killer)
    assert killed
    assert len(killer.starts) == 2
    assert result.history == reference.history
    assert torch.equal(weights(tmp_path), weights(folder))


@pytest.mark.long
def test_a_killed_driver_resumes_to_the_same_weights(reference: TrainingResult, folder: Path, tmp_path: Path) -> None:
    assert reference.history
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with subprocess.Popen(
        [*command, "--stop"], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "epoch 1\n"
        # Kill all at once, as in a power cut: Ray's workers would train on for a while without their driver.
        for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    kept = progress(tmp_path)
    assert kept is not None
    # A snapshot that the kill truncated must not prevent the resume.
    for snapshot in tmp_path.glob("ray/run.*/checkpoint_manager_snapshot.json"):
        snapshot.write_text(snapshot.read_text()[:10])
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert torch.equal(weights(tmp_path), weights(folder))
    assert second.stdout.splitlines()[0] == f"epoch {kept['epoch'] + 1}"


@pytest.mark.slow
def test_divergence_is_reported_and_not_retried(tmp_path: Path) -> None:
    recipe = Recipe(**{**ray_data.RECIPE.to_dict(), "model": "lenet5", "model_params": {}, "learning_rate": 1e18,
                       "optimizer": "nesterov"})  # fmt: skip
    with pytest.raises(DivergedError, match="the loss must stay finite, but got nan in epoch 1"):
        fit(tmp_path, recipe=recipe)
    assert [path.name for path in (tmp_path / "ray").iterdir()] == ["run.0"]


def test_the_farthest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    place = storage.open_uri(str(tmp_path))
    model = models.build("linear")
    optimizer = optimizers.build("nesterov", model, learning_rate=0.1, weight_decay=0.0)
    written = {"run.0/checkpoint_a": (1, 5), "run.1/checkpoint_b": (1, 7), "run.1/checkpoint_c": (2, 0),
               "run.1/checkpoint_d": (3, 0), "other.0/checkpoint_a": (9, 0)}  # fmt: skip
    for name, (epoch, step) in written.items():
        reached = {"epoch": epoch, "step": step}
        checkpoint.save_state(tmp_path / "ray" / name, model=model, optimizer=optimizer, progress=reached)
    (tmp_path / "ray/run.1/checkpoint_c/manifest.json").unlink()
    state = tmp_path / "ray/run.1/checkpoint_d" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    assert ray_train.restore(place, name="run", into=tmp_path / "into") == "ray/run.1/checkpoint_b"
    assert checkpoint.position(tmp_path / "into") == (1, 7)
    assert ray_train.restore(place, name="none", into=tmp_path / "nothing") is None


def test_fewer_images_than_workers_are_refused_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fit(tmp_path, recipe=Recipe(**{**ray_data.RECIPE.to_dict(), "batch_size": 1}), scale=TWO)
    assert str(caught.value) == (
        "train: batch_size must be at least the number of workers, 2, but got 1; "
        "raise search.space.batch_size or lower train.num_workers"
    )


def test_several_nodes_need_a_shared_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNIST_PIPE_STORAGE", raising=False)
    with pytest.raises(UnavailableError) as caught:
        fit(tmp_path, scale=Scale(min_workers=1, max_workers=2, use_gpu=False, cpus_per_worker=1, num_nodes=2))
    assert str(caught.value) == (
        "MNIST_PIPE_STORAGE is not set, but a cluster of 2 nodes needs it; set it to a bucket or a shared directory"
    )


def test_everything_that_ray_opens_is_on_loopback() -> None:
    open_to_all = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that ends meanwhile
            open_to_all += [
                (process.name(), connection.laddr)
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
                and connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
            ]
    assert open_to_all == []


@pytest.mark.parametrize("scale", [workers(1), TWO], ids=["one worker", "two workers"])
def test_workers_listen_on_loopback_only(tmp_path: Path, scale: Scale) -> None:
    found: set[tuple[str, str]] = set()

    class Listening(Recorder):
        def on_epoch(self, metrics: dict[str, float]) -> None:
            super().on_epoch(metrics)
            found.update(listeners())

    fit(tmp_path, scale=scale, progress=Listening())
    assert any("RayTrainWorker" in name for name, _ in found)
    assert {(name, address) for name, address in found if not is_loopback(address)} == set()
