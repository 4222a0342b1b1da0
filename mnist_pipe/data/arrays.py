"""Arrays of images and labels, in the shapes and types in which files hold them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.errors import CorruptDataError

LEAST_SIDE = 4
"""Smallest side, in pixels, of an image that is stored as one row of pixels."""


def images_of(where: object, array: NDArray[Any], *, name: str = "the shape") -> NDArray[Any]:
    """Return an array of images as `(N, height, width)`, or `(N, height, width, 3)` in colour, of the same values.

    Each image may also be one row of pixels, if it is square, and may have its channels before its height. A dimension
    of 1 is left out.

    Raises:
        CorruptDataError: the array has another shape; the message starts with `where` and `name`.
    """
    rest = tuple(length for length in array.shape[1:] if length > 1)
    if len(rest) == 1 and (shape := square(rest[0])):
        rest = shape
    found = array.reshape(len(array), *rest)
    if len(rest) == 2:
        return found
    if len(rest) == 3 and rest[2] == 3:
        return found
    if len(rest) == 3 and rest[0] == 3:
        return found.transpose(0, 2, 3, 1)
    got = "x".join(map(str, array.shape))
    raise CorruptDataError.invalid(where, name, "be NxHxW or NxHxWx3 (images)", got=got)


def square(num_values: int) -> tuple[int, ...]:
    """Return the shape of a square image of so many values, `(side, side)` or `(side, side, 3)`; empty if none has."""
    for channels in (1, 3):
        side = math.isqrt(num_values // channels)
        if side >= LEAST_SIDE and channels * side * side == num_values:
            return (side, side, 3)[: 2 + (channels > 1)]
    return ()


def labels_of(where: object, array: NDArray[Any], *, name: str = "the shape") -> NDArray[Any]:
    """Return an array of labels as `(N,)`, of whole numbers as int64 or of text.

    Raises:
        CorruptDataError: the array has another shape, or a label is a number but no whole one.
    """
    if math.prod(array.shape[1:]) != 1:
        got = "x".join(map(str, array.shape))
        raise CorruptDataError.invalid(where, name, "be N or Nx1 (labels)", got=got)
    labels = array.reshape(-1)
    if labels.dtype.kind == "f":
        is_whole = np.isfinite(labels) & (np.abs(labels) < 2**53)
        is_whole[is_whole] = labels[is_whole] % 1 == 0
        if not is_whole.all():
            got = labels[~is_whole][0]
            raise CorruptDataError.invalid(where, f"label[{int((~is_whole).argmax())}]", "be a whole number", got=got)
    return labels.astype(np.int64) if labels.dtype.kind in "iufb" else labels


def grey_levels(where: object, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grey levels of any type as bytes, after checking that nothing is lost.

    Floating-point values of which none is above 1 are grey levels that were divided by 255.

    Raises:
        CorruptDataError: a value is no grey level; `where` is the place that the message names.
    """
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return whole_numbers(where, (255 * values.astype(np.float64)).round(3))  # float32 has rounded them
    return whole_numbers(where, values)


def whole_numbers(where: object, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return whole numbers of any type as bytes.

    Raises:
        CorruptDataError: a value is no whole number from 0 to 255; `where` is the place that the message names.
    """
    if values.dtype == np.uint8:
        return values
    is_whole = (values >= 0) & (values <= 255)
    if values.dtype.kind == "f":
        is_whole[is_whole] = values[is_whole] % 1 == 0
    if not is_whole.all():
        got = values[~is_whole].flat[0]
        raise CorruptDataError.invalid(where, "every value", "be a whole number from 0 to 255", got=got)
    return values.astype(np.uint8)
