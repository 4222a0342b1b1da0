"""Test-time shifts: a trained model that looks at each image five times."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))  # corners of the image in one with a margin of a pixel


class ShiftAveraged(nn.Module):
    """The mean of `model`'s log-probabilities over the image and its shifts by a pixel in the four directions."""

    def __init__(self, model: nn.Module, *, background: float) -> None:
        super().__init__()
        self.model, self.background = model, background

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), value=self.background)
        looks = [self.model(padded[..., y : y + height, x : x + width]).float().log_softmax(1) for y, x in SHIFTS]
        return torch.stack(looks).mean(0)
