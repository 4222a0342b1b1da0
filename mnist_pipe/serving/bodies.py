"""The images in the body of a request: one picture, or one or many arrays."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.facts import Facts
from mnist_pipe.data.images import load_whole
from mnist_pipe.errors import InputError

PICTURES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp")
JSON = "application/json"
RAW = "application/octet-stream"
CONTENT_TYPES = (*PICTURES, JSON, RAW)
"""The types of body that `read_images` takes."""

_BODY = "the body"  # where an error is, as a file's path is for `mnist-pipe predict`


class Images(NamedTuple):
    """The images in a body."""

    pixels: NDArray[np.uint8]
    """Images made as those of the data set were, `(N, height, width)`, or `(N, channels, height, width)` in colour."""
    doubt: str
    """Why a picture may show something else, to follow "the picture"; empty if nothing suggests it."""


def read_images(body: bytes, content_type: str, *, max_images: int, facts: Facts) -> Images:
    """Return the images in a body.

    - `image/png` and so on: one picture, which becomes an image by the data set's rule, as in `mnist-pipe predict`.
    - `application/json`: whole numbers from 0 to 255, one or many images, as nested lists or under `images`.
    - `application/octet-stream`: the same numbers as bytes.

    Arrays have the shape of `Images.pixels`: of MNIST `(28, 28)` or `(N, 28, 28)`.

    Args:
        body: the bytes of the request.
        content_type: one of `CONTENT_TYPES`, without parameters.
        max_images: the largest N.
        facts: the facts about the images that the model takes.

    Raises:
        InputError: the body is empty, is not what `content_type` says, or has more than `max_images` images.
    """
    if not body:
        raise InputError.invalid(_BODY, "", "contain a picture or arrays", got="nothing")
    if content_type in PICTURES:
        image, doubt = load_whole(body, facts=facts, name=_BODY)
        return Images(image[np.newaxis], doubt)
    shape = facts.array_shape
    images = _raw(body, shape) if content_type == RAW else _nested_lists(body, shape)
    if len(images) > max_images:
        fix = "send several requests"
        raise InputError.invalid(_BODY, "", f"contain at most {max_images} images", got=len(images), fix=fix)
    return Images(images, "")


def _raw(body: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = math.prod(shape)
    if len(body) % size:
        raise InputError.invalid(_BODY, "its length", f"be a multiple of {size} bytes", got=f"{len(body)} bytes")
    return np.frombuffer(body, dtype=np.uint8).reshape(-1, *shape)


def _nested_lists(body: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        got = "bottomless nesting" if isinstance(error, RecursionError) else str(error)
        raise InputError.invalid(_BODY, "", "be JSON", got=got) from None
    if isinstance(content, dict):
        if set(content) != {"images"}:
            raise InputError.invalid(_BODY, "its keys", "be images alone", got=", ".join(sorted(content)) or "none")
        content = content["images"]
    sides = ", ".join(map(str, shape))
    rule = f"be ({sides}) or (N, {sides})"
    try:
        array = np.array(content)
    except (ValueError, OverflowError):
        raise InputError.invalid(_BODY, "the array", rule, got="rows of unequal length") from None
    if array.shape != shape and (array.shape[1:] != shape or not array.size):
        raise InputError.invalid(_BODY, "the array", rule, got=array.shape)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise InputError.invalid(_BODY, "every pixel", "be a whole number from 0 to 255", got=_offender(array))
    return array.astype(np.uint8).reshape(-1, *shape)


def _offender(array: NDArray[Any]) -> str:
    """Return the value of `array` that an error names: the first that is no number, NaN, or the one out of range."""
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        return repr(float(array[~finite][0] if not finite.all() else array.flat[np.abs(array % 1).argmax()]))
    if array.dtype.kind in "iu":
        return str(array.min() if array.min() < 0 else array.max())
    return f"{array.dtype} values"
