"""Test which images a body contains, and that every other body is one line."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.images import load_image
from mnist_pipe.data.pictures import FORMATS
from mnist_pipe.errors import InputError
from mnist_pipe.serving.bodies import JSON, PICTURES, RAW, read_images

SHAPE = "the body: the array must be (28, 28) or (N, 28, 28), but got "
PIXEL = "the body: every pixel must be a whole number from 0 to 255, but got "
NO_JSON = "the body: must be JSON, but got "
NO_PICTURE = f"the body: the content must be {FORMATS}, but got bytes that start with b'no pictu'"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)


def refusal(body: bytes, kind: str = JSON, *, max_images: int = 10) -> str:
    with pytest.raises(InputError) as caught:
        read_images(body, kind, max_images=max_images, facts=MNIST)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def nested(content: Any) -> bytes:
    return json.dumps(content).encode()


def changed(value: object) -> bytes:
    """Return the first image as JSON, with `value` as its last pixel."""
    content = IMAGES[0].tolist()
    content[27][27] = value
    return nested(content)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(IMAGES.tobytes(), RAW), (nested(IMAGES.tolist()), JSON), (nested({"images": IMAGES.tolist()}), JSON)],
)
def test_arrays_are_returned_as_they_are(body: bytes, kind: str) -> None:
    found, doubt = read_images(body, kind, max_images=3, facts=MNIST)
    assert not doubt
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGES)


def test_one_array_needs_no_axis_of_images() -> None:
    found, _ = read_images(nested(IMAGES[0].tolist()), JSON, max_images=1, facts=MNIST)
    np.testing.assert_array_equal(found, IMAGES[:1])


COLOUR = Facts(shape=(3, 6, 8), labels=("cat", "dog"), resize="stretch", invert=False, background=(0, 0, 0))


def test_images_in_colour_are_taken_in_the_shape_of_the_models() -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 6, 8), dtype=np.uint8)
    for body, kind in ((images.tobytes(), RAW), (nested(images.tolist()), JSON)):
        found, _ = read_images(body, kind, max_images=2, facts=COLOUR)
        np.testing.assert_array_equal(found, images)
    for body, kind, message in (
        (nested(IMAGES[0].tolist()), JSON, "the body: the array must be (3, 6, 8) or (N, 3, 6, 8), but got (28, 28)"),
        (bytes(784), RAW, "the body: its length must be a multiple of 144 bytes, but got 784 bytes"),
    ):
        with pytest.raises(InputError) as caught:
            read_images(body, kind, max_images=2, facts=COLOUR)
        assert str(caught.value) == message


@pytest.mark.parametrize(("kind", "name"), [*zip(PICTURES, ("PNG", "JPEG", "BMP", "TIFF", "WEBP"), strict=True)])
def test_a_picture_in_colour_becomes_an_image_by_the_rule_of_the_data_set(kind: str, name: str) -> None:
    picture = Image.new("RGB", (80, 60), (200, 100, 50))
    picture.paste((0, 200, 250), (40, 0, 80, 60))
    stream = io.BytesIO()
    picture.save(stream, name)
    found, doubt = read_images(stream.getvalue(), kind, max_images=1, facts=COLOUR)
    assert (found.shape, doubt) == ((1, 3, 6, 8), "")
    for columns, colour in ((found[0, :, :, :3], (200, 100, 50)), (found[0, :, :, 5:], (0, 200, 250))):
        assert np.abs(columns - np.array(colour)[:, None, None]).max() <= 6  # JPEG and WebP lose some


@pytest.mark.parametrize(("kind", "name"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_a_picture_is_read_as_the_command_reads_it(kind: str, name: str, tmp_path: Any) -> None:
    picture = Image.new("L", (120, 90), 255)
    ImageDraw.Draw(picture).line((30, 10, 80, 10, 45, 80), fill=0, width=9)
    stream = io.BytesIO()
    picture.save(stream, name)
    (tmp_path / "picture").write_bytes(stream.getvalue())
    expected = load_image(tmp_path / "picture")
    found, doubt = read_images(stream.getvalue(), kind, max_images=1, facts=MNIST)
    np.testing.assert_array_equal(found, expected[np.newaxis])
    assert not doubt
    picture.paste(0, (100, 10, 110, 80))
    stream = io.BytesIO()
    picture.save(stream, name)
    found, doubt = read_images(stream.getvalue(), kind, max_images=1, facts=MNIST)
    assert (found.shape, doubt) == ((1, 28, 28), "has 2 digits, which are read as one")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", JSON, "the body: must contain a picture or arrays, but got nothing"),
        (b"", "image/png", "the body: must contain a picture or arrays, but got nothing"),
        (b"x" * 785, RAW, "the body: its length must be a multiple of 784 bytes, but got 785 bytes"),
        (b"no picture", "image/png", NO_PICTURE),
        (b"{", JSON, NO_JSON + "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[" * 100_000, JSON, NO_JSON + "bottomless nesting"),
        (b"\xff", JSON, NO_JSON + "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"image": []}', JSON, "the body: its keys must be images alone, but got image"),
        (b"[]", JSON, SHAPE + "(0,)"),
        (b"3", JSON, SHAPE + "()"),
        (nested([[1, 2], [3]]), JSON, SHAPE + "rows of unequal length"),
        (nested(IMAGES.reshape(3, 784).tolist()), JSON, SHAPE + "(3, 784)"),
        (changed(float("nan")), JSON, PIXEL + "nan"),
        (changed(float("inf")), JSON, PIXEL + "inf"),
        (changed(0.5), JSON, PIXEL + "0.5"),
        (changed(256), JSON, PIXEL + "256"),
        (changed(-1), JSON, PIXEL + "-1"),
        (changed(10**30), JSON, PIXEL + "object values"),
        (changed(None), JSON, PIXEL + "object values"),
        (nested([[True] * 28] * 28), JSON, PIXEL + "bool values"),
        (bytes(11 * 784), RAW, "the body: must contain at most 10 images, but got 11; send several requests"),
    ],
)
def test_a_bad_body_is_one_line(body: bytes, kind: str, message: str) -> None:
    assert refusal(body, kind) == message


def test_a_truncated_picture_is_damaged() -> None:
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(stream, "PNG")
    assert refusal(stream.getvalue()[:200], "image/png").startswith("the body: the image must be undamaged, but got ")
