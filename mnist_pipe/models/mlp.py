"""Fully connected networks; the default is the 784-15-10 sigmoid network of the gradient-descent lesson."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class MLP(nn.Module):
    """A fully connected network from 784 pixels to 10 logits.

    Args:
        hidden: the number of units in each hidden layer.
        activation: the activation after each hidden layer.
        crop: the number of pixels to cut from each side of the image.
    """

    def __init__(
        self,
        *,
        hidden: Annotated[Sequence[Annotated[int, Field(ge=1, le=65_536)]], Field(max_length=16)] = (15,),
        activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
        crop: Annotated[int, Field(ge=0, le=13)] = 0,
    ) -> None:
        super().__init__()
        self.crop = crop
        widths = [(28 - 2 * crop) ** 2, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, 10)`, of images, float32 `(N, 1, 28, 28)`."""
        rows = slice(self.crop, images.shape[-2] - self.crop)
        columns = slice(self.crop, images.shape[-1] - self.crop)
        logits: Tensor = self.layers(images[..., rows, columns])
        return logits
