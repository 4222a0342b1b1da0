"""LeNet-5 many times over: members that train on the same batches, computed together.

`lenet5` by itself spends an epoch on memory traffic and small operations. Here a layer of all members is one matrix
product, in bfloat16 if the hardware computes in it, and rows are the last axis, so that copies move long contiguous
runs. As in `lenet5`, a linear convolution and the average pooling behind it are one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_pipe.models.lenet5 import averaged


def logits(
    parameters: Sequence[Tensor], images: Tensor, *, convolutions: Literal["relu", "linear"], dtype: torch.dtype
) -> Tensor:
    """Return the logits, float32 `(members, 10, N)`, of images, float32 `(N, 1, 28, 28)`, with products in `dtype`.

    `parameters` are those of `lenet5.LeNet5` in its order, float32 `(members, ...)` each, and `convolutions` names the
    activation behind each convolution, as there.
    """
    first, first_bias, second, second_bias, *dense = parameters
    values = _pooled(first, first_bias, _windows_of(images.to(dtype)), convolutions=convolutions)
    windows = _Windows.apply(values.view(len(first), 6, 2, 2, 7, 7, -1))  # type: ignore[no-untyped-call]
    values = _pooled(second, second_bias, windows, convolutions=convolutions).view(len(first), 400, -1)
    for weight, bias in zip(dense[::2], dense[1::2], strict=True):
        values = torch.baddbmm(bias.to(dtype).unsqueeze(2), weight.to(dtype), values)
        if weight is not dense[-2]:
            values = values.relu()
    return values.float()


def _pooled(kernels: Tensor, biases: Tensor, windows: Tensor, *, convolutions: str) -> Tensor:
    """Return a 5x5 convolution and the average pooling behind it, `(members, outputs, M)`.

    Args:
        kernels: float32 `(members, outputs, inputs, 5, 5)`.
        biases: float32 `(members, outputs)`.
        windows: the 6x6 window that each place of the pool sees, and a 1, `(members, inputs * 36 + 1, M)`, or without
            `members` if all see the same.
        convolutions: the activation between the two, `relu` or `linear`.
    """
    if convolutions == "linear":
        weights = averaged(kernels.flatten(0, 1)).view(*kernels.shape[:2], -1)
        return _product(torch.cat([weights, biases.unsqueeze(2)], dim=2).to(windows.dtype), windows)
    # A 6x6 window holds the 5x5 patches of the pool's four places, whose kernels are the same but shifted.
    places = [F.pad(kernels, (x, 1 - x, y, 1 - y)).flatten(2) for y in (0, 1) for x in (0, 1)]
    weights = torch.cat([torch.cat([place, biases.unsqueeze(2)], dim=2) for place in places], dim=1)
    found = _product(weights.to(windows.dtype), windows)
    return found.view(len(kernels), 4, kernels.shape[1], -1).relu().mean(1)


def _product(weights: Tensor, windows: Tensor) -> Tensor:
    """Return the matrix product of each member, as one product if all members see the same windows."""
    if windows.ndim == 3:
        return weights @ windows
    return (weights.flatten(0, 1) @ windows).view(*weights.shape[:2], -1)


def _windows_of(images: Tensor) -> Tensor:
    """Return the 6x6 window that each place of the first pool sees, and a 1: `(37, 14 * 14 * N)` of `(N, 1, 28, 28)`.

    The places are in the order (2, 2, 7, 7): even and odd rows and columns are apart, as `_Windows` needs them. The
    dtype is that of the images.
    """
    padded = F.pad(images.squeeze(1).permute(1, 2, 0), (0, 0, 2, 2, 2, 2))
    windows = padded.unfold(0, 6, 2).unfold(1, 6, 2).view(7, 2, 7, 2, -1, 6, 6)
    flat = windows.permute(5, 6, 1, 3, 0, 2, 4).reshape(36, -1)
    return F.pad(flat, (0, 0, 0, 1), value=1.0)


class _Windows(torch.autograd.Function):
    """The 6x6 windows at a stride of 2, and a 1, of the values behind the first layer, with their gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the windows, `(members, inputs * 36 + 1, 5 * 5 * N)`, of values, `(members, inputs, 2, 2, 7, 7, N)`.

        LeNet-5 has 6 inputs here. The dtype is that of the values.
        """
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
        """Return the gradient of the values, `(members, inputs, 2, 2, 7, 7, N)`, from that of the windows."""
        members, inputs, *_, rows = ctx.shape
        result = gradient.new_zeros(ctx.shape)
        windows = gradient[:, :-1].view(members, inputs, 3, 2, 3, 2, 5, 5, rows)
        for y in range(3):
            for x in range(3):
                result[..., y : y + 5, x : x + 5, :] += windows[:, :, y, :, x]
        return result
