"""Fully connected networks; the default is the 784-15-10 sigmoid network of the gradient-descent lesson."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor, nn

from mnist_pipe.models.images import check

if TYPE_CHECKING:
    from pydantic import Field  # see `models`

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class MLP(nn.Module):
    """A fully connected network from pixels to logits.

    Args:
        hidden: the number of units in each hidden layer.
        activation: the activation after each hidden layer.
        crop: the number of pixels to cut from each side of the image.
        in_shape: channels, height and width of the images.
        num_classes: the number of classes.
    """

    def __init__(
        self,
        *,
        hidden: Annotated[Sequence[Annotated[int, Field(ge=1, le=65_536)]], Field(max_length=16)] = (15,),
        activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
        crop: Annotated[int, Field(ge=0, le=13)] = 0,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.crop = crop
        channels, height, width = in_shape
        rule = f"have sides of more than {2 * crop} pixels, which crop cuts"
        check("mlp", rule, in_shape, is_valid=min(height, width) > 2 * crop)
        widths = [channels * (height - 2 * crop) * (width - 2 * crop), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        rows = slice(self.crop, images.shape[-2] - self.crop)
        columns = slice(self.crop, images.shape[-1] - self.crop)
        logits: Tensor = self.layers(images[..., rows, columns])
        return logits
