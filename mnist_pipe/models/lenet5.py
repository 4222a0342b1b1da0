"""LeNet-5 as it is taught today: average pooling, ReLU, dense output.

Sizes follow LeCun et al. 1998, section II.B: 32x32 input, C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, C5 120,
F6 84. It departs from the paper in four places: S2 and S4 have no trainable gain, C3 sees all six maps, ReLU replaces
the scaled tanh, and a dense layer replaces the RBF output.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class LeNet5(nn.Module):
    """61,706 parameters, which `initial` draws as torch does by default, or as Keras does.

    That is the rule of Glorot & Bengio 2010, eq. 16, with biases of zero; it starts the dense layers about twice as
    wide. Behind `convolutions` is a ReLU, or nothing, as in Keras where a layer is given no activation.
    """

    def __init__(
        self, *, initial: Literal["torch", "glorot"] = "torch", convolutions: Literal["relu", "linear"] = "relu"
    ) -> None:
        super().__init__()
        activation = nn.ReLU if convolutions == "relu" else nn.Identity
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),  # the padding makes 32x32 of 28x28
            activation(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            activation(),
            nn.AvgPool2d(2),
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
