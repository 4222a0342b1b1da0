"""The fast convolutional network: 3x3 convolutions, max-pool before batch norm, so that the norm sees a quarter of the
values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn


class ConvNet(nn.Module):
    """One block per entry of `channels`, then a linear classifier.

    A block is `convolutions` times convolution, batch norm and ReLU, with a 2x2 max-pool after its last convolution.
    `crop` cuts so many pixels from each side, where hardly a digit has any; the first convolution then reads the
    pixels around what is left and no zeros. Without `last_pool` the last block keeps its size.
    """

    def __init__(
        self,
        *,
        channels: Annotated[Sequence[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=4)] = (
            16,
            32,
            64,
        ),
        convolutions: Annotated[int, Field(ge=1, le=4)] = 1,
        crop: Annotated[int, Field(ge=0, le=4)] = 0,
        last_pool: bool = True,
    ) -> None:
        super().__init__()
        self.crop = crop
        blocks: list[nn.Module] = []
        side, inputs = 28 - 2 * crop, 1
        for number, outputs in enumerate(channels, start=1):
            for convolution in range(1, convolutions + 1):
                padding = 0 if crop and not blocks else 1
                # The norm shifts, so a bias before it would be dead weight.
                blocks.append(nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False))
                side, inputs = side - 2 + 2 * padding, outputs
                if convolution == convolutions and (last_pool or number < len(channels)):
                    blocks.append(nn.MaxPool2d(2))
                    side //= 2
                blocks += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*blocks)
        self.output = nn.Linear(inputs * side * side, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = slice(self.crop, images.shape[-2] - self.crop)
        columns = slice(self.crop, images.shape[-1] - self.crop)
        logits: Tensor = self.output(self.features(images[..., rows, columns]).flatten(1))
        return logits
