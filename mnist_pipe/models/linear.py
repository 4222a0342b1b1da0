"""The linear softmax classifier: a template a class, one inner product each (LeCun et al. 1998, section III.C.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """A linear map from pixels to logits; row k of the weight, in the shape of an image, is the template of class k."""

    def __init__(self, *, in_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        self.output = nn.Linear(math.prod(in_shape), num_classes)
        # Zero is the natural start of a convex problem. Pixels that never vary, as in the corners, are not 0 after
        # standardisation, so their weights learn as more biases.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        logits: Tensor = self.output(images.flatten(1))
        return logits
