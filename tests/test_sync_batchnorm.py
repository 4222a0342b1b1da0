"""Test synchronised batch norm: two processes over gloo against one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mnist_pipe.training.sync_batchnorm import SyncBatchNorm2d, synchronize
from tests.support.training import start_ranks

NUM_RANKS = 2


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def _batch() -> torch.Tensor:
    return 3 * torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 1


def _loss(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs * torch.linspace(-1, 2, outputs[0].numel()).view(outputs[0].shape)).square().sum()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_RANKS)
    model = synchronize(_model())
    outputs = model(_batch()[rank::NUM_RANKS])
    _loss(outputs).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    dist.all_reduce(gradients)
    torch.save({"outputs": outputs.detach(), "gradients": gradients, **model.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    start_ranks(_rank, str(folder), num_ranks=NUM_RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    model = _model()
    outputs = model(_batch())
    _loss(outputs).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"outputs": outputs.detach(), "gradients": gradients, **model.state_dict()}


def test_outputs_agree_with_the_whole_batch(
    ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result["outputs"], alone["outputs"][rank::NUM_RANKS], rtol=1e-4, atol=1e-5)


def test_gradients_sum_to_those_of_the_whole_batch(
    ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    torch.testing.assert_close(ranks[0]["gradients"], alone["gradients"], rtol=1e-3, atol=1e-2)


def test_running_statistics_agree_with_the_whole_batch(
    ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    buffers = [key for key in alone if "running" in key or "tracked" in key]
    assert len(buffers) == 6
    for result in ranks:
        for key in buffers:
            torch.testing.assert_close(result[key], alone[key], rtol=1e-4, atol=1e-5)


def test_evaluation_agrees_with_ordinary_batch_norm() -> None:
    norm, images = nn.BatchNorm2d(3), torch.randn(5, 3, 4, 4)
    norm(images)
    expected = norm.eval()(images)
    norm.__class__ = SyncBatchNorm2d
    assert torch.equal(norm(images), expected)
