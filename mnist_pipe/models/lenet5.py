"""LeNet-5 as it is taught today: average pooling, ReLU, dense output.

Sizes follow LeCun et al. 1998, section II.B: 32x32 input, C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, C5 120,
F6 84. It departs from the paper in four places: S2 and S4 have no trainable gain, C3 sees all six maps, ReLU replaces
the scaled tanh, and a dense layer replaces the RBF output.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class AveragedConv2d(nn.Conv2d):
    """A convolution and the 2x2 average behind it, with nothing between them: one of stride 2.

    A pooled output sees its inputs through the mean of the kernel at the four places of the pool, which has a row and
    a column more; with 5x5 kernels that is 36 multiply-adds in place of 100.
    """

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, averaged(self.weight), self.bias, stride=2, padding=self.padding)


def averaged(kernels: Tensor) -> Tensor:
    """(outputs, inputs, height + 1, width + 1) of (outputs, inputs, height, width) kernels: what a 2x2 pool sees."""
    return F.avg_pool2d(F.pad(kernels, (1, 1, 1, 1)), 2, stride=1)


class LeNet5(nn.Module):
    """61,706 parameters, which `initial` draws as torch does by default, or as Keras does.

    That is the rule of Glorot & Bengio 2010, eq. 16, with biases of zero; it starts the dense layers about twice as
    wide. Behind `convolutions` is a ReLU, or nothing, as in Keras where a layer is given no activation.
    """

    def __init__(
        self, *, initial: Literal["torch", "glorot"] = "torch", convolutions: Literal["relu", "linear"] = "relu"
    ) -> None:
        super().__init__()
        pooled: list[nn.Module]
        if convolutions == "linear":
            pooled = [AveragedConv2d(1, 6, 5, padding=2), AveragedConv2d(6, 16, 5)]
        else:
            first, second = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
            pooled = [first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(
            *pooled,  # the padding makes 32x32 of 28x28
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )
        if initial == "glorot":
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
