"""Strict reader and writer of the IDX format that MNIST was published in: every byte is checked before it is used.

A file is two zero bytes, a type byte (0x08, unsigned byte), the number of dimensions, each dimension as a big-endian
uint32, then the values in row-major order (LeCun, Cortes, Burges: "THE IDX FILE FORMAT", yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from mnist_pipe.data.splits import SIDE
from mnist_pipe.errors import CorruptDataError

Kind = Literal["images", "labels"]
_NUM_DIMENSIONS: dict[Kind, int] = {"images": 3, "labels": 1}
_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 64  # the limit of numpy
_GZIP = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20


def encode(array: NDArray[np.uint8]) -> bytes:
    """Return `array`, uint8 of one or more dimensions, as the bytes of an IDX file.

    >>> encode(np.array([7, 2, 1], dtype=np.uint8)).hex(" ", -4)
    '00000801 00000003 070201'
    """
    assert array.dtype == np.uint8
    assert array.ndim >= 1
    return struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def decode(content: bytes | bytearray, *, where: object) -> NDArray[np.uint8]:
    """Return the array in an IDX file, uint8 of the shape in its header, over the same memory as `content`.

    Exceptions name the file by `where`.

    >>> decode(bytes.fromhex("00000801 00000003 070201"), where="labels").tolist()
    [7, 2, 1]
    >>> decode(bytes.fromhex("00000801 00000004 070201"), where="labels")
    Traceback (most recent call last):
    mnist_pipe.errors.CorruptDataError: labels: the file must hold 12 bytes for the 4 of its header, but got 11 bytes

    Raises:
        CorruptDataError: the header is not IDX, or the length of `content` is not the one that the header implies.
    """
    if len(content) < 4:
        raise CorruptDataError.invalid(where, "the header", "be 4 bytes or more", got=f"{len(content)} bytes")
    zero, kind, num_dimensions = struct.unpack_from(">HBB", content)
    if zero != 0 or kind != _UNSIGNED_BYTE or not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        rule = f"be 0x00000801 to 0x000008{_MAX_DIMENSIONS:02x}"
        raise CorruptDataError.invalid(where, "the magic number", rule, got=f"0x{content[:4].hex()}")
    header_bytes = 4 + 4 * num_dimensions
    if len(content) < header_bytes:
        rule = f"be {header_bytes} bytes for {num_dimensions} dimensions"
        raise CorruptDataError.invalid(where, "the header", rule, got=f"{len(content)} bytes")
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
    text = "x".join(map(str, shape))
    if 0 in shape:
        raise CorruptDataError.invalid(where, "every dimension", "be 1 or more", got=text)
    expected = header_bytes + math.prod(shape)
    if len(content) != expected:
        rule = f"hold {expected} bytes for the {text} of its header"
        raise CorruptDataError.invalid(where, "the file", rule, got=f"{len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)


def read(path: Path, *, kind: Kind, max_bytes: int) -> NDArray[np.uint8]:
    """Return the images, uint8 `(N, 28, 28)`, or labels, uint8 `(N,)`, in an IDX file.

    A file whose name ends in `.gz` is decompressed. Memory is bounded by `max_bytes` of content and one chunk of 1 MiB,
    whatever the size of the decompressed file.

    Raises:
        CorruptDataError: the file is not gzip, its stream is damaged or cut short or has data after its end, the
            content exceeds `max_bytes` or is refused by `decode`, the file holds labels instead of images or the
            reverse, or the images are not 28x28.
    """
    content = bytearray()
    with path.open("rb") as stream:
        for chunk in _inflated(stream, where=path) if path.suffix == ".gz" else _chunks(stream):
            content += chunk
            if len(content) > max_bytes:
                raise CorruptDataError.invalid(path, "the content", f"be at most {max_bytes} bytes", got="more")
    array = decode(content, where=path)
    if array.ndim != _NUM_DIMENSIONS[kind]:
        found = next((name for name, number in _NUM_DIMENSIONS.items() if number == array.ndim), "neither")
        rule = f"be 0x0000080{_NUM_DIMENSIONS[kind]} ({kind})"
        got = f"0x{content[:4].hex()} ({found})"
        raise CorruptDataError.invalid(path, "the magic number", rule, got=got, fix="are the files swapped?")
    if kind == "images" and array.shape[1:] != (SIDE, SIDE):
        got = f"{array.shape[1]}x{array.shape[2]}"
        raise CorruptDataError.invalid(path, "every image", f"be {SIDE}x{SIDE}", got=got)
    return array


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(partial(stream.read, _CHUNK_BYTES), b"")


def _inflated(stream: BinaryIO, *, where: Path) -> Iterator[bytes]:
    """Yield the content of a gzip file of one member in chunks of at most 1 MiB, so that no bomb fills the memory."""
    start = stream.read(_CHUNK_BYTES)
    if not start.startswith(_GZIP):
        got = f"one that starts with {_shown(start)}" if start else "an empty file"
        raise CorruptDataError.invalid(where, "the file", "be gzip", got=got)
    inflater = isal_zlib.decompressobj(wbits=31)  # 31: accept only a gzip header, and check its CRC
    compressed = start
    while not inflater.eof:
        if not compressed:
            raise CorruptDataError.invalid(where, "the gzip stream", "be complete", got="a truncated one")
        try:
            yield inflater.decompress(compressed, _CHUNK_BYTES)
        except isal_zlib.error as error:  # type: ignore[misc]  # their stub has it as an instance
            raise CorruptDataError.invalid(where, "the gzip stream", "be intact", got=str(error)) from error
        compressed = inflater.unconsumed_tail or stream.read(_CHUNK_BYTES)
    if inflater.unused_data or compressed:
        raise CorruptDataError.invalid(where, "the gzip stream", "end the file", got="more data after its end")


def _shown(start: bytes) -> str:
    text = repr(start[:4].decode("ascii", errors="backslashreplace"))
    return f"{text} (HTML)" if start.lstrip()[:1] == b"<" else text
