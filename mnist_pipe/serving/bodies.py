"""The images in the body of a request: one picture, or one or many arrays."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.images import load_whole
from mnist_pipe.data.splits import PIXELS, SIDE
from mnist_pipe.errors import InputError

PICTURES = ("image/png", "image/jpeg")
JSON = "application/json"
RAW = "application/octet-stream"
CONTENT_TYPES = (*PICTURES, JSON, RAW)
"""The types of body that `read_images` takes."""

_BODY = "the body"  # where an error is, as a file's path is for `mnist-pipe predict`


class Images(NamedTuple):
    """The images in a body."""

    pixels: NDArray[np.uint8]
    """Grey levels, `(N, 28, 28)`, light on dark, as the images of the data set are."""
    doubt: str
    """Why a picture may show something else, to follow "the picture"; empty if nothing suggests it."""


def read_images(body: bytes, content_type: str, *, max_images: int, rule: str) -> Images:
    """Return the images in a body.

    - `image/png`, `image/jpeg`: one picture, which is centred and scaled as `mnist-pipe predict` does.
    - `application/json`: whole numbers from 0 to 255, `(28, 28)` or `(N, 28, 28)`, as nested lists or under `images`.
    - `application/octet-stream`: 784 bytes for each image, row by row.

    Args:
        body: the bytes of the request.
        content_type: one of `CONTENT_TYPES`, without parameters.
        max_images: the largest N.
        rule: how a picture becomes an image: `Classifier.picture`.

    Raises:
        InputError: the body is empty, is not what `content_type` says, or has more than `max_images` images.
    """
    if not body:
        raise InputError.invalid(_BODY, "", "contain a picture or arrays", got="nothing")
    if content_type in PICTURES:
        image, doubt = load_whole(body, rule=rule, name=_BODY)
        return Images(image[np.newaxis], doubt)
    images = _raw(body) if content_type == RAW else _nested_lists(body)
    if len(images) > max_images:
        fix = "send several requests"
        raise InputError.invalid(_BODY, "", f"contain at most {max_images} images", got=len(images), fix=fix)
    return Images(images, "")


def _raw(body: bytes) -> NDArray[np.uint8]:
    if len(body) % PIXELS:
        raise InputError.invalid(_BODY, "its length", f"be a multiple of {PIXELS} bytes", got=f"{len(body)} bytes")
    return np.frombuffer(body, dtype=np.uint8).reshape(-1, SIDE, SIDE)


def _nested_lists(body: bytes) -> NDArray[np.uint8]:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        got = "bottomless nesting" if isinstance(error, RecursionError) else str(error)
        raise InputError.invalid(_BODY, "", "be JSON", got=got) from None
    if isinstance(content, dict):
        if set(content) != {"images"}:
            raise InputError.invalid(_BODY, "its keys", "be images alone", got=", ".join(sorted(content)) or "none")
        content = content["images"]
    shape = f"({SIDE}, {SIDE}) or (N, {SIDE}, {SIDE})"
    try:
        array = np.array(content)
    except (ValueError, OverflowError):
        raise InputError.invalid(_BODY, "the array", f"be {shape}", got="rows of unequal length") from None
    if array.shape[-2:] != (SIDE, SIDE) or array.ndim not in (2, 3) or not array.size:
        raise InputError.invalid(_BODY, "the array", f"be {shape}", got=array.shape)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise InputError.invalid(_BODY, "every pixel", "be a whole number from 0 to 255", got=_offender(array))
    return array.astype(np.uint8).reshape(-1, SIDE, SIDE)


def _offender(array: NDArray[Any]) -> str:
    """Return the value of `array` that an error names: the first that is no number, NaN, or the one out of range."""
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        return repr(float(array[~finite][0] if not finite.all() else array.flat[np.abs(array % 1).argmax()]))
    if array.dtype.kind in "iu":
        return str(array.min() if array.min() < 0 else array.max())
    return f"{array.dtype} values"
