"""Test on a machine with a GPU that torch, Ray and the doctor count the same, and that each use of one gets one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from mnist_pipe import hardware
from mnist_pipe.cluster.ray_session import Cluster, connected, scale
from mnist_pipe.models import forward
from mnist_pipe.training import loop
from mnist_pipe.training.batches import to_device
from tests.support import ray_data
from tests.support.gpu import FAST, on, run_on
from tests.support.ray_runs import Recorder, fit
from tests.support.training import CPU

pytestmark = pytest.mark.gpu


def test_doctor_names_the_gpu_and_torch(cuda: torch.device) -> None:
    assert hardware.num_gpus() == torch.cuda.device_count() > 0
    assert torch.cuda.get_device_name(cuda) in hardware.check_gpus()
    driver = hardware.driver_cuda()
    assert driver is not None
    assert driver[0] >= int(str(torch.version.cuda).partition(".")[0])


def test_hidden_gpus_are_not_counted(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert hardware.check_gpus().startswith("hidden by CUDA_VISIBLE_DEVICES=-1")
    assert torch.zeros(1, device=cuda).is_cuda  # this process has its devices already


def test_logits_agree_with_the_cpu(gpu: torch.device) -> None:
    model, _ = run_on(CPU, FAST)
    images = on(CPU, 5000, seed=1).images[:, 0].numpy()
    expected = forward.logits(model, images)
    found = forward.logits(model.to(gpu), images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.999


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """Our own Ray, which has the GPUs that torch can use."""
    with connected("a-test") as available:
        yield available


@pytest.mark.ray
@pytest.mark.usefixtures("cuda")
def test_ray_has_the_gpus_that_torch_can_use(own: Cluster) -> None:
    assert ray.cluster_resources().get("GPU", 0) == hardware.num_gpus()
    assert own.num_gpus == min(hardware.num_gpus(), own.num_cpus)


@pytest.mark.ray
def test_a_worker_of_ray_trains_on_a_gpu_as_the_loop_does(own: Cluster, cuda: torch.device, tmp_path: Path) -> None:
    recorder = Recorder()
    one = scale(own, num_workers="auto", use_gpu=True, batch_size=ray_data.RECIPE.batch_size)
    assert (one.max_workers, one.use_gpu) == (1, True)
    fit(tmp_path, scale=one, progress=recorder)
    training, validation = (
        to_device(split, device=cuda) for split in (ray_data.split(3200), ray_data.split(501, seed=1))
    )
    model, optimizer = loop.new_run(ray_data.RECIPE, device=cuda)
    history = loop.train(ray_data.RECIPE, model=model, optimizer=optimizer, training=training, validation=validation)
    for ours, theirs in zip(recorder.epochs, history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


@pytest.mark.ray
def test_two_gpus_train_to_the_metrics_of_one(own: Cluster, cuda: torch.device, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"there is only one GPU, {torch.cuda.get_device_name(cuda)}")
    recorders = [Recorder(), Recorder()]
    for number, recorder in enumerate(recorders, start=1):
        chosen = scale(own, num_workers=number, use_gpu=True, batch_size=FAST.batch_size)
        fit(tmp_path / str(number), recipe=FAST, scale=chosen, progress=recorder)
    for ours, theirs in zip(recorders[1].epochs, recorders[0].epochs, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)
