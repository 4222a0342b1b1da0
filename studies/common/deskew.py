"""The slant of a digit, from the moments of its ink, and the digit without it.

LeCun et al. 1998, section III.A: the second moments of inertia of the pixels, ink counted as 1 and background as 0,
give the axis; the rows are then shifted sideways until it is vertical. A grey pixel counts here by its grey.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMAGES_AT_ONCE = 2_000  # 6 MB of float32, and of each of the few arrays that a shift makes


def slant(images: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(n,) how far each of the (n, height, width) images leans to the right, in pixels a row upwards.

    It is the tangent of the angle between its axis and the vertical, so 1 is a lean of 45 degrees. Ink is positive and
    background 0. An image without ink, or with ink in one row alone, has no axis and counts as upright.
    """
    slants, _ = _axes(images)
    return slants


def deslanted(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (n, height, width) images with each row shifted so that the axis is vertical and the centre of mass stays.

    A shift is rarely whole: a pixel's ink is shared by the two pixels that it falls between. What comes in from outside
    is background, 0.
    """
    result = np.empty_like(images)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        result[part] = _shifted(images[part], *_axes(images[part]))
    return result


def _axes(images: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The slant and the row of the centre of mass, counted from the middle row, of each image."""
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
    height, width = images.shape[1:]
    y = np.arange(height) - (height - 1) / 2
    shift = slants[:, None] * (y - centres[:, None])  # to the right; below the centre, y > 0, a right-leaning digit's
    whole = np.floor(shift).astype(np.int64)
    share = (shift - whole).astype(np.float32)[:, :, None]
    sources = np.arange(width) - whole[:, :, None]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1)))

    def taken(columns: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.take_along_axis(padded, np.clip(columns + 1, 0, width + 1), axis=2)

    shifted: NDArray[np.float32] = (1 - share) * taken(sources) + share * taken(sources - 1)
    return shifted
