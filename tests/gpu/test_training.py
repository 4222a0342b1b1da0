"""Test on a GPU that training computes what the CPU computes, repeats its bits, and waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe.models import numerics
from mnist_pipe.training import checkpoint, loop, sync_batchnorm
from mnist_pipe.training.recorded import NUM_FIRST, Recorded, recorded
from tests.support.gpu import CASES, FAST, SMALL, difference, on, run_on, weights
from tests.support.training import CPU

pytestmark = pytest.mark.gpu

TOLERANCES = {"float32": 1e-3, "tf32": 2e-2, "bfloat16": 1e-1}
"""Relative difference of all weights after five steps, on a GPU from those in float32 on the CPU."""


@pytest.mark.parametrize("name", CASES)
def test_five_steps_agree_with_the_cpu(name: str, gpu: torch.device) -> None:
    recipe = replace(CASES[name], num_epochs=1)
    ours, theirs = (run_on(device, recipe, num_rows=5 * recipe.batch_size) for device in (gpu, CPU))
    assert difference(weights(ours[0]), weights(theirs[0])) < TOLERANCES["float32"]
    torch.testing.assert_close(ours[1][0], theirs[1][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_each_precision_agrees_with_float32_on_the_cpu_within_its_tolerance(precision: str, gpu: torch.device) -> None:
    recipe = replace(FAST, num_epochs=1)
    theirs, _ = run_on(CPU, recipe)
    ours, _ = run_on(gpu, replace(recipe, precision=precision))
    assert difference(weights(ours), weights(theirs)) < TOLERANCES[precision]


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_are_the_steps(name: str, cuda: torch.device) -> None:
    recorded_run, plain = (run_on(cuda, CASES[name], records=records) for records in (True, False))
    # The rate is a float32 tensor in one and a float in the other.
    assert difference(weights(recorded_run[0]), weights(plain[0])) < 1e-4
    for ours, theirs in zip(recorded_run[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_two_runs_have_the_same_bits(name: str, gpu: torch.device) -> None:
    first, second = (weights(run_on(gpu, CASES[name])[0]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["fast", "moved", "average", "adam", "nadam", "rmsprop"])
def test_a_run_resumed_from_a_checkpoint_has_the_bits_of_one_that_never_stopped(
    name: str, gpu: torch.device, tmp_path: Path
) -> None:
    recipe, data = CASES[name], on(gpu, 640)
    whole, _ = run_on(gpu, recipe)
    model, optimizer = loop.new_run(recipe, device=gpu)
    next(loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=data))
    checkpoint.save_state(tmp_path, model=model, optimizer=optimizer, progress={})
    other, fresh = loop.new_run(recipe, device=gpu)
    checkpoint.load_state(tmp_path, model=other, optimizer=fresh)
    assert torch.equal(weights(other), weights(model))
    learner = recorded(loop.Network(recipe, model=other, optimizer=fresh))
    list(loop.epochs(learner, recipe, training=data, start=loop.Position(epoch=1)))
    assert torch.equal(weights(other), weights(whole))


def test_a_checkpoint_of_a_gpu_loads_on_a_cpu_and_back(gpu: torch.device, tmp_path: Path) -> None:
    recipe = CASES["average"]
    model, optimizer = loop.new_run(recipe, device=gpu)
    list(loop.train(recipe, model=model, optimizer=optimizer, training=on(gpu, 640), validation=on(gpu, 64)))
    checkpoint.save_state(tmp_path / "gpu", model=model, optimizer=optimizer, progress={})
    there, its_optimizer = loop.new_run(recipe, device=CPU)
    checkpoint.load_state(tmp_path / "gpu", model=there, optimizer=its_optimizer)
    checkpoint.save_state(tmp_path / "cpu", model=there, optimizer=its_optimizer, progress={})
    assert (tmp_path / "gpu" / checkpoint.STATE).read_bytes() == (tmp_path / "cpu" / checkpoint.STATE).read_bytes()


@pytest.fixture
def waiting_is_an_error(cuda: torch.device) -> Iterator[None]:  # noqa: ARG001
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("waiting_is_an_error")
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name: str, cuda: torch.device) -> None:
    recipe, data = CASES[name], on(cuda, CASES[name].batch_size)
    model, optimizer = loop.new_run(recipe, device=cuda)
    learner = recorded(loop.Network(recipe, model=model, optimizer=optimizer))
    learner.start_epoch()
    moves = learner.draw(data.num_rows, generator=torch.Generator())
    for step in range(NUM_FIRST + 4):
        batch = loop.Batch(size=data.num_rows, multiplier=0.5, background=data.background)
        # The step that is recorded waits once, before it.
        torch.cuda.set_sync_debug_mode("default" if step in (0, NUM_FIRST) else "error")
        learner.step(data.images, data.labels, moves=moves, batch=batch)


def test_a_recorded_model_with_dropout_draws_anew_in_each_step(cuda: torch.device) -> None:
    recipe = replace(SMALL, model="cnn", model_params={"dropout": 0.5}, learning_rate=1e-9)
    data = on(cuda, 64)
    model, optimizer = loop.new_run(recipe, device=cuda)
    learner = Recorded(loop.Network(recipe, model=model, optimizer=optimizer))
    learner.start_epoch()
    batch = loop.Batch(size=64, multiplier=1.0, background=data.background)
    losses = [learner.step(data.images, data.labels, moves=None, batch=batch)[0].item() for _ in range(NUM_FIRST + 5)]
    assert len(set(losses)) == len(losses)


def test_float32_is_ieee_and_tf32_is_not(cuda: torch.device) -> None:
    torch.manual_seed(0)
    images, layer = torch.randn(64, 32, 14, 14), nn.Conv2d(32, 64, 3)
    exact = layer.double()(images.double())
    errors = {}
    for precision in ("float32", "tf32"):
        with numerics.products(precision, cuda), torch.no_grad():
            found = layer.float().to(cuda)(images.to(cuda)).cpu().double()
        errors[precision] = float((found - exact).abs().max())
        layer.cpu()
    assert errors["float32"] < 1e-5
    assert torch.cuda.get_device_capability(cuda)[0] < 8 or errors["tf32"] > 1e-4


@pytest.fixture
def group(gpu: torch.device, tmp_path: Path) -> Iterator[None]:
    """Process group of one, over NCCL."""
    backend = "nccl" if gpu.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_synchronised_batch_norm_of_one_worker_is_batch_norm(gpu: torch.device) -> None:
    torch.manual_seed(0)
    norm, images = nn.BatchNorm2d(8).to(gpu), 3 * torch.randn(64, 8, 9, 9, device=gpu) + 1
    images.requires_grad_()
    results = []
    for layer in (norm, sync_batchnorm.SyncBatchNorm2d.of(nn.BatchNorm2d(8).to(gpu))):
        found = layer(images)
        found.square().mul(torch.linspace(-1, 1, 9, device=gpu)).sum().backward()
        results.append([found.detach(), images.grad, layer.weight.grad, layer.running_mean, layer.running_var])
        images.grad = None
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("group")
def test_a_worker_trains_under_ddp_to_the_weights_of_the_loop(gpu: torch.device) -> None:
    recipe = CASES["moved"]
    alone, _ = run_on(gpu, recipe, records=False)
    model, optimizer = loop.new_run(recipe, device=gpu)
    parallel = DistributedDataParallel(sync_batchnorm.synchronize(model))
    learner = loop.Network(recipe, model=parallel, optimizer=optimizer)
    list(loop.epochs(learner, recipe, training=on(gpu, 640)))
    assert difference(weights(model), weights(alone)) < 1e-3
    total = torch.ones(3, device=gpu, dtype=torch.float64)
    dist.all_reduce(total)
    assert total.tolist() == [1.0, 1.0, 1.0]
