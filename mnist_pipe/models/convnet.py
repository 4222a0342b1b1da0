"""The fast convolutional network: 3x3 convolutions, max-pool before batch norm, so that the norm sees a quarter of the
values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn


class ConvNet(nn.Module):
    """One block (convolution, 2x2 max-pool, batch norm, ReLU) per entry of `channels`, then a linear classifier."""

    def __init__(
        self,
        *,
        channels: Annotated[Sequence[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=4)] = (
            16,
            32,
            64,
        ),
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        side, inputs = 28, 1
        for outputs in channels:
            # The norm shifts, so a bias before it would be dead weight.
            blocks += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            side, inputs = side // 2, outputs
        self.features = nn.Sequential(*blocks)
        self.output = nn.Linear(inputs * side * side, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(images).flatten(1))
        return logits
