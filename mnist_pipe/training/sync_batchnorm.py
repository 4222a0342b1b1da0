"""Batch norm over the batch of all workers, on any backend.

`torch.nn.SyncBatchNorm` refuses CPU tensors, and without synchronisation two workers normalise by halves of the batch,
so that their run differs from the run of one worker.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _Normalize(torch.autograd.Function):
    """Normalise float32 (n, c, h, w) by the statistics of every worker's rows.

    Returns the normalised values, mean, variance and the number of values a channel.

    Forward and backward are the fused kernels of inference, which take the statistics as constants, and in backward
    what is missing then: the gradient through mean and variance, which is affine in the input (Ioffe and Szegedy 2015,
    section 3), with sums over all workers. Written out in single operations the same takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        count = values.numel() // values.shape[1]
        squares = torch.linalg.vector_norm(values, dim=(0, 2, 3)).square()
        total = torch.cat([values.sum((0, 2, 3)), squares, values.new_tensor([count])])
        dist.all_reduce(total)
        sums, squares, count_all = total[: len(weight)], total[len(weight) : -1], total[-1]
        mean = sums / count_all
        variance = (squares / count_all - mean.square()).clamp(min=0)
        normalized = F.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(values, weight, mean, variance, count_all)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count_all)
        return normalized, mean, variance, count_all

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, count_all = ctx.saved_tensors
        wanted = [True, True, True]
        of_values, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, mean, variance, None, None, False, ctx.eps, wanted
        )
        total = torch.cat([of_weight, of_bias])
        dist.all_reduce(total)
        all_weight, all_bias = total.chunk(2)
        inverse = torch.rsqrt(variance + ctx.eps)
        slope = -weight * inverse.square() * all_weight / count_all
        offset = -weight * inverse * all_bias / count_all - slope * mean
        of_values.addcmul_(values, slope[:, None, None]).add_(offset[:, None, None])
        return of_values, of_weight, of_bias, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of every worker's rows together."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """A synchronised batch norm with the parameters and the buffers of `norm`, not copies of them."""
        found = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        found.weight, found.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            found.register_buffer(name, buffer)
        return found

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        normalized, mean, variance, count_all = _Normalize.apply(  # type: ignore[no-untyped-call]
            images.float(), self.weight, self.bias, self.eps
        )
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count_all / (count_all - 1), self.momentum)
        result: Tensor = normalized.to(images.dtype)
        return result


def synchronize(model: nn.Module, *, device: torch.device) -> nn.Module:
    """`model` with every batch norm synchronised; parameters and buffers stay the same objects."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                parent.add_module(name, SyncBatchNorm2d.of(child))
    return model
