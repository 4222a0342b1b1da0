"""The 32-64 network with one max-pool and 128 dense units, as in the augmented-CNN report; it ends in logits."""

from __future__ import annotations

from torch import Tensor, nn


class CNN(nn.Module):
    """Two 3x3 convolutions at full resolution, 14x14x64 features, 128 dense units: 1,625,866 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
