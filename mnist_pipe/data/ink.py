"""The ink of a picture: how far each pixel is from the background, whatever the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.pictures import Picture
from mnist_pipe.errors import InputError

_MIN_CONTRAST = 0.1  # smallest distance of ink and background, as a share of full scale
_MIN_INK = 0.1  # share of the strongest ink; JPEG artefacts and the faintest anti-aliasing lie below it
_MAX_INK = 0.5  # upper limit of the threshold: a digit that touches the border would pass for noise
_MIN_SHADE = 64  # grey levels; below this, noise would be amplified too much
_FRAME = 0.9  # share of the picture's width and height that a frame spans, and of its sides that are drawn
_MAX_FRAMES = 8  # a frame's soft edge counts as a frame of its own
_LINE = 0.9  # share of a row or column that is ink where a line of squared or ruled paper runs


def ink_of(picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the ink, float32 `(height, width)`, whose strongest is 1, and which pixels are digits rather than paper.

    The background is the median colour of the border, so that dark on light and light on dark give the same ink. If
    that leaves the paper uneven, as under a shadow, the background is a surface fitted to the border. A frame around
    the picture is taken away, and so are lines of squared or ruled paper that are paler than half of the ink.

    Raises:
        InputError: the picture has no contrast.
    """
    place, ink = _page(picture.pixels)
    if ink.max() < _MIN_CONTRAST:
        got = f"a contrast of {ink.max():.0%}"
        raise InputError.invalid(picture.name, "the image", "show a digit on a plain background", got=got)
    ink = _without_lines(ink / ink.max())
    whole = np.zeros(picture.pixels.shape[:2], dtype=np.float32)
    whole[place] = ink
    return whole, whole > _threshold(ink)


def border(picture: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels of an array `(height, width, ...)`."""
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _threshold(ink: NDArray[np.float32]) -> float:
    # Four times the 90th percentile is about 6 standard deviations of a camera's noise, which no background pixel has.
    return min(max(_MIN_INK, 4 * float(np.quantile(border(ink), 0.9))), _MAX_INK)


def _page(pixels: NDArray[np.uint8]) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """Return rows and columns of the picture inside of its frames, and the ink there, in [0, 1]."""
    place, ink = np.s_[0 : pixels.shape[0], 0 : pixels.shape[1]], _distance(pixels)
    for _ in range(_MAX_FRAMES):
        inside = _inside_of_frame(ink > _MIN_INK * ink.max()) if ink.max() >= _MIN_CONTRAST else None
        if inside is None:
            break
        rows, columns = (
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(place, inside, strict=True)
        )
        found = _distance(pixels[rows, columns])
        if found.max() < _MIN_CONTRAST:  # it was no frame but a bar
            break
        place, ink = (rows, columns), found
    return place, ink


def _distance(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each pixel's distance from the background, float32 `(height, width)` in [0, 1]; `picture` is RGB."""
    pixels = picture.astype(np.float32)
    even = _farthest(pixels - np.median(border(picture), axis=0).astype(np.float32))
    if _threshold(even) < _MAX_INK or even.max() < _MIN_CONTRAST:
        return even
    paper = _surface(pixels)
    # A shadow darkens ink and paper by the same factor, so their distance counts as a share of the largest possible.
    largest = np.where(pixels < paper, paper, 255 - paper).clip(_MIN_SHADE, 255)
    shaded = _farthest(((pixels - paper) * np.float32(255) / largest).clip(-255, 255))
    # A digit that is cropped to its ink is no shadow: no smooth surface fits the border.
    return shaded if shaded.max() >= _MIN_CONTRAST and _threshold(shaded / shaded.max()) < _MAX_INK else even


def _farthest(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest of a pixel's three distances, each in [0, 1]."""
    red, green, blue = np.moveaxis(np.abs(difference), 2, 0)  # `max(axis=2)` takes ten times as long
    farthest: NDArray[np.float32] = np.maximum(np.maximum(red, green), blue) / 255
    return farthest


def _surface(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the quadratic surface that fits the border of `(height, width, channels)` best, in the same shape."""
    height, width, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    factors = np.linalg.lstsq(border(terms), border(pixels), rcond=None)[0]
    surface: NDArray[np.float32] = (terms @ factors).astype(np.float32)
    return surface


def _inside_of_frame(is_ink: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Return the rectangle that the ink encloses, or None if the ink is no rectangle of nearly the picture's size."""
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    place = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    found = is_ink[place]
    sides = (found[0], found[-1], found[:, 0], found[:, -1])
    is_large = all(length >= _FRAME * whole for length, whole in zip(found.shape, is_ink.shape, strict=True))
    if not is_large or min(side.mean() for side in sides) < _FRAME or min(found.shape) < 3:
        return None
    if found.shape == is_ink.shape:  # the frame lies on the border
        return slice(1, found.shape[0] - 1), slice(1, found.shape[1] - 1)
    return place


def _without_lines(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ink, whose strongest is 1, without pale lines from one side of the picture to the other."""
    lines = [
        ink[(ink > _MIN_INK).mean(axis=1) >= _LINE].ravel(),
        ink[:, (ink > _MIN_INK).mean(axis=0) >= _LINE].ravel(),
    ]
    found = np.concatenate(lines)
    if not len(found) or (level := float(np.quantile(found, 0.5))) >= _MAX_INK:
        return ink
    level = min(1.2 * level, _MAX_INK)
    return ((ink - level).clip(0) / (1 - level)).astype(np.float32)
