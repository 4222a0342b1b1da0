"""Test the IDX codec: it reads what it writes, and refuses everything else."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mnist_pipe.data import idx
from mnist_pipe.errors import CorruptDataError

IMAGES = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
LABELS = np.array([7, 2, 1], dtype=np.uint8)
ANY_BYTES = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, max_side=6))


def write(folder: Path, content: bytes, *, name: str = "images.gz") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def error(path: Path, *, kind: idx.Kind = "images", max_bytes: int = 10_000) -> str:
    with pytest.raises(CorruptDataError) as caught:
        idx.read(path, kind=kind, max_bytes=max_bytes)
    return str(caught.value).replace(f"{path}", path.name)


def test_encode_writes_a_file_that_was_assembled_by_hand() -> None:
    by_hand = bytes.fromhex("00000801 00000003 070201")
    assert idx.encode(LABELS) == by_hand
    assert idx.decode(by_hand, where="hand").tolist() == [7, 2, 1]


@given(ANY_BYTES)
def test_every_array_survives_the_round_trip(array: np.ndarray) -> None:
    decoded = idx.decode(idx.encode(array), where="array")
    assert decoded.dtype == np.uint8
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


@given(st.binary(max_size=64))
def test_random_bytes_are_decoded_or_refused(content: bytes) -> None:
    with suppress(CorruptDataError):
        array = idx.decode(content, where="random")
        assert array.dtype != np.uint8 or idx.encode(array) == content


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=255), st.binary(max_size=16))
def test_a_false_header_allocates_no_memory(dimensions: list[int], rest: bytes) -> None:
    content = struct.pack(f">HBB{len(dimensions)}I", 0, 8, len(dimensions), *dimensions) + rest
    tracemalloc.start()
    try:
        idx.decode(content, where="header")
    except CorruptDataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0000", "x: the header must be 4 bytes or more, but got 2 bytes"),
        ("01000801 00000001 00", "x: the magic number must be 0x00000801 to 0x00000840, but got 0x01000801"),
        ("00000a01 00000001 00", "x: the magic number must be 0x00000801 to 0x00000840, but got 0x00000a01"),
        ("00000d01 00000001 00", "x: the file must hold 12 bytes for the 1 of its header, but got 9 bytes"),
        ("00000800", "x: the magic number must be 0x00000801 to 0x00000840, but got 0x00000800"),
        ("00000803 00000001", "x: the header must be 16 bytes for 3 dimensions, but got 8 bytes"),
        ("00000801 00000000", "x: every dimension must be 1 or more, but got 0"),
        ("00000801 00000003 0702", "x: the file must hold 11 bytes for the 3 of its header, but got 10 bytes"),
        ("00000801 00000003 07020100", "x: the file must hold 11 bytes for the 3 of its header, but got 12 bytes"),
        (
            "00000803 ffffffff ffffffff ffffffff 00",
            "x: the file must hold 79228162458924105385300197391 bytes for the 4294967295x4294967295x4294967295 of "
            "its header, but got 17 bytes",
        ),
    ],
)
def test_an_invalid_header_is_reported(content: str, message: str) -> None:
    with pytest.raises(CorruptDataError, match=f"^{re.escape(message)}$"):
        idx.decode(bytes.fromhex(content), where="x")


@pytest.mark.parametrize("name", ["images.gz", "images", "images.GZ", "images.idx3-ubyte"])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_images_and_labels_are_read_gzipped_or_not(tmp_path: Path, name: str, pack: Callable[..., bytes]) -> None:
    images = write(tmp_path, pack(idx.encode(IMAGES)), name=name)
    labels = write(tmp_path, pack(idx.encode(LABELS)), name=name.replace("images", "labels"))
    np.testing.assert_array_equal(idx.read(images, kind="images", max_bytes=10_000), IMAGES)
    np.testing.assert_array_equal(idx.read(labels, kind="labels", max_bytes=10_000), LABELS)


def typed(array: np.ndarray, code: int) -> bytes:
    """Return a big-endian array as the bytes of an IDX file with that type byte."""
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


SHAPES: list[tuple[idx.Kind, np.ndarray, tuple[int, ...]]] = [
    ("labels", LABELS, (3, 1)),
    ("labels", LABELS, (3, 1, 1)),
    ("labels", LABELS[:1], (1,)),
    ("images", IMAGES, (3, 784)),
    ("images", IMAGES, (3, 784, 1)),
    ("images", IMAGES, (3, 28, 28, 1)),
    ("images", IMAGES, (3, 1, 28, 28)),
    ("images", IMAGES[:1], (1, 1, 28, 28)),
]


@pytest.mark.parametrize(("kind", "array", "shape"), SHAPES)
def test_dimensions_of_one_are_left_out(
    tmp_path: Path, kind: idx.Kind, array: np.ndarray, shape: tuple[int, ...]
) -> None:
    path = write(tmp_path, idx.encode(array.reshape(shape)))
    np.testing.assert_array_equal(idx.read(path, kind=kind, max_bytes=10_000), array)


@pytest.mark.parametrize(("code", "dtype"), [(0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_values_of_every_type_are_read(tmp_path: Path, code: int, dtype: str) -> None:
    cases: list[tuple[idx.Kind, np.ndarray]] = [("images", IMAGES), ("labels", LABELS)]
    for kind, array in cases:
        path = write(tmp_path, gzip.compress(typed(array.astype(dtype), code)))
        found = idx.read(path, kind=kind, max_bytes=100_000)
        assert found.dtype == (np.uint8 if kind == "images" else np.int64)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("code", "dtype"), [(0x0D, ">f4"), (0x0E, ">f8")])
def test_grey_levels_that_were_divided_by_255_are_read(tmp_path: Path, code: int, dtype: str) -> None:
    path = write(tmp_path, typed((IMAGES / 255).astype(dtype), code))
    np.testing.assert_array_equal(idx.read(path, kind="images", max_bytes=100_000), IMAGES)


@pytest.mark.parametrize("value", [-1.0, 256.0, 0.3, 7.5, np.nan, np.inf])
def test_other_values_are_refused(tmp_path: Path, value: float) -> None:
    images = IMAGES.astype(">f4")
    images[1, 2, 3] = value
    assert error(write(tmp_path, typed(images, 0x0D)), max_bytes=100_000) == (
        f"images.gz: every value must be a whole number from 0 to 255, but got {np.float32(value)!s}"
    )


def test_a_gzip_file_may_have_several_members_and_zeros_behind_the_last(tmp_path: Path) -> None:
    """RFC 1952, section 2.2: "a gzip file consists of a series of members"; the gzip manual: tapes are padded."""
    content = idx.encode(IMAGES)
    one, two = (gzip.compress(content[start:stop]) for start, stop in ((0, 1000), (1000, None)))
    empty = gzip.compress(b"")
    tail = bytes(3 << 20)
    for packed in (one + two, one + two + b"\0", empty + one + empty + two + tail, gzip.compress(content) + bytes(511)):
        found = idx.read(write(tmp_path, packed), kind="images", max_bytes=10_000)
        np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1])
def test_members_may_meet_anywhere(tmp_path: Path, offset: int) -> None:
    size = (1 << 20) + offset - 18 - 5 * 17  # 18 bytes of gzip, and 5 for each stored block of at most 64 KiB
    first = np.zeros((size // 784, 28, 28), dtype=np.uint8)
    content = idx.encode(np.concatenate([first, IMAGES]))
    one, two = gzip.compress(content[:size], compresslevel=0), gzip.compress(content[size:])
    assert abs(len(one) - (1 << 20)) <= 8
    found = idx.read(write(tmp_path, one + two), kind="images", max_bytes=1 << 22)
    np.testing.assert_array_equal(found[-3:], IMAGES)


def test_a_damaged_gzip_stream_is_reported(tmp_path: Path) -> None:
    packed = gzip.compress(idx.encode(IMAGES), mtime=0)
    wrong_crc = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    no_idx = "images.gz: the file must be IDX, gzip, xz or bzip2, but got"
    cases = {
        b"": f"{no_idx} an empty file",
        b"<!DOCTYPE html><html>": f"{no_idx} one that starts with '<!DO' (HTML)",
        b"PK\3\4": rf"{no_idx} one that starts with 'PK\x03\x04' (zip)",
        b"PK\xff\xfe": rf"{no_idx} one that starts with 'PK\\xff\\xfe'",
        packed[:-1]: "images.gz: the gzip stream must be complete, but got a truncated one",
        packed + b"\1": "images.gz: the gzip stream must end the file, but got more data after its end",
        packed + b"\0\0\1": "images.gz: the gzip stream must end the file, but got more data after its end",
        packed + packed[:-1]: "images.gz: the gzip stream must be complete, but got a truncated one",
        packed + wrong_crc: "images.gz: the gzip stream must be intact, but got Error -6 Incorrect checksum found",
        wrong_crc: "images.gz: the gzip stream must be intact, but got Error -6 Incorrect checksum found",
    }
    assert {content: error(write(tmp_path, content)) for content in cases} == cases


def test_contents_of_the_wrong_kind_are_reported(tmp_path: Path) -> None:
    images, labels = "the shape must be NxHxW or NxHxWx3 (images)", "the shape must be N or Nx1 (labels)"
    cases: list[tuple[idx.Kind, np.ndarray, str]] = [
        ("images", LABELS, f"{images}, but got 3 (labels); are the files swapped?"),
        ("images", np.zeros((3, 8), np.uint8), f"{images}, but got 3x8 (labels); are the files swapped?"),
        ("labels", IMAGES, f"{labels}, but got 3x28x28 (images); are the files swapped?"),
        ("labels", IMAGES.reshape(3, 784), f"{labels}, but got 3x784 (images); are the files swapped?"),
        ("images", IMAGES[0], f"{images}, but got 28x28"),
        ("labels", np.zeros((3, 10), np.uint8), f"{labels}, but got 3x10"),
        ("images", np.zeros((3, 28, 28, 4), np.uint8), f"{images}, but got 3x28x28x4"),
    ]
    for kind, array, message in cases:
        path = write(tmp_path, gzip.compress(idx.encode(array)))
        assert error(path, kind=kind) == f"images.gz: {message}"


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((2, 32, 24), (2, 32, 24)), ((2, 6, 5, 3), (2, 6, 5, 3)), ((2, 3, 6, 5), (2, 6, 5, 3)), ((2, 48), (2, 4, 4, 3))],
)
def test_images_of_any_size_are_read_in_grey_and_in_colour(
    tmp_path: Path, stored: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(stored), dtype=np.uint32).astype(np.uint8).reshape(stored)
    found = idx.read(write(tmp_path, idx.encode(array)), kind="images", max_bytes=10_000)
    expected = array.transpose(0, 2, 3, 1) if stored[1:] == (3, 6, 5) else array.reshape(shape)
    np.testing.assert_array_equal(found, expected)


def test_labels_are_whole_numbers_of_any_size_or_the_first_of_eight_columns(tmp_path: Path) -> None:
    large = np.array([70_000, -3, 5], dtype=">i4")
    for array in (large, np.stack([large] * 8, axis=1).astype(">i4")):
        path = write(tmp_path, typed(array, 0x0C))
        assert idx.read(path, kind="labels", max_bytes=10_000).tolist() == [70_000, -3, 5]
    assert error(write(tmp_path, typed(np.array([1.0, 2.5], ">f4"), 0x0D)), kind="labels") == (
        "images.gz: label[1] must be a whole number, but got 2.5"
    )


CODECS: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("codec", CODECS)
def test_xz_and_bzip2_are_read_as_gzip_is(tmp_path: Path, codec: str) -> None:
    pack, content = CODECS[codec], idx.encode(IMAGES)
    for packed in (pack(content), pack(content[:1000]) + pack(content[1000:]), pack(content) + bytes(64)):
        np.testing.assert_array_equal(idx.read(write(tmp_path, packed), kind="images", max_bytes=10_000), IMAGES)
    packed = pack(content)
    assert (
        error(write(tmp_path, packed[:-1]))
        == f"images.gz: the {codec} stream must be complete, but got a truncated one"
    )
    assert error(write(tmp_path, packed + b"x")) == (
        f"images.gz: the {codec} stream must end the file, but got more data after its end"
    )
    assert error(write(tmp_path, pack(bytes(1 << 24))), max_bytes=1 << 20) == (
        "images.gz: the content must be at most 1048576 bytes, but got more"
    )
    silent = []
    for bit in range(0, 8 * len(packed), 5):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(CorruptDataError):
            found = idx.read(write(tmp_path, bytes(flipped)), kind="images", max_bytes=10_000)
            silent += [] if np.array_equal(found, IMAGES) else [bit]
    assert silent == []


def test_a_member_of_a_zip_file_is_read_and_every_flip_of_it_detected(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/images.gz", gzip.compress(idx.encode(IMAGES), mtime=0))
    intact = path.read_bytes()
    silent = []
    for bit in [None, *range(0, 8 * len(intact), 3)]:
        flipped = bytearray(intact)
        if bit is not None:
            flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with suppress(*([] if bit is None else [CorruptDataError])):
            found = idx.read(path, kind="images", member="in/images.gz", max_bytes=10_000)
            silent += [] if np.array_equal(found, IMAGES) else [bit]
    assert silent == []


def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(level=1, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])
    path = write(tmp_path, bomb)
    tracemalloc.start()
    message = error(path, max_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message == "images.gz: the content must be at most 1048576 bytes, but got more"
    assert peak < 8 << 20


def test_every_truncation_of_a_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(idx.encode(LABELS), mtime=0)
    for length in range(len(packed)):
        error(write(tmp_path, packed[:length]), kind="labels")


def test_no_bit_flip_of_a_gzip_file_changes_a_value(tmp_path: Path) -> None:
    """Check every bit; a flip in the time stamp or in padding is harmless, and SOURCES' digests refuse even those."""
    packed = gzip.compress(idx.encode(LABELS), mtime=0)
    refused = 0
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        path = write(tmp_path, bytes(flipped))
        try:
            assert idx.read(path, kind="labels", max_bytes=10_000).tolist() == LABELS.tolist()
        except CorruptDataError:
            refused += 1
    assert refused > 0.7 * 8 * len(packed)


def test_published_files_decode_to_the_documented_values(mnist_mirror: Path) -> None:
    images = idx.read(mnist_mirror / "t10k-images-idx3-ubyte.gz", kind="images", max_bytes=1 << 24)
    labels = idx.read(mnist_mirror / "t10k-labels-idx1-ubyte.gz", kind="labels", max_bytes=1 << 24)
    assert images.shape == (10_000, 28, 28)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Independent of this codec: the header has 16 bytes, and the rest are the pixels.
    content = gzip.decompress((mnist_mirror / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert images.tobytes() == content[16:]
