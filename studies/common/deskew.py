"""The slant of a digit, measured from the moments of its ink, and its removal.

LeCun et al. 1998, section III.A: the second moments of inertia of the pixels, with ink counted as 1 and background as
0, give the axis; the rows are then shifted sideways until the axis is vertical. Here a grey pixel counts by its grey.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMAGES_AT_ONCE = 2_000  # 6 MB of float32, for the images and for each of the few arrays that a shift makes


def slant(images: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return how far each image leans to the right, in pixels per row upwards: float64 `(N,)`, of float `(N, H, W)`.

    The slant is the tangent of the angle between the image's axis and the vertical, so 1 is a lean of 45 degrees. Ink
    is positive and background 0. An image without ink, or with ink in only one row, has no axis and counts as upright.
    """
    slants, _ = _axes(images)
    return slants


def deslanted(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the images, float32 `(N, H, W)`, with their rows shifted sideways so that each image's axis is vertical.

    The centre of mass stays where it is. A shift is rarely a whole number of pixels: the ink of a pixel is shared
    between the two pixels that it falls between. What enters from outside the image is background, 0.
    """
    result = np.empty_like(images)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        result[part] = _shifted(images[part], *_axes(images[part]))
    return result


def _axes(images: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each image's slant and the row of its centre of mass, counted from the middle row: float64 `(N,)` each."""
    height, width = images.shape[1:]
    y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    ink, moment_x = images.sum(2, dtype=np.float64), images @ x
    total = ink.sum(1)
    inked = np.where(total > 0, total, 1.0)
    centre_y, centre_x = ink @ y / inked, moment_x.sum(1) / inked
    variance_y = ink @ y**2 / inked - centre_y**2
    covariance = moment_x @ y / inked - centre_x * centre_y
    has_axis = variance_y > 1e-9
    # y points down, so a lean to the right is a negative covariance.
    return -np.where(has_axis, covariance / np.where(has_axis, variance_y, 1.0), 0.0), centre_y


def _shifted(
    images: NDArray[np.float32], slants: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the images, float32 `(N, H, W)`, with row y shifted to the right by slants * (y - centres) pixels."""
    height, width = images.shape[1:]
    y = np.arange(height) - (height - 1) / 2
    shift = slants[:, None] * (y - centres[:, None])  # rows below the centre of a right-leaning digit go right
    whole = np.floor(shift).astype(np.int64)
    share = (shift - whole).astype(np.float32)[:, :, None]
    sources = np.arange(width) - whole[:, :, None]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1)))

    def pixels_at(columns: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.take_along_axis(padded, np.clip(columns + 1, 0, width + 1), axis=2)

    shifted: NDArray[np.float32] = (1 - share) * pixels_at(sources) + share * pixels_at(sources - 1)
    return shifted
