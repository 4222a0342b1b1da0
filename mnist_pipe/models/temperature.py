"""Temperature scaling: a trained model whose probabilities are calibrated by one number (Guo et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn


class TemperatureScaled(nn.Module):
    """A model that divides the logits of `model` by `temperature`, which changes no ranking of the classes."""

    def __init__(self, model: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return calibrated logits, float32 `(N, classes)`, of images, float32 `(N, channels, height, width)`."""
        logits: Tensor = self.model(images) / self.temperature
        return logits
