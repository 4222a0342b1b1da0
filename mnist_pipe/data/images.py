"""Conversion of a drawn, scanned or photographed digit into an image made the way MNIST's images were made.

LeCun et al. 1998, section III.A: the digits were "size normalized to fit in a 20x20 pixel box while preserving their
aspect ratio", the grey levels come from the anti-aliasing of this step, and each digit was "centered in a 28x28 image
by computing the center of mass of the pixels, and translating the image so as to position this point at the center".
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_pipe.data.splits import SIDE
from mnist_pipe.errors import InputError, PipelineError, one_line

Number = TypeVar("Number", np.uint8, np.float32)

_BOX = 20  # length of the longer side of a digit, in pixels
_WORKING_SIDE = 512  # pixels; the longer side of a picture is first reduced to this, which bounds time and memory
_MIN_CONTRAST = 0.1  # smallest distance of ink and background, as a share of full scale
_MIN_INK = 0.1  # share of the strongest ink; JPEG artefacts and the faintest anti-aliasing lie below it
_MAX_INK = 0.5  # upper limit of the threshold: a digit that touches the border would pass for noise
# Pillow raises any of these for a damaged file.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)


def load_image(path: Path) -> NDArray[np.float32]:
    """Return the digit in a PNG or JPEG file as float32 `(28, 28)` in [0, 1], light on dark.

    The background is the median colour of the border, and ink is the distance from it, so a dark digit on a light
    background and a light one on a dark background give the same image. Transparent pixels are read as white.

    Raises:
        InputError: the file does not exist, is not a PNG or JPEG, or is damaged, too large or blank.
    """
    ink = _ink(_read(path))
    if ink.max() < _MIN_CONTRAST:
        raise InputError.invalid(
            path, "the image", "show a digit on a plain background", got=f"a contrast of {ink.max():.0%}"
        )
    return centred(_fitted(ink / ink.max()), centre=SIDE / 2)  # pixel (14, 14), as in MNIST


def _read(path: Path) -> NDArray[np.uint8]:
    """Return the picture as RGB, uint8 `(height, width, 3)`, upright and at most 512 pixels on a side."""
    try:
        if not path.exists():
            raise InputError.missing(path)
        if not path.is_file():
            raise InputError.invalid(path, "the file", "be a PNG or JPEG image", got="no regular file")
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise InputError.invalid(path, "the file", "be readable", got=error.strerror) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                image.verify()  # checks the CRC of every PNG chunk, which decoding ignores
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                return _upright_rgb(image)
    except UnidentifiedImageError:
        got = f"bytes that start with {start!r}" if start else "an empty file"
        raise InputError.invalid(path, "the file", "be a PNG or JPEG image", got=got) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        rule = f"have at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise InputError.invalid(path, "the image", rule, got="more") from error
    except PipelineError:
        raise
    except _DAMAGE as error:
        got = one_line(error) or type(error).__name__
        raise InputError.invalid(path, "the image", "be undamaged", got=got) from error


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        transparent = image.info.get("transparency")
        values = np.asarray(ImageOps.exif_transpose(image))
        image = Image.fromarray(np.where(values == transparent, 255, values / 257).round().astype(np.uint8))
    elif image.has_transparency_data or image.mode in ("1", "P"):
        image = image.convert("RGBA")
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    image = ImageOps.exif_transpose(image).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(paper, image).convert("RGB"))


def _ink(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each pixel's distance from the background colour, float32 `(height, width)` in [0, 1].

    `picture` is RGB, uint8 `(height, width, 3)`.
    """
    background = np.median(_border(picture), axis=0).astype(np.float32)
    ink: NDArray[np.float32] = np.abs(picture.astype(np.float32) - background).max(axis=2) / 255
    return ink


def _border(picture: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _fitted(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the bounding box of the ink, scaled so that its longer side is 20 pixels; all float32 in [0, 1]."""
    # Four times the 90th percentile is about 6 standard deviations of a camera's noise, which no background pixel has.
    noise = float(np.quantile(_border(ink), 0.9))
    is_ink = ink > min(max(_MIN_INK, 4 * noise), _MAX_INK)
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(side * _BOX / max(box.shape))) for side in box.shape)
    if box.shape == (height, width):
        return box
    resized = Image.fromarray(box).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized).clip(0, 1)
    strongest: NDArray[np.float32] = scaled / scaled.max()
    return strongest


def centred(box: NDArray[Number], *, centre: float) -> NDArray[Number]:
    """Return `box` in an image of zeros, its centre of mass at pixel (centre, centre) to the nearest whole pixel.

    Args:
        box: uint8 or float32 `(height, width)`, at most 28 on a side, with a sum above 0; it always stays inside.
        centre: row and column of the target, in pixels.

    Returns:
        `(28, 28)` of the dtype of `box`.
    """
    image = np.zeros((SIDE, SIDE), dtype=box.dtype)
    place: list[Any] = []
    for axis, length in enumerate(box.shape):
        mass = box.sum(axis=1 - axis)
        found = float((mass * np.arange(length)).sum() / mass.sum())
        start = min(max(round(centre - found), 0), SIDE - length)
        place.append(slice(start, start + length))
    image[tuple(place)] = box
    return image
