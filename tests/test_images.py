"""Test that digit images in all usual forms are read as the one canonical image."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mnist_pipe.data.images import load_image
from mnist_pipe.errors import InputError

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(image: Image.Image, name: str = "digit.png", **options: Any) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def drawn(text: str = "5", *, size: int = 300, height: int = 200, at: tuple[int, int] | None = None) -> Image.Image:
    """Return a printed digit, black on white, in greyscale."""
    image = Image.new("L", (size, size), 255)
    anchor = (size // 2, size // 2) if at is None else at
    ImageDraw.Draw(image).text(anchor, text, font=ImageFont.load_default(height), fill=0, anchor="mm")
    return image


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the sum of absolute differences, relative to the ink of `b`."""
    return float(np.abs(a - b).sum() / b.sum())


def centre_of_mass(image: NDArray[np.float32]) -> tuple[float, float]:
    y, x = np.indices(image.shape)
    return float((image * y).sum() / image.sum()), float((image * x).sum() / image.sum())


@pytest.fixture
def canonical(save: Save) -> NDArray[np.float32]:
    return load_image(save(drawn(), "canonical.png"))


@pytest.mark.parametrize("digit", "0123456789")
def test_a_digit_fills_a_box_of_20_pixels_and_its_mass_lies_in_the_centre(save: Save, digit: str) -> None:
    image = load_image(save(drawn(digit)))
    assert image.shape == (28, 28)
    assert image.dtype == np.float32
    assert image.min() == 0
    assert image.max() == 1
    rows, columns = (np.flatnonzero((image > 0.05).any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert np.abs(np.array(centre_of_mass(image)) - 14).max() <= 0.5


def test_the_aspect_ratio_is_kept(save: Save) -> None:
    image = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(image).rectangle((100, 50, 149, 249), fill=0)  # 50 wide, 200 high
    loaded = load_image(save(image))
    assert (loaded > 0.5).any(axis=1).sum() == 20
    assert (loaded > 0.5).any(axis=0).sum() == 5


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "light on dark": ImageOps.invert,
    "grey on grey": lambda image: image.point(lambda v: 90 + v * 60 // 255),
    "half the size": lambda image: image.resize((150, 150), Image.Resampling.LANCZOS),
    "five times the size": lambda image: image.resize((1500, 1500), Image.Resampling.LANCZOS),
    "in a corner of a wide page": lambda image: ImageOps.expand(image, (20, 40, 500, 10), fill=255),
    "cropped to the ink": lambda image: image.crop(ImageOps.invert(image).getbbox()),
    "RGB": lambda image: image.convert("RGB"),
    "blue on yellow": lambda image: ImageOps.colorize(image, "blue", "yellow"),
    "colours of one brightness": lambda image: ImageOps.colorize(image, (200, 0, 0), (0, 102, 0)),
    "palette": lambda image: image.convert("P"),
    "one bit": lambda image: image.convert("1", dither=Image.Dither.NONE),
    "16 bits": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
    "grey with alpha": lambda image: image.convert("LA"),
    "black, drawn in the alpha channel": lambda image: Image.merge(
        "RGBA", [Image.new("L", image.size, 0)] * 3 + [ImageOps.invert(image)]
    ),
}


@pytest.mark.parametrize("form", VARIANTS)
def test_the_same_digit_in_another_form_is_the_same_image(
    save: Save, canonical: NDArray[np.float32], form: str
) -> None:
    assert difference(load_image(save(VARIANTS[form](drawn()))), canonical) < 0.12


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read_in_each_of_its_colour_models(save: Save, canonical: NDArray[np.float32], mode: str) -> None:
    path = save(drawn().convert(mode), "digit.jpg", quality=80)
    assert difference(load_image(path), canonical) < 0.12


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "L"), ("a.png", "L"), ("a.png", "I;16"), ("a.png", "RGBA")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(
    save: Save, canonical: NDArray[np.float32], name: str, mode: str, orientation: int
) -> None:
    # Stored image for each tag, so that the transformation of the tag gives the upright digit (EXIF 2.3, 4.6.4).
    transpose = Image.Transpose
    stored = {
        1: None,
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_90,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_270,
    }[orientation]
    image = drawn() if stored is None else drawn().transpose(stored)
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(load_image(save(image, name, exif=exif)), canonical) < 0.12


def test_a_transparent_16_bit_background_is_white(save: Save, canonical: NDArray[np.float32]) -> None:
    values = np.asarray(drawn()).astype(np.uint16) * 257
    values[values == 65535] = 7  # nearly black, but declared transparent
    path = save(Image.fromarray(values), transparency=7)
    assert difference(load_image(path), canonical) < 0.12


def test_the_noise_of_a_camera_does_not_move_the_digit(save: Save, canonical: NDArray[np.float32]) -> None:
    noise = np.random.default_rng(0).normal(0, 6, (300, 300))
    picture = (np.asarray(drawn()) * 0.7 + 30 + noise).clip(0, 255).astype(np.uint8)
    assert difference(load_image(save(Image.fromarray(picture), "photo.jpg")), canonical) < 0.3


def test_images_of_mnist_stay_the_same(save: Save, mnist_mirror: Path) -> None:
    content = gzip.decompress((mnist_mirror / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)[:300]
    loaded = np.stack([load_image(save(Image.fromarray(image))) for image in images])
    shifts = np.abs([np.subtract(centre_of_mass(a), centre_of_mass(b)) for a, b in zip(loaded, images, strict=True)])
    assert shifts.mean() < 0.01  # pixels
    # Only the faintest edge, below the ink's threshold, may be lost.
    same = (np.abs(loaded - images / np.float32(255)) <= 0.1).all(axis=(1, 2))
    assert same.mean() >= 0.99


def test_enlarged_images_of_mnist_are_reduced_to_the_originals(save: Save, mnist_mirror: Path) -> None:
    content = gzip.decompress((mnist_mirror / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)[:100]
    enlarged = [Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC) for image in images]
    loaded = [load_image(save(image)) for image in enlarged]
    shifts = [np.subtract(centre_of_mass(a), centre_of_mass(b)) for a, b in zip(loaded, images, strict=True)]
    assert np.abs(shifts).mean() < 0.5  # pixels
    assert np.median([difference(a, b / np.float32(255)) for a, b in zip(loaded, images, strict=True)]) < 0.35


def error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_file_that_is_no_image_is_reported_in_one_line(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "a.png"
    assert error(path) == f"{path} does not exist"
    path.write_bytes(b"")
    assert error(path) == f"{path}: the file must be a PNG or JPEG image, but got an empty file"
    path.write_text("hello world\n" * 100)
    assert error(path) == f"{path}: the file must be a PNG or JPEG image, but got bytes that start with b'hello wo'"
    assert error(tmp_path) == f"{tmp_path}: the file must be a PNG or JPEG image, but got no regular file"
    gif = save(drawn().convert("P"), "a.gif")
    assert error(gif) == f"{gif}: the file must be a PNG or JPEG image, but got bytes that start with b'GIF87a,\\x01'"
    long = tmp_path / ("a" * 300)
    assert error(long) == f"{long}: the file must be readable, but got File name too long"


@pytest.mark.parametrize("color", [0, 255, (200, 30, 30), 127])
def test_a_blank_image_is_refused(save: Save, color: int | tuple[int, int, int]) -> None:
    path = save(Image.new("RGB" if isinstance(color, tuple) else "L", (50, 50), color))
    assert error(path) == f"{path}: the image must show a digit on a plain background, but got a contrast of 0%"


def test_a_digit_of_too_little_contrast_is_refused(save: Save) -> None:
    path = save(drawn().point(lambda v: 240 + v * 15 // 255))
    assert error(path) == f"{path}: the image must show a digit on a plain background, but got a contrast of 6%"


def test_a_truncated_png_is_refused(save: Save) -> None:
    path = save(drawn())
    path.write_bytes(path.read_bytes()[:-200])
    assert error(path).startswith(f"{path}: the image must be undamaged, but got ")


def test_a_truncated_jpeg_is_refused(save: Save) -> None:
    path = save(drawn(), "a.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert error(path).startswith(f"{path}: the image must be undamaged, but got image file is truncated")


def test_every_flipped_bit_of_a_png_is_detected(save: Save) -> None:
    path = save(drawn(size=40, height=30))
    content = path.read_bytes()
    for position in range(8, len(content) - 12):  # without the last chunk, which holds no pixels
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        assert error(path).startswith(f"{path}: the ")


def test_a_damaged_jpeg_is_read_or_refused(save: Save) -> None:
    path = save(drawn(size=40, height=30), "a.jpg")
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + random.bytes(1) + content[position + 1 :])
        with contextlib.suppress(InputError):  # a JPEG has no checksum, so some damage only changes the image
            assert load_image(path).shape == (28, 28)


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])  # Pillow warns about the first and raises for the others
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    assert error(path) == f"{path}: the image must have at most 89478485 pixels, but got more"


def test_a_bomb_in_a_text_chunk_is_refused(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("x", "0" * 50_000_000, zip=True)
    buffer = io.BytesIO()
    drawn().save(buffer, "PNG", pnginfo=text)
    path = tmp_path / "text.png"
    path.write_bytes(buffer.getvalue())
    assert error(path).startswith(f"{path}: the image must be undamaged, but got ")
