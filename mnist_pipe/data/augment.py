"""Random rotation and translation of a whole batch at once, with one call of `grid_sample`."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_pipe.data.facts import Background


def draw(num_images: int, *, rotation_degrees: float, translation_pixels: float, generator: torch.Generator) -> Tensor:
    """Draw a rotation and a translation for each image, all uniform within plus and minus the given limits.

    Returns:
        float32 `(num_images, 3)`: the angle in radians, and the shift along x and along y in pixels.
    """
    unit = 2 * torch.rand(num_images, 3, generator=generator) - 1
    return unit * torch.tensor([math.radians(rotation_degrees), translation_pixels, translation_pixels])


def affine(images: Tensor, moves: Tensor, *, background: Background, mode: str = "bilinear") -> Tensor:
    """Rotate each image about its centre, then shift it right and down, by one interpolation.

    Args:
        images: float32 `(N, C, H, W)`.
        moves: float32 `(N, 3)` as `draw` returns it, on the images' device; an angle turns the image clockwise as it is
            shown (y down).
        background: the value of pixels that come in from outside the image.
        mode: the interpolation: `bilinear` or `nearest`.

    Returns:
        The moved images, float32 `(N, C, H, W)`.
    """
    ground = background if isinstance(background, int | float) else _ground(tuple(background), device=images.device)
    cosine, sine = torch.cos(moves[:, 0]), torch.sin(moves[:, 0])
    # The grid maps output to input in units of half the side, so it takes the inverse of the move.
    shift_x, shift_y = moves[:, 1] / (images.shape[-1] / 2), moves[:, 2] / (images.shape[-2] / 2)
    theta = torch.stack(
        [
            torch.stack([cosine, sine, -(cosine * shift_x + sine * shift_y)], dim=1),
            torch.stack([-sine, cosine, -(-sine * shift_x + cosine * shift_y)], dim=1),
        ],
        dim=1,
    )
    height, width = images.shape[-2:]
    grid = (theta.flatten(0, 1) @ _pixels(height, width, device=images.device)).view(-1, 2, height, width)
    # grid_sample pads with zeros, but an empty pixel is not zero after standardisation.
    moved: Tensor = F.grid_sample(images - ground, grid.permute(0, 2, 3, 1), mode=mode, align_corners=False) + ground
    return moved


@cache  # a step of a training must not bring it from the CPU again
def _ground(background: tuple[float, ...], *, device: torch.device) -> Tensor:
    """Return the value of an empty pixel of each channel, float32 `(C, 1, 1)`."""
    return torch.tensor(background, device=device).view(-1, 1, 1)


@cache
def _pixels(height: int, width: int, *, device: torch.device) -> Tensor:
    """Return x, y and 1 for each pixel's centre, float32 `(3, height * width)`, in units of half the side.

    `affine_grid` multiplies such coordinates by a batch of tiny matrices, which takes several times as long as the
    product with one matrix.
    """
    y = (2 * torch.arange(height, device=device) + 1) / height - 1
    x = (2 * torch.arange(width, device=device) + 1) / width - 1
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns.ravel(), rows.ravel(), torch.ones_like(rows).ravel()])
