"""Reading of pictures, whatever their format, size, colour model or damage."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImageStat, UnidentifiedImageError

from mnist_pipe.data.compression import crc32
from mnist_pipe.errors import InputError, PipelineError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of the pictures in a folder, in lower case."""
FORMATS = "a PNG, JPEG, BMP, TIFF or WebP image"
"""The formats that are read, as error messages name them."""
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_WORKING_PIXELS = 512 * 512  # a picture is first reduced to this, which bounds time and memory
_WORKING_SIDE = 4096  # the same for a strip of a few pixels' height
_MIN_CONTRAST = 26  # grey levels
_PNG = b"\x89PNG\r\n\x1a\n"
_PLAIN = {b"\x08\x00\x00\x00\x00": "L", b"\x08\x02\x00\x00\x00": "RGB"}  # bits, colour type, methods: of IHDR
_HARMLESS = {b"IHDR", b"IEND", b"pHYs", b"tEXt", b"zTXt", b"tIME", b"gAMA", b"sRGB", b"cHRM"}
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


def read_picture(source: Path | bytes, *, name: str = "", enough: tuple[int, int] | None = None) -> Picture:
    """Read a picture file, or its content.

    Args:
        source: the file, or its content.
        name: name of the content in error messages; a file's is its path.
        enough: the width and height that suffice: a JPEG is then decoded at no more than twice that size, which is
            several times as fast for a large photograph.

    Raises:
        InputError: the file does not exist, is no picture, or is damaged or too large.
    """
    if isinstance(source, bytes):
        name, what, empty, start = name or "the picture", "the content", "no bytes", source[:8]
    else:
        name, what, empty, start = name or str(source), "the file", "an empty file", _start(source)
    with _reporting(name, what, start=start, empty=empty):
        with Image.open(_stream(source), formats=_FORMATS) as image:
            if image.format == "PNG":
                image.verify()  # checks the CRC of every chunk, which decoding ignores
        with Image.open(_stream(source), formats=_FORMATS) as image:
            return _reduced(image, name=name, enough=enough)


@contextmanager
def _reporting(name: str, what: str, *, start: bytes, empty: str) -> Iterator[None]:
    """Report what Pillow raises within the block as an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError:
        got = f"bytes that start with {start!r}" if start else empty
        raise InputError.invalid(name, what, f"be {FORMATS}", got=got) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        rule = f"have at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise InputError.invalid(name, "the image", rule, got="more") from error
    except PipelineError:
        raise
    except _DAMAGE as error:
        got = one_line(error) or type(error).__name__
        raise InputError.invalid(name, "the image", "be undamaged", got=got) from error


def size_of(content: bytes, *, name: str) -> tuple[int, int]:
    """Return height and width of an upright picture, from the head of its file.

    Raises:
        InputError: it is no picture.
    """
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and b"eXIf" not in content and b"iTXt" not in content:
        return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])
    reporting = _reporting(name, "the content", start=content[:8], empty="no bytes")
    with reporting, Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.size if _is_lying(image) else (image.height, image.width)


def _start(path: Path) -> bytes:
    try:
        if not path.exists():
            raise InputError.missing(path)
        if not path.is_file():
            raise InputError.invalid(path, "the file", f"be {FORMATS}", got="no regular file")
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise InputError.invalid(path, "the file", "be readable", got=error.strerror) from error


def _stream(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def quick(content: bytes) -> Image.Image | None:
    """Return the picture in a plain PNG, grey or RGB with 8 bits a channel; None if it needs `read_picture`.

    Pillow's reader of PNG takes twice as long for a small picture. Every chunk is checked against its CRC.
    """
    if not content.startswith(_PNG) or content[24:29] not in _PLAIN:
        return None
    at, data = len(_PNG), []
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        kind = content[at + 4 : at + 8]
        if crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return None
        if kind == b"IDAT":
            data.append(content[at + 8 : end])
        elif kind not in _HARMLESS:
            return None
        at = end + 4
    size = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    if kind != b"IEND" or not 0 < size[0] * size[1] <= _WORKING_PIXELS or max(size) > _WORKING_SIDE:
        return None
    mode = _PLAIN[content[24:29]]
    try:
        return Image.frombytes(mode, size, b"".join(data), "zip", mode)
    except _DAMAGE:
        return None


def _reduced(image: Image.Image, *, name: str, enough: tuple[int, int] | None) -> Picture:
    size = image.size
    if enough and image.format == "JPEG":
        image.draft(image.mode, enough)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        transparent = image.info.get("transparency")
        values = np.asarray(ImageOps.exif_transpose(image))
        is_paper = values == transparent
        # Scanners and microscopes store 10 to 14 bits in 16.
        white = (1 << max(8, int(values.max(initial=0, where=~is_paper)).bit_length())) - 1
        image = Image.fromarray(np.where(is_paper, 255, values * (255 / white)).round().astype(np.uint8))
    elif image.has_transparency_data or image.mode in ("1", "P"):
        image = image.convert("RGBA")
    width, height = size
    is_lying = _is_lying(image)
    scale = min(1.0, (_WORKING_PIXELS / (width * height)) ** 0.5, _WORKING_SIDE / max(width, height))
    image.thumbnail((max(1, width * scale), max(1, height * scale)))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        shown = _on_paper(image, "white")
        if all(high - low < _MIN_CONTRAST for low, high in ImageStat.Stat(shown).extrema):
            shown = _on_paper(image, "black")  # white ink on a transparent page
    else:
        shown = image.convert("RGB")
    return Picture(pixels=np.asarray(shown), size=(height, width) if is_lying else (width, height), name=name)


def _is_lying(image: Image.Image) -> bool:
    """Return whether the rows of a file are the columns of the upright picture."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # EXIF 2.3, 4.6.4


def _on_paper(image: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
