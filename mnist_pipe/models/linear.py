"""The linear softmax classifier: ten templates, one inner product each (LeCun et al. 1998, section III.C.1)."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """A linear map from 784 pixels to 10 logits; row k of the weight, reshaped to 28x28, is the template of class k."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(28 * 28, 10)
        # Zero is the natural start of a convex problem, and keeps the weights of the constant corner pixels at zero.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, 10)`, of images, float32 `(N, 1, 28, 28)`."""
        logits: Tensor = self.output(images.flatten(1))
        return logits
