"""The size, channels and ground of the images that pictures become by the rules `fit` and `stretch`.

It is apart from `images` because every process that decodes a data set imports it, and scipy would take longer to
import than a thousand pictures to decode.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnist_pipe.data.facts import Facts, Resize, Shape


def sized(picture: Image.Image, *, shape: Shape, resize: Resize) -> Image.Image:
    """Return an upright picture, of mode L or RGB, with the channels and the size of an image.

    `fit` pads the picture with the colour of its corners to the proportions of an image; `stretch` does not keep its
    proportions.
    """
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size == (width, height):
        return picture
    if resize == "stretch":
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    ground = corners(np.asarray(picture)[np.newaxis])[0]
    color = int(ground[0]) if channels == 1 else tuple(ground.tolist())
    return ImageOps.pad(picture, (width, height), method=Image.Resampling.BICUBIC, color=color)


def inverted(images: NDArray[np.uint8], *, invert: Literal["auto"] | bool) -> NDArray[np.uint8]:
    """Return images, uint8 `(N, height, width)` or with channels last, inverted: `auto`, those with light corners."""
    if invert is False:
        return images
    is_light = corners(images).mean(axis=1) > 127 if invert == "auto" else np.ones(len(images), dtype=bool)
    if not is_light.any():
        return images
    turned = images.copy()
    turned[is_light] = 255 - images[is_light]
    return turned


def corners(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the median of the four corners of each image, which is its ground, uint8 `(N, channels)`.

    The median of the border is not: it is light in 2 of Fashion-MNIST's 60,000 training images, that of the corners in
    none of its 70,000 images.

    Args:
        images: uint8 `(N, height, width)` or `(N, height, width, channels)`.
    """
    four = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(images), 4, -1)
    found: NDArray[np.uint8] = np.median(four, axis=1).round().astype(np.uint8)
    return found


def channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images `(N, height, width, channels)` as `(N, channels, height, width)`; those without channels stay."""
    return images if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def enough(facts: Facts) -> tuple[int, int] | None:
    """Return the width and height of a picture from which an image is made as well as from a larger one.

    None if there is no such size: the ink of a digit may be a small part of its picture.
    """
    _, height, width = facts.shape
    return None if facts.resize == "digit_box" else (8 * width, 8 * height)
