"""The forward pass in evaluation mode, without gradients, over as many rows as there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_pipe.models import numerics

ROWS_AT_ONCE = {"cpu": 250, "cuda": 4096}
"""Rows of one forward pass, by type of device; more rows would not fit the CPU's caches."""


def logits(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return logits, float32 `(n, classes)`, of standardised images, float32, as in `NormalizedSplit`.

    They are computed in float32 on the model's device.
    """
    numerics.choose_kernels()
    device = next(model.parameters()).device
    parts = []
    for rows in chunks(max(len(images), 1), ROWS_AT_ONCE[device.type]):
        part = torch.tensor(images[rows], device=device)
        parts.append(forward(model, part if part.ndim == 4 else part.unsqueeze(1)).cpu())
    return torch.cat(parts).numpy()


@torch.inference_mode()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits, float32 `(rows, classes)`, of images, float32 `(rows, ...)`, in evaluation mode.

    They are computed in float32, on a GPU too.
    """
    # Not the DDP wrapper: its forward broadcasts buffers, and ranks may have different numbers of batches.
    inner: nn.Module = getattr(model, "module", model)
    inner.eval()
    with numerics.products("float32", images.device):
        output: Tensor = inner(images)
    return output


def chunks(num_rows: int, size: int) -> Iterator[slice]:
    """Return the slices that cut `num_rows` rows into chunks of `size`; the last may be shorter."""
    return (slice(start, start + size) for start in range(0, num_rows, size))
