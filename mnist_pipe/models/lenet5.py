"""LeNet-5 as it is taught today: average pooling, ReLU, dense output.

Sizes follow LeCun et al. 1998, section II.B: 32x32 input, C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, C5 120,
F6 84. It departs from the paper in four places: S2 and S4 have no trainable gain, C3 sees all six maps, ReLU replaces
the scaled tanh, and a dense layer replaces the RBF output.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.models.images import check


class AveragedConv2d(nn.Conv2d):
    """A convolution that is followed directly by 2x2 average pooling, computed as one convolution of stride 2.

    A pooled output depends on its inputs through the mean of the kernel at the four positions of the pool, a kernel
    with one more row and column; with 5x5 kernels that is 36 multiply-adds instead of 100.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled maps, float32 `(N, out_channels, H // 2, W // 2)`, where the convolution's maps are H by W.

        `images` is float32 `(N, in_channels, height, width)`.
        """
        return F.conv2d(images, averaged(self.weight), self.bias, stride=2, padding=self.padding)


def averaged(kernels: Tensor) -> Tensor:
    """Return the mean of each kernel at the four positions of a 2x2 pool.

    `kernels` is float32 `(outputs, inputs, height, width)`, the result `(outputs, inputs, height + 1, width + 1)`.
    """
    return F.avg_pool2d(F.pad(kernels, (1, 1, 1, 1)), 2, stride=1)


class LeNet5(nn.Module):
    """LeNet-5 with average pooling and a dense output, with 61,706 parameters.

    Args:
        initial: how the initial parameters are drawn: `torch` is the default of torch; `glorot` is that of Keras, the
            rule of Glorot & Bengio 2010, eq. 16, with biases of zero, which spreads the weights of the dense layers
            about twice as wide.
        convolutions: the activation after each convolution; `linear` is none, as in Keras for a layer without one.
        in_shape: channels, height and width of the images.
        num_classes: the number of classes.
    """

    def __init__(
        self,
        *,
        initial: Literal["torch", "glorot"] = "torch",
        convolutions: Literal["relu", "linear"] = "relu",
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        check("lenet5", "have sides of 12 pixels or more", in_shape, is_valid=min(height, width) >= 12)
        pooled: list[nn.Module]
        if convolutions == "linear":
            pooled = [AveragedConv2d(channels, 6, 5, padding=2), AveragedConv2d(6, 16, 5)]
        else:
            first, second = nn.Conv2d(channels, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
            pooled = [first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(
            *pooled,  # the first one's padding turns 28x28 into 32x32
            nn.Flatten(),
            nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120),  # 16 * 5 * 5 for 28x28
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )
        if initial == "glorot":
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        logits: Tensor = self.layers(images)
        return logits
