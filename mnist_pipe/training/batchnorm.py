"""Batch norm over the batch of all workers, on any backend.

`torch.nn.SyncBatchNorm` refuses CPU tensors, and without synchronisation two workers normalise by halves of the batch,
so that their run differs from the run of one worker.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AllReduceSum(torch.autograd.Function):
    """The sum over all workers; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of every worker's rows together."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = values.numel() // values.shape[1]
        local = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values.new_tensor([count])])
        total = _AllReduceSum.apply(local)  # type: ignore[no-untyped-call]
        sums, squares, count_all = total[: self.num_features], total[self.num_features : -1], total[-1]
        mean = sums / count_all
        variance = squares / count_all - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            unbiased = variance * count_all / (count_all - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        weight = self.weight * torch.rsqrt(variance + self.eps)
        bias = self.bias - mean * weight
        normalized: Tensor = (values * weight[:, None, None] + bias[:, None, None]).to(images.dtype)
        return normalized


def synchronize(model: nn.Module, *, device: torch.device) -> nn.Module:
    """`model` with every batch norm synchronised; parameters and buffers stay the same objects."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model
