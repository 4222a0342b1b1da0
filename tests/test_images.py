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

from mnist_pipe.data.facts import Facts
from mnist_pipe.data.images import examine, load_digits, load_image
from mnist_pipe.data.pictures import FORMATS, Picture, read_picture
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


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the sum of absolute differences, relative to the ink of `b`."""
    return float(np.abs(a.astype(float) - b).sum() / b.sum())


def centre_of_mass(image: NDArray[np.uint8]) -> tuple[float, float]:
    y, x = np.indices(image.shape)
    return float((image * y).sum() / image.sum()), float((image * x).sum() / image.sum())


@pytest.fixture
def canonical(save: Save) -> NDArray[np.uint8]:
    return load_image(save(drawn(), "canonical.png"))


@pytest.mark.parametrize("digit", "0123456789")
def test_a_digit_fills_a_box_of_20_pixels_and_its_mass_lies_in_the_centre(save: Save, digit: str) -> None:
    image = load_image(save(drawn(digit)))
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8
    assert image.min() == 0
    assert image.max() == 255
    rows, columns = (np.flatnonzero((image > 12).any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert np.abs(np.array(centre_of_mass(image)) - 14).max() <= 0.5


def test_the_aspect_ratio_is_kept(save: Save) -> None:
    image = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(image).rectangle((100, 50, 149, 249), fill=0)  # 50 wide, 200 high
    loaded = load_image(save(image))
    assert (loaded > 127).any(axis=1).sum() == 20
    assert (loaded > 127).any(axis=0).sum() == 5


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
    "12 bits in 16": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 16),
    "white, drawn in the alpha channel": lambda image: Image.merge(
        "RGBA", [Image.new("L", image.size, 255)] * 3 + [ImageOps.invert(image)]
    ),
    "black, drawn in the alpha channel": lambda image: Image.merge(
        "RGBA", [Image.new("L", image.size, 0)] * 3 + [ImageOps.invert(image)]
    ),
}


@pytest.mark.parametrize("form", VARIANTS)
def test_the_same_digit_in_another_form_is_the_same_image(save: Save, canonical: NDArray[np.uint8], form: str) -> None:
    assert difference(load_image(save(VARIANTS[form](drawn()))), canonical) < 0.12


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read_in_each_of_its_colour_models(save: Save, canonical: NDArray[np.uint8], mode: str) -> None:
    path = save(drawn().convert(mode), "digit.jpg", quality=80)
    assert difference(load_image(path), canonical) < 0.12


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "L"), ("a.png", "L"), ("a.png", "I;16"), ("a.png", "RGBA")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(
    save: Save, canonical: NDArray[np.uint8], name: str, mode: str, orientation: int
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


def test_a_transparent_16_bit_background_is_white(save: Save, canonical: NDArray[np.uint8]) -> None:
    values = np.asarray(drawn()).astype(np.uint16) * 257
    values[values == 65535] = 7  # nearly black, but declared transparent
    path = save(Image.fromarray(values), transparency=7)
    assert difference(load_image(path), canonical) < 0.12


def test_the_noise_of_a_camera_does_not_move_the_digit(save: Save, canonical: NDArray[np.uint8]) -> None:
    noise = np.random.default_rng(0).normal(0, 6, (300, 300))
    picture = (np.asarray(drawn()) * 0.7 + 30 + noise).clip(0, 255).astype(np.uint8)
    assert difference(load_image(save(Image.fromarray(picture), "photo.jpg")), canonical) < 0.3


PAPERS: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "framed": lambda page: np.pad(page, 4, constant_values=0),
    "framed within a margin": lambda page: np.pad(np.pad(page, 4, constant_values=60), 6, constant_values=255),
    "squared": lambda page: np.minimum(page, np.where(np.add.outer(*[np.arange(300) % 50 == 7] * 2), 200, 255)),
    "ruled": lambda page: np.minimum(page, np.where(np.arange(300) % 50 == 7, 200, 255)[:, np.newaxis]),
    "in a shadow": lambda page: page * np.linspace(0.3, 1, 300),
    "in a round shadow": lambda page: page * (1 - 0.5 * np.hypot(*np.mgrid[0:1:300j, 0:1:300j])),
    "sprinkled with dust": lambda page: np.where(dust(), 0, page),
}


def dust() -> NDArray[np.bool_]:
    """Return where 40 specks of 2 x 2 pixels lie, bool `(300, 300)`."""
    specks = np.zeros((300, 300), dtype=bool)
    for row, column in np.random.default_rng(0).integers(0, 299, (40, 2)):
        specks[row : row + 2, column : column + 2] = True
    return specks


@pytest.mark.parametrize("paper", PAPERS)
def test_the_same_digit_on_uneven_paper_is_the_same_image(save: Save, canonical: NDArray[np.uint8], paper: str) -> None:
    picture = Image.fromarray(PAPERS[paper](np.asarray(drawn())).astype(np.uint8))
    assert difference(load_image(save(picture)), canonical) < 0.2


def test_a_printed_bar_is_not_taken_for_a_frame(save: Save) -> None:
    image = np.pad(np.zeros((200, 60), dtype=np.uint8), 5, constant_values=255)
    assert (load_image(save(Image.fromarray(image))) > 127).sum() == 20 * 6


def test_the_content_of_a_file_is_read_as_the_file_is(save: Save, canonical: NDArray[np.uint8]) -> None:
    path = save(drawn())
    np.testing.assert_array_equal(load_image(path.read_bytes(), name="the body"), canonical)


@pytest.fixture(scope="module")
def mnist_test(mnist_mirror: Path) -> NDArray[np.uint8]:
    """MNIST's test images, uint8 `(10_000, 28, 28)`."""
    content = gzip.decompress((mnist_mirror / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def test_images_of_mnist_stay_the_same(save: Save, mnist_test: NDArray[np.uint8]) -> None:
    images = mnist_test[:300]
    for form in (images, 255 - images):
        loaded = np.stack([load_image(save(Image.fromarray(image))) for image in form])
        assert (loaded == images).all(axis=(1, 2)).mean() >= 0.99
    for image in images[:20]:  # in every mode
        for mode in ("RGB", "RGBA", "P"):
            np.testing.assert_array_equal(load_image(save(Image.fromarray(image).convert(mode))), image)


def test_images_of_mnist_raise_no_doubt(mnist_test: NDArray[np.uint8]) -> None:
    doubts = [
        examine(Picture(pixels=np.stack([image] * 3, 2), size=(28, 28), name="")).doubt for image in mnist_test[:500]
    ]
    assert sum(map(bool, doubts)) <= 0.02 * len(doubts)


def test_enlarged_images_of_mnist_are_reduced_to_the_originals(save: Save, mnist_test: NDArray[np.uint8]) -> None:
    images = mnist_test[:100]
    enlarged = [Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC) for image in images]
    loaded = [load_image(save(image)) for image in enlarged]
    shifts = [np.subtract(centre_of_mass(a), centre_of_mass(b)) for a, b in zip(loaded, images, strict=True)]
    assert np.abs(shifts).mean() < 0.5  # pixels
    assert np.median([difference(a, b) for a, b in zip(loaded, images, strict=True)]) < 0.35


# --- numbers


def row(images: NDArray[np.uint8], *, scale: int = 1, light: bool = False) -> Image.Image:
    """Return digits, uint8 `(N, 28, 28)`, side by side, enlarged, light on dark or dark on light."""
    tiles = [np.asarray(Image.fromarray(one).resize((28 * scale,) * 2, Image.Resampling.BICUBIC)) for one in images]
    picture = np.concatenate(tiles, axis=1)
    return Image.fromarray(255 - picture if light else picture)


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_number_is_cut_into_its_digits(save: Save, mnist_test: NDArray[np.uint8], scale: int, light: bool) -> None:
    random = np.random.default_rng(scale)
    good = []
    for _ in range(20):
        images = mnist_test[random.integers(0, 10_000, random.integers(2, 6))]
        found = load_digits(save(row(images, scale=scale, light=light)))
        alone = [load_image(save(row(one[np.newaxis], scale=scale, light=light), "one.png")) for one in images]
        lefts = [box[0] for _, box in found]
        assert lefts == sorted(lefts)
        good.append(
            len(found) == len(alone)
            and all(difference(image, one) < 0.1 for (image, _), one in zip(found, alone, strict=True))
        )
    assert np.mean(good) >= 0.9  # some of MNIST's images hold a sliver of a neighbouring digit


def test_one_digit_is_the_same_image_as_a_number_and_as_a_digit(save: Save, mnist_test: NDArray[np.uint8]) -> None:
    paths = [save(row(mnist_test[[number]], scale=3), f"{number}.png") for number in range(100)]
    for path in [*paths, save(drawn("8")), save(drawn().convert("RGB"), "a.jpg", quality=70)]:
        [(image, _)] = load_digits(path)
        np.testing.assert_array_equal(image, load_image(path))


@pytest.mark.parametrize("side", [300, 2400])
def test_a_box_is_in_pixels_of_the_picture_at_full_size(save: Save, side: int) -> None:
    image = Image.new("L", (2 * side, side), 255)
    draw = ImageDraw.Draw(image)
    expected = [(side // 4, side // 3, side // 2, side // 2), (side, side // 4, side * 5 // 4, side * 3 // 4)]
    for left, top, right, bottom in expected:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=0)
    found = [box for _, box in load_digits(save(image))]
    assert np.abs(np.subtract(found, expected)).max() <= (0 if side == 300 else 2 * side / 300)
    turned = save(image.transpose(Image.Transpose.ROTATE_90), "turned.jpg", exif=orientation(6), quality=95)
    found = [box for _, box in load_digits(turned)]
    assert np.abs(np.subtract(found, expected)).max() <= max(2, 2 * side / 300)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def strokes(*boxes: tuple[int, int, int, int]) -> Image.Image:
    """Return a black page of 200 x 300 pixels with white rectangles: left, top, right and bottom, inclusive."""
    image = Image.new("L", (300, 200), 0)
    for box in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=255)
    return image


ONE = (40, 40, 60, 160)
NUMBERS: dict[str, tuple[Image.Image, int]] = {
    "two strokes": (strokes(ONE, (140, 40, 160, 160)), 2),
    "a stroke broken across": (strokes((40, 40, 60, 90), (40, 100, 60, 160), (140, 40, 160, 160)), 2),
    "a bar above, half of it over the body": (strokes((40, 70, 80, 160), (50, 40, 100, 55), (180, 40, 200, 160)), 2),
    "a bar right beside the body": (strokes((40, 60, 80, 160), (90, 40, 130, 55), (200, 40, 220, 160)), 2),
    "a low stroke far from the digits": (strokes(ONE, (140, 90, 180, 105), (260, 40, 280, 160)), 3),
    "a quarter of overlap": (strokes((40, 40, 80, 90), (70, 100, 110, 160)), 2),
    "a speck above a digit": (strokes(ONE, (70, 10, 74, 14), (140, 40, 160, 160)), 2),
    "touching digits": (strokes(ONE, (61, 40, 80, 160)), 1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_pieces_are_joined_to_digits_by_their_places(save: Save, name: str) -> None:
    picture, expected = NUMBERS[name]
    assert len(load_digits(save(picture))) == expected


def test_specks_do_not_change_a_digit(save: Save) -> None:
    [first, second] = load_digits(save(strokes(ONE, (140, 40, 160, 160))))
    [with_speck, other] = load_digits(save(strokes(ONE, (70, 10, 74, 14), (55, 170, 58, 173), (140, 40, 160, 160))))
    assert (with_speck.box, other.box) == (first.box, second.box)
    np.testing.assert_array_equal(with_speck.image, first.image)


def test_noise_and_jpeg_do_not_change_the_number_of_digits(save: Save, mnist_test: NDArray[np.uint8]) -> None:
    random = np.random.default_rng(0)
    good = []
    for _ in range(20):
        page = np.asarray(row(mnist_test[random.integers(0, 10_000, 4)], scale=4, light=True))
        photo = (page * 0.7 + 30 + random.normal(0, 6, page.shape)).clip(0, 255).astype(np.uint8)
        good.append(len(load_digits(save(Image.fromarray(photo), "photo.jpg", quality=80))) == 4)
    assert np.mean(good) >= 0.95


def test_a_texture_is_refused(save: Save) -> None:
    dots = np.random.default_rng(0).random((400, 400)) < 0.1
    texture = save(Image.fromarray(dots.astype(np.uint8) * 255), "texture.png")
    with pytest.raises(InputError, match=r"texture.png: the image must show a digit on a plain background, but got \d"):
        load_digits(texture)
    dashes = strokes(*((x, 50, x, 90) for x in range(0, 300, 2)))
    path = save(dashes.resize((3000, 200), Image.Resampling.NEAREST), "dashes.png")
    with pytest.raises(InputError) as caught:
        load_digits(path)
    assert str(caught.value) == f"{path}: the picture must show at most 100 digits, but got 150"


def test_a_huge_picture_takes_bounded_memory_after_decoding(save: Save) -> None:
    assert read_picture(save(Image.new("1", (60_000, 1000)))).pixels.size <= 3 * 512 * 512 * 1.1
    assert read_picture(save(Image.new("1", (60_000, 1)))).pixels.size <= 3 * 4096


# --- the rule of Fashion-MNIST

CLOTHES = Facts(resize="fit")


@pytest.fixture
def clothes() -> NDArray[np.uint8]:
    """Images as Fashion-MNIST has them, uint8 `(50, 28, 28)`: grey shapes up to two borders, on black."""
    random = np.random.default_rng(0)
    images = np.zeros((50, 28, 28), dtype=np.uint8)
    for image in images:
        left, right = sorted(random.choice(np.arange(1, 28), 2, replace=False))
        image[:, left:right] = random.integers(1, 256, (28, right - left))
    return images


@pytest.mark.parametrize("form", ["L", "RGB", "P"])
def test_an_image_of_the_data_set_comes_back_bit_by_bit(save: Save, clothes: NDArray[np.uint8], form: str) -> None:
    for image in clothes:
        np.testing.assert_array_equal(load_image(save(Image.fromarray(image).convert(form)), facts=CLOTHES), image)
        [(whole, box)] = load_digits(save(Image.fromarray(image)), facts=CLOTHES)
        np.testing.assert_array_equal(whole, image)
        assert box == (0, 0, 28, 28)


def test_a_light_background_is_inverted(save: Save, clothes: NDArray[np.uint8]) -> None:
    for image in clothes:
        np.testing.assert_array_equal(load_image(save(Image.fromarray(255 - image)), facts=CLOTHES), image)


def test_a_wide_picture_is_padded_with_its_background_and_keeps_its_place(save: Save) -> None:
    image = Image.new("L", (280, 140), 250)
    ImageDraw.Draw(image).rectangle((0, 50, 69, 89), fill=0)  # at the left border, neither enlarged nor centred
    found = load_image(save(image), facts=CLOTHES)
    assert (found[:7] == 5).all()
    assert (found[-7:] == 5).all()
    rows, columns = np.nonzero(found > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 15, 0, 6)


def test_a_plain_picture_is_refused_by_the_other_rule_too(save: Save) -> None:
    path = save(Image.new("L", (50, 50), 127))
    with pytest.raises(InputError) as caught:
        load_image(path, facts=CLOTHES)
    assert str(caught.value) == f"{path}: the image must show something, but got a plain grey of 127"


# --- bad input


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
    assert error(path) == f"{path}: the file must be {FORMATS}, but got an empty file"
    path.write_text("hello world\n" * 100)
    assert error(path) == f"{path}: the file must be {FORMATS}, but got bytes that start with b'hello wo'"
    assert error(tmp_path) == f"{tmp_path}: the file must be {FORMATS}, but got no regular file"
    gif = save(drawn().convert("P"), "a.gif")
    assert error(gif) == f"{gif}: the file must be {FORMATS}, but got bytes that start with b'GIF87a,\\x01'"
    long = tmp_path / ("a" * 300)
    assert error(long) == "…: the file must be readable, but got File name too long"


@pytest.mark.parametrize(
    ("content", "got"),
    [(b"", "no bytes"), (b"hello world", "bytes that start with b'hello wo'"), (b"\x89PNG", "bytes")],
)
def test_content_that_is_no_image_is_reported_under_its_name(content: bytes, got: str) -> None:
    with pytest.raises(InputError) as caught:
        load_image(content, name="the body")
    assert str(caught.value).startswith(f"the body: the content must be {FORMATS}, but got {got}")


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
