"""Test test-time shifts against shifts made by hand."""

from __future__ import annotations

import torch

from mnist_pipe import models
from mnist_pipe.models.tta import ShiftAveraged

BACKGROUND = -0.42


def test_the_output_is_the_mean_over_the_image_and_its_four_shifts() -> None:
    torch.manual_seed(0)
    model = models.build("convnet", channels=[4]).eval()
    images = torch.full((6, 1, 28, 28), BACKGROUND)
    images[..., 4:24, 4:24] = torch.randn(6, 1, 20, 20)  # far enough from the border that a roll is a shift
    moved = [torch.roll(images, move, dims=(2, 3)) for move in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    expected = torch.stack([model(look).log_softmax(1) for look in moved]).mean(0)
    torch.testing.assert_close(ShiftAveraged(model, background=BACKGROUND)(images), expected)


def test_pixels_from_outside_the_image_are_background() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    empty = torch.full((1, 1, 28, 28), BACKGROUND)
    torch.testing.assert_close(ShiftAveraged(model, background=BACKGROUND)(empty), model(empty).log_softmax(1))
