"""Reading of PNG and JPEG pictures, whatever their size, colour model or damage."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImageStat, UnidentifiedImageError

from mnist_pipe.errors import InputError, PipelineError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of the pictures in a folder, in lower case."""
_FORMATS = ("PNG", "JPEG")
_WORKING_PIXELS = 512 * 512  # a picture is first reduced to this, which bounds time and memory
_WORKING_SIDE = 4096  # the same for a strip of a few pixels' height
_MIN_CONTRAST = 26  # grey levels
# Pillow raises any of these for a damaged file.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was read, reduced if it is large."""

    pixels: NDArray[np.uint8]
    """RGB, `(height, width, 3)`, upright, at most 262,144 pixels; transparent ones white, or black under white ink."""
    size: tuple[int, int]
    """Width and height at full size, upright, in pixels."""
    name: str
    """What error messages call the picture."""

    def at_full_size(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom at full size for those in `pixels`; none becomes smaller."""
        height, width = self.pixels.shape[:2]
        across, down = self.size[0] / width, self.size[1] / height
        left, top, right, bottom = box
        return int(left * across), int(top * down), -int(-right * across // 1), -int(-bottom * down // 1)


def read_picture(source: Path | bytes, *, name: str = "") -> Picture:
    """Read a PNG or JPEG file, or its content.

    Args:
        source: the file, or its content.
        name: name of the content in error messages; a file's is its path.

    Raises:
        InputError: the file does not exist, is not a PNG or JPEG, or is damaged or too large.
    """
    if isinstance(source, bytes):
        name, what, empty, start = name or "the picture", "the content", "no bytes", source[:8]
    else:
        name, what, empty, start = name or str(source), "the file", "an empty file", _start(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(_stream(source), formats=_FORMATS) as image:
                image.verify()  # checks the CRC of every PNG chunk, which decoding ignores
            with Image.open(_stream(source), formats=_FORMATS) as image:
                return _reduced(image, name=name)
    except UnidentifiedImageError:
        got = f"bytes that start with {start!r}" if start else empty
        raise InputError.invalid(name, what, "be a PNG or JPEG image", got=got) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        rule = f"have at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise InputError.invalid(name, "the image", rule, got="more") from error
    except PipelineError:
        raise
    except _DAMAGE as error:
        got = one_line(error) or type(error).__name__
        raise InputError.invalid(name, "the image", "be undamaged", got=got) from error


def _start(path: Path) -> bytes:
    try:
        if not path.exists():
            raise InputError.missing(path)
        if not path.is_file():
            raise InputError.invalid(path, "the file", "be a PNG or JPEG image", got="no regular file")
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise InputError.invalid(path, "the file", "be readable", got=error.strerror) from error


def _stream(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _reduced(image: Image.Image, *, name: str) -> Picture:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        transparent = image.info.get("transparency")
        values = np.asarray(ImageOps.exif_transpose(image))
        is_paper = values == transparent
        # Scanners and microscopes store 10 to 14 bits in 16.
        white = (1 << max(8, int(values.max(initial=0, where=~is_paper)).bit_length())) - 1
        image = Image.fromarray(np.where(is_paper, 255, values * (255 / white)).round().astype(np.uint8))
    elif image.has_transparency_data or image.mode in ("1", "P"):
        image = image.convert("RGBA")
    width, height = image.size
    is_lying = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # EXIF 2.3, 4.6.4: rows are columns
    scale = min(1.0, (_WORKING_PIXELS / (width * height)) ** 0.5, _WORKING_SIDE / max(width, height))
    image.thumbnail((max(1, width * scale), max(1, height * scale)))
    image = ImageOps.exif_transpose(image).convert("RGBA")
    shown = _on_paper(image, "white")
    if all(
        high - low < _MIN_CONTRAST for low, high in ImageStat.Stat(shown).extrema
    ):  # white ink on a transparent page
        shown = _on_paper(image, "black")
    return Picture(pixels=np.asarray(shown), size=(height, width) if is_lying else (width, height), name=name)


def _on_paper(image: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
