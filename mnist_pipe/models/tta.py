"""Test-time augmentation: a trained model that averages its prediction over five shifts of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))  # (y, x) of the crops of an image padded by 1 pixel


class ShiftAveraged(nn.Module):
    """A model that averages the log-probabilities of `model` over an image and its shifts by a pixel in 4 directions.

    `background` is the value of the pixels that a shift brings in.
    """

    def __init__(self, model: nn.Module, *, background: float) -> None:
        super().__init__()
        self.model, self.background = model, background

    def forward(self, images: Tensor) -> Tensor:
        """Return mean log-probabilities, float32 `(N, 10)`, of images, float32 `(N, 1, 28, 28)`."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), value=self.background)
        views = [self.model(padded[..., y : y + height, x : x + width]).float().log_softmax(1) for y, x in SHIFTS]
        return torch.stack(views).mean(0)
