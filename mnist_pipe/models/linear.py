"""The linear softmax classifier: ten templates, one inner product each (LeCun et al. 1998, section III.C.1)."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """784 pixels to 10 logits. Row k of the weight, reshaped to 28x28, is the template of class k."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(28 * 28, 10)
        # Zero is the natural start of a convex problem, and keeps the corner pixels, which never vary, at zero.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(images.flatten(1))
        return logits
