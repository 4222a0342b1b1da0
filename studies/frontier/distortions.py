"""Random affine and elastic distortions of a whole batch, with one call of `grid_sample`.

Simard, Steinkraus & Platt 2003, *Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis*:
an image is moved by a field of displacements, which is affine, or uniform noise that a Gaussian has smoothed.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from mnist_pipe.data import augment
from mnist_pipe.data.splits import SIDE
from mnist_pipe.params.schema import Degrees, Pixels, Section

_NUM_FIELDS = 4000  # 25 MB; with a random sign, a field comes back after about 8,000 images
_HALF = SIDE / 2


class Distortion(Section):
    """Limits of the random distortions of training images; all are uniform within plus and minus the limit."""

    rotation_degrees: Degrees = 0.0
    translation_pixels: Pixels = 0.0
    """Largest shift along each axis, in pixels."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest logarithm of the factor by which width and height grow, each for itself."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest horizontal shift for each row, in pixels."""
    elastic_pixels: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Root mean square of the elastic displacements along each axis, in pixels.

    Simard et al. use 34 times uniform noise that was smoothed with sigma 4, which has 1.4 pixels.
    """
    elastic_sigma: Annotated[float, Field(gt=0, le=SIDE)] = 4.0
    """Standard deviation of the Gaussian that smooths the noise, in pixels."""


def draw(num_images: int, distortion: Distortion, *, generator: torch.Generator) -> Tensor:
    """Draw a distortion for each image.

    Returns:
        float32 `(num_images, 8)`: the angle in radians and the shift along x and y in pixels, as `augment.draw` has
        them; the logarithm of the scale along x and y, and the shear; the number of a field and its sign.
    """
    moves = augment.draw(
        num_images,
        rotation_degrees=distortion.rotation_degrees,
        translation_pixels=distortion.translation_pixels,
        generator=generator,
    )
    unit = 2 * torch.rand(num_images, 3, generator=generator) - 1
    fields = torch.randint(_NUM_FIELDS, (num_images, 1), generator=generator)
    signs = 2 * torch.randint(2, (num_images, 1), generator=generator) - 1
    scales = torch.tensor([distortion.scale, distortion.scale, distortion.shear])
    return torch.cat([moves, unit * scales, fields.float(), signs.float()], dim=1)


def fields_of(distortion: Distortion, *, seed: int) -> Tensor:
    """Return the elastic fields, float32 `(fields, 2, SIDE, SIDE)`: displacements along x and y in half sides."""
    if not distortion.elastic_pixels:
        return torch.zeros(0)
    noise = np.random.default_rng(seed).uniform(-1, 1, (_NUM_FIELDS, 2, SIDE, SIDE)).astype(np.float32)
    sigma = distortion.elastic_sigma
    smooth = gaussian_filter(noise, (0, 0, sigma, sigma), mode="wrap")  # else the borders would move more than the rest
    return torch.from_numpy(smooth * np.float32(distortion.elastic_pixels / _HALF / smooth.std()))


def distorted(images: Tensor, draws: Tensor, *, fields: Tensor, background: float) -> Tensor:
    """Distort each image by its draw: scaled and sheared, rotated, shifted, and moved by its field.

    Args:
        images: float32 `(N, 1, SIDE, SIDE)`.
        draws: float32 `(N, 8)` as `draw` returns them.
        fields: the elastic fields of `fields_of`, or none.
        background: the value of pixels that come in from outside the image.
    """
    angle, right, down, widen, heighten, shear = draws[:, :6].unbind(1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # A grid maps output to input, so it takes the inverse of the scale; the shear's sign is as likely as the other.
    x_factor, y_factor = torch.exp(-widen), torch.exp(-heighten)
    rows = [
        (x_factor * cosine - shear * sine, x_factor * sine + shear * cosine),
        (-y_factor * sine, y_factor * cosine),
    ]
    theta = torch.stack([torch.stack([a, b, -(a * right + b * down) / _HALF], dim=1) for a, b in rows], dim=1)
    grid = (theta.flatten(0, 1) @ _coordinates(images.device)).view(-1, 2, SIDE, SIDE)
    if len(fields):
        grid += fields[draws[:, 6].long()] * draws[:, 7].view(-1, 1, 1, 1)
    # grid_sample pads with zeros, but an empty pixel is not zero after standardisation.
    return F.grid_sample(images - background, grid.permute(0, 2, 3, 1), align_corners=False) + background


def _coordinates(device: torch.device) -> Tensor:
    """Return x, y and 1 for the centre of each pixel, float32 `(3, SIDE * SIDE)`, in half sides."""
    centres = (2 * torch.arange(SIDE, device=device) + 1) / SIDE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.ravel(), y.ravel(), torch.ones(SIDE * SIDE, device=device)])
