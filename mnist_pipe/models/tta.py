"""Test-time augmentation: a trained model that averages its prediction over five shifts of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.data.facts import Background

SHIFTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))  # (y, x) of the crops of an image padded by 1 pixel


class ShiftAveraged(nn.Module):
    """A model that averages the log-probabilities of `model` over an image and its shifts by a pixel in 4 directions.

    `background` is the value of the pixels that a shift brings in.
    """

    def __init__(self, model: nn.Module, *, background: Background) -> None:
        super().__init__()
        self.model, self.background = model, background

    def forward(self, images: Tensor) -> Tensor:
        """Return mean log-probabilities, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        height, width = images.shape[-2:]
        if isinstance(self.background, int | float):
            padded = F.pad(images, (1, 1, 1, 1), value=self.background)
        else:  # `pad` takes one value for all channels
            ground = torch.tensor(self.background, device=images.device).view(-1, 1, 1)
            padded = F.pad(images - ground, (1, 1, 1, 1)) + ground
        views = [self.model(padded[..., y : y + height, x : x + width]).float().log_softmax(1) for y, x in SHIFTS]
        return torch.stack(views).mean(0)
