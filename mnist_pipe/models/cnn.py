"""The convolutional network of the augmented-CNN report: 32 and 64 maps, one max-pool and 128 dense units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from torch import Tensor, nn

from mnist_pipe.models.images import check

if TYPE_CHECKING:
    from pydantic import Field  # see `models`


class CNN(nn.Module):
    """A network of two 3x3 convolutions at full resolution and 128 dense units, with 1,625,866 parameters.

    The dense units read 14x14x64 features. Without `padding` and with a dropout of 0.5 it is the network of
    pytorch/examples, with 12x12x64 features and 1,199,882 parameters.

    The second ReLU comes after the max-pool: the maximum is the same in either order, and the ReLU then reads a quarter
    of the values.

    Args:
        dropout: the share of the dense units that a training step leaves out; of the pooled features it leaves out
            half that share.
        batch_norm: normalise the output of each convolution.
        padding: pad the images and maps with zeros, so that a convolution keeps their size.
        in_shape: channels, height and width of the images.
        num_classes: the number of classes.
    """

    def __init__(
        self,
        *,
        dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0,
        batch_norm: bool = False,
        padding: bool = True,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        lost = 0 if padding else 4
        check("cnn", f"have sides of {lost + 2} pixels or more", in_shape, is_valid=min(sides) >= lost + 2)
        height, width = ((side - lost) // 2 for side in sides)

        def convolution(inputs: int, outputs: int) -> nn.Conv2d:
            # Batch norm subtracts the mean, so a bias before it would have no effect.
            return nn.Conv2d(inputs, outputs, 3, padding=int(padding), bias=not batch_norm)

        layers: list[nn.Module | None] = [
            convolution(channels, 32),
            nn.BatchNorm2d(32) if batch_norm else None,
            nn.ReLU(inplace=True),
            convolution(32, 64),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(64) if batch_norm else None,
            nn.ReLU(inplace=True),
            nn.Dropout(dropout / 2) if dropout else None,
            nn.Flatten(),
            nn.Linear(64 * height * width, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout) if dropout else None,
            nn.Linear(128, num_classes),
        ]
        self.layers = nn.Sequential(*(layer for layer in layers if layer is not None))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        logits: Tensor = self.layers(images)
        return logits
