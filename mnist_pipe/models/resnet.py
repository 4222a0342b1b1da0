"""A small residual network with batch norm before the convolution (He et al. 2016, arXiv:1603.05027, figure 4e)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.models.images import check

if TYPE_CHECKING:
    from pydantic import Field  # see `models`


class Block(nn.Module):
    """A residual block x + f(x), where f is twice batch norm, ReLU and 3x3 convolution.

    `stride` divides height and width. If the shape changes, the shortcut is a 1x1 convolution of the activated input,
    otherwise it is the input itself.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        projects = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if projects else None
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Return features, float32 `(N, outputs, H / stride, W / stride)`, of features, float32 `(N, inputs, H, W)`.

        A side that `stride` does not divide is rounded up.
        """
        active = F.relu(self.norm1(features), inplace=True)
        # Not the convolution's own stride: with 2 to 7 maps its gradient damages memory on AVX2, oneDNN issue 6035.
        seen = active[:, :, :: self.stride, :: self.stride]
        identity = features if self.shortcut is None else self.shortcut(seen)
        change: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active)), inplace=True))
        return identity + change


class ResNet(nn.Module):
    """A residual network with 169,706 parameters by default.

    It is a 3x3 convolution, a 2x2 max-pool, `blocks` residual blocks for each entry of `channels`, and a linear
    classifier. The first entry's maps have half the sides of an image, and each next entry halves them again. The
    classifier reads the mean over each map of the last entry.

    Args:
        channels: the number of maps in each group of blocks.
        blocks: the number of residual blocks per entry of `channels`.
        dropout: the share of the classifier's inputs that a training step leaves out.
        in_shape: channels, height and width of the images.
        num_classes: the number of classes.
    """

    def __init__(
        self,
        *,
        channels: Annotated[Sequence[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=4)] = (
            32,
            64,
        ),
        blocks: Annotated[int, Field(ge=1, le=32)] = 2,
        dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        check("resnet", "have sides of 2 pixels or more", in_shape, is_valid=min(in_shape[1:]) >= 2)
        layers: list[nn.Module] = [nn.Conv2d(in_shape[0], channels[0], 3, padding=1, bias=False), nn.MaxPool2d(2)]
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            for block in range(blocks):
                layers.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        logits: Tensor = self.output(self.dropout(self.features(images).mean((2, 3))))
        return logits
