"""Random rotation and translation of a whole batch at once, by one `grid_sample`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def draw(num_images: int, *, rotation_degrees: float, translation_pixels: float, generator: torch.Generator) -> Tensor:
    """(num_images, 3): an angle in radians and a shift in pixels along x and y for each image, all uniform."""
    unit = 2 * torch.rand(num_images, 3, generator=generator) - 1
    return unit * torch.tensor([math.radians(rotation_degrees), translation_pixels, translation_pixels])


def affine(images: Tensor, moves: Tensor, *, background: float) -> Tensor:
    """Rotate each (1, H, W) image about its centre by moves[:, 0], then shift it right and down by moves[:, 1:].

    Bilinear; what comes in from outside is `background`. Angles turn clockwise as the image is shown (y down).
    """
    moves = moves.to(images.device)
    cosine, sine = torch.cos(moves[:, 0]), torch.sin(moves[:, 0])
    # affine_grid maps output to input in units of half the side, so it takes the inverse of the move.
    half = torch.tensor([images.shape[-1] / 2, images.shape[-2] / 2], device=images.device)
    shift_x, shift_y = (moves[:, 1:] / half).unbind(1)
    theta = torch.stack(
        [
            torch.stack([cosine, sine, -(cosine * shift_x + sine * shift_y)], dim=1),
            torch.stack([-sine, cosine, -(-sine * shift_x + cosine * shift_y)], dim=1),
        ],
        dim=1,
    )
    height, width = images.shape[-2:]
    grid = (theta.flatten(0, 1) @ _pixels(height, width, device=images.device)).view(-1, 2, height, width)
    # grid_sample pads with zeros, which is not what an empty pixel is after standardisation.
    return F.grid_sample(images - background, grid.permute(0, 2, 3, 1), align_corners=False) + background


def _pixels(height: int, width: int, *, device: torch.device) -> Tensor:
    """(3, height * width): x and y of each pixel's centre in units of half the side, and 1.

    `affine_grid` multiplies by their like in batches of tiny matrices, which takes several times as long as one matrix.
    """
    y = (2 * torch.arange(height, device=device) + 1) / height - 1
    x = (2 * torch.arange(width, device=device) + 1) / width - 1
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns.ravel(), rows.ravel(), torch.ones_like(rows).ravel()])
