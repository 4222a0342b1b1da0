"""LeNet-5 many times over: networks that are given the same batches, computed together.

`lenet5` by itself spends an epoch on memory traffic and small operations. Here a layer of all members is one matrix
product, in bfloat16 where the hardware computes in it, and rows are the last axis, so that what is copied is in long
runs. A 5x5 convolution with the 2x2 average pool behind it is a product with the 6x6 windows that the four places of
the pool see together: 1.44 times the multiply-adds, but 9 copied values for each output in place of 25, and the pool is
a sum of four blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def logits(parameters: Sequence[Tensor], images: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(members, 10, rows) float32 logits of (rows, 1, 28, 28) images, products in `dtype`.

    `parameters` are those of `lenet5.LeNet5` in its order, (members, ...) each.
    """
    first, first_bias, second, second_bias, *dense = (parameter.to(dtype) for parameter in parameters)
    values = _convolve(_windows_of(images.to(dtype)), first, first_bias)
    values = _Pool.apply(values.unflatten(3, (2, 2, 7, 7, -1)))  # type: ignore[no-untyped-call]
    values = _convolve(_Windows.apply(values), second / 4, second_bias)  # type: ignore[no-untyped-call]
    values = _Pool.apply(values).reshape(len(first), 400, -1)  # type: ignore[no-untyped-call]
    values = torch.baddbmm(dense[1].unsqueeze(2), dense[0] / 4, values)
    for weight, bias in zip(dense[2::2], dense[3::2], strict=True):
        values = torch.baddbmm(bias.unsqueeze(2), weight, values.relu())
    return values.float()


def _windows_of(images: Tensor) -> Tensor:
    """(1, 37, 14 * 14 * rows) of (rows, 1, 28, 28): each place of the first pool sees a 6x6 window, and a 1.

    The places are in the order (2, 2, 7, 7): those of even and of odd rows and columns apart, as `_Windows` wants them.
    """
    padded = F.pad(images.squeeze(1).permute(1, 2, 0), (0, 0, 2, 2, 2, 2))
    windows = padded.unfold(0, 6, 2).unfold(1, 6, 2).view(7, 2, 7, 2, -1, 6, 6)
    flat = windows.permute(5, 6, 1, 3, 0, 2, 4).reshape(36, -1)
    return F.pad(flat, (0, 0, 0, 1), value=1.0).unsqueeze(0)


def _convolve(windows: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """(members, 4, outputs, places * rows): the 5x5 `kernels` at the four places of a pool within each window.

    `windows` are those of each member, or of all, (1, ...). Their last entry is 1, which the biases multiply.
    """
    members, outputs = biases.shape
    placed = torch.einsum("moik,pkw->mpoiw", kernels.flatten(3), _places().to(kernels)).flatten(3)
    weights = torch.cat([placed, biases.view(members, 1, outputs, 1).expand(-1, 4, -1, -1)], dim=3)
    if len(windows) == 1:
        return (weights.flatten(0, 2) @ windows[0]).view(members, 4, outputs, -1)
    return (weights.flatten(1, 2) @ windows).view(members, 4, outputs, -1)


@cache
def _places() -> Tensor:
    """(4, 25, 36): 1 where an element of a 5x5 kernel is in a 6x6 window, at each of the four places of a pool."""
    kernels = torch.eye(25).view(25, 5, 5)
    return torch.stack([F.pad(kernels, (x, 1 - x, y, 1 - y)).flatten(1) for y in (0, 1) for x in (0, 1)])


class _Windows(torch.autograd.Function):
    """(members, 6 * 36 + 1, 5 * 5 * rows) of (members, 6, 2, 2, 7, 7, rows): 6x6 windows, two apart, and a 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.shape = values.shape
        members, inputs, *_, rows = values.shape
        result = values.new_empty(members, inputs * 36 + 1, 25 * rows)
        result[:, -1] = 1
        windows = result[:, :-1].view(members, inputs, 3, 2, 3, 2, 5, 5, rows)
        for y in range(3):
            for x in range(3):
                windows[:, :, y, :, x] = values[..., y : y + 5, x : x + 5, :]
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        members, inputs, *_, rows = ctx.shape
        result = gradient.new_zeros(ctx.shape)
        windows = gradient[:, :-1].view(members, inputs, 3, 2, 3, 2, 5, 5, rows)
        for y in range(3):
            for x in range(3):
                result[..., y : y + 5, x : x + 5, :] += windows[:, :, y, :, x]
        return result


class _Pool(torch.autograd.Function):
    """ReLU, then the sum over axis 1, the four places; the mean's quarter is in the weights behind it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.relu_()  # in place: nothing else reads what was convolved
        ctx.save_for_backward(values)
        first, second, third, fourth = values.unbind(1)
        return (first + second).add_(third).add_(fourth)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.threshold_backward(gradient.unsqueeze(1).expand_as(values), values, 0)
        return result
