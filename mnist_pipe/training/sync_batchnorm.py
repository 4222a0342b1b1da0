"""Synchronised batch norm: statistics over the batch of all workers, on any backend.

`torch.nn.SyncBatchNorm` does not accept CPU tensors, and on a GPU each layer waits for the device three times. Without
synchronisation, two workers would each normalise by the statistics of half of the batch, so their run would differ
from the run of one worker.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _Normalize(torch.autograd.Function):
    """Normalisation by the statistics of every worker's rows, as an autograd function.

    Forward and backward use the fused kernels of inference, which treat the statistics as constants. Backward adds what
    these leave out: the gradient through mean and variance, which is affine in the input (Ioffe and Szegedy 2015,
    section 3), with sums over all workers. Written as single operations, the same takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        """Return the normalised values, and the mean, variance and number of values per channel over all workers.

        Args:
            ctx: the context of autograd.
            values: float32 `(n, c, h, w)`.
            weight: float32 `(c,)`.
            bias: float32 `(c,)`.
            eps: the constant that is added to the variance.

        Returns:
            All float32: normalised values `(n, c, h, w)`, mean `(c,)`, biased variance `(c,)`, and number of values
            `()`.
        """
        count = values.numel() // values.shape[1]
        squares = torch.linalg.vector_norm(values, dim=(0, 2, 3)).square()
        total = torch.cat([values.sum((0, 2, 3)), squares, values.new_full((1,), count)])
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
        """Return the gradients of values `(n, c, h, w)`, weight `(c,)` and bias `(c,)`, float32, and None for `eps`.

        Only the first of `gradients`, that of the normalised values, float32 `(n, c, h, w)`, is used. The gradients of
        weight and bias are those of this worker's rows.
        """
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
    """`nn.BatchNorm2d` whose training statistics are those of the rows of all workers."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """Return a synchronised batch norm that shares the parameters and buffers of `norm`."""
        found = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        found.weight, found.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            found.register_buffer(name, buffer)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised `(n, c, h, w)` of images `(n, c, h, w)`, in their floating-point dtype.

        In training the computation is in float32, and the running statistics are updated.
        """
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


def synchronize(model: nn.Module) -> nn.Module:
    """Return `model` with every batch norm synchronised; its parameters and buffers stay the same objects."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                parent.add_module(name, SyncBatchNorm2d.of(child))
    return model
