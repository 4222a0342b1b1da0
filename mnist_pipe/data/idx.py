"""Strict reader and writer of the IDX format that MNIST was published in: every byte is checked before it is used.

A file is two zero bytes, a type byte (0x08, unsigned byte), the number of dimensions, each dimension as a big-endian
uint32, then the big-endian values in row-major order (LeCun, Cortes, Burges: "THE IDX FILE FORMAT",
yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from mnist_pipe.data.splits import SIDE
from mnist_pipe.errors import CorruptDataError

Kind = Literal["images", "labels"]
_UNSIGNED_BYTE = 0x08
_TYPES = {_UNSIGNED_BYTE: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 64  # the limit of numpy
_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"<": "HTML",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}
_CHUNK_BYTES = 1 << 20
_IMAGE_SHAPES = ((SIDE, SIDE), (SIDE * SIDE,))


def encode(array: NDArray[np.uint8]) -> bytes:
    """Return `array`, uint8 of one or more dimensions, as the bytes of an IDX file.

    >>> encode(np.array([7, 2, 1], dtype=np.uint8)).hex(" ", -4)
    '00000801 00000003 070201'
    """
    assert array.dtype == np.uint8
    assert array.ndim >= 1
    return struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def decode(content: bytes | bytearray, *, where: object) -> NDArray[Any]:
    """Return the array in an IDX file, of the type and shape in its header, over the same memory as `content`.

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
    if zero != 0 or kind not in _TYPES or not 1 <= num_dimensions <= _MAX_DIMENSIONS:
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
    dtype = np.dtype(_TYPES[kind])
    expected = header_bytes + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        rule = f"hold {expected} bytes for the {text} of its header"
        raise CorruptDataError.invalid(where, "the file", rule, got=f"{len(content)} bytes")
    return np.frombuffer(content, dtype=dtype, offset=header_bytes).reshape(shape)


def read(path: Path, *, kind: Kind, max_bytes: int) -> NDArray[np.uint8]:
    """Return the images, uint8 `(N, 28, 28)`, or labels, uint8 `(N,)`, in an IDX file.

    The file may be gzip, whatever its name, and its values of any type of IDX: whole numbers from 0 to 255, or grey
    levels that were divided by 255. Images may also be flat, `(N, 784)`, or have a dimension of 1 for their channel,
    and labels a second dimension of 1. Memory is bounded by `max_bytes` of content, one chunk of 1 MiB and a float64
    array of the values if they are no bytes, whatever the size of the decompressed file.

    Raises:
        CorruptDataError: the gzip stream is damaged or cut short or has data after its end, the content exceeds
            `max_bytes` or is refused by `decode`, the file holds labels instead of images or the reverse, the images
            are not 28x28, or a value is neither a grey level nor a whole number.
    """
    content = bytearray()
    with path.open("rb") as stream:
        for chunk in _unpacked(stream, where=path):
            content += chunk
            if len(content) > max_bytes:
                raise CorruptDataError.invalid(path, "the content", f"be at most {max_bytes} bytes", got="more")
    array = decode(content, where=path)
    shaped = _shaped(path, array, kind=kind)
    return grey_levels(path, shaped) if kind == "images" else whole_numbers(path, shaped)


def _shaped(path: Path, array: NDArray[Any], *, kind: Kind) -> NDArray[Any]:
    """Return the array without dimensions of 1, after checking that it holds images or labels."""
    shape = array.shape
    rest = tuple(length for length in shape[1:] if length > 1)
    found: Kind | None = "labels" if not rest else "images" if rest in _IMAGE_SHAPES else None
    if found == kind:
        return array.reshape(-1) if kind == "labels" else array.reshape(-1, SIDE, SIDE)
    text = "x".join(map(str, shape))
    if kind == "images" and len(rest) == 2:
        got = f"{rest[0]}x{rest[1]}"
        raise CorruptDataError.invalid(path, "every image", f"be {SIDE}x{SIDE}", got=got)
    rule = f"be N or Nx1 ({kind})" if kind == "labels" else f"be Nx{SIDE}x{SIDE} or Nx{SIDE * SIDE} ({kind})"
    got = f"{text} ({found})" if found else text
    raise CorruptDataError.invalid(path, "the shape", rule, got=got, fix="are the files swapped?" if found else "")


def grey_levels(where: object, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grey levels of any type as bytes, after checking that nothing is lost.

    Floating-point values of which none is above 1 are grey levels that were divided by 255.

    Raises:
        CorruptDataError: a value is no grey level; `where` is the place that the message names.
    """
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return whole_numbers(where, (255 * values.astype(np.float64)).round(3))  # float32 has rounded them
    return whole_numbers(where, values)


def whole_numbers(where: object, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return whole numbers of any type as bytes.

    Raises:
        CorruptDataError: a value is no whole number from 0 to 255; `where` is the place that the message names.
    """
    if values.dtype == np.uint8:
        return values
    is_whole = (values >= 0) & (values <= 255)
    if values.dtype.kind == "f":
        is_whole[is_whole] = values[is_whole] % 1 == 0
    if not is_whole.all():
        got = values[~is_whole].flat[0]
        raise CorruptDataError.invalid(where, "every value", "be a whole number from 0 to 255", got=got)
    return values.astype(np.uint8)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(partial(stream.read, _CHUNK_BYTES), b"")


def _unpacked(stream: BinaryIO, *, where: Path) -> Iterator[bytes]:
    """Yield the content of a file, which may be gzip, in chunks of at most 1 MiB, so that no bomb fills the memory.

    A gzip file may have several members, and zeros after the last one (RFC 1952, section 2.2; GNU gzip, "Tapes").
    """
    compressed = stream.read(_CHUNK_BYTES)
    if not compressed.startswith(_GZIP):
        is_named_gzip = where.suffix.lower() == ".gz" and not compressed.startswith(b"\0\0")
        if is_named_gzip or any(map(compressed.lstrip().startswith, _OTHER_FORMATS)):
            got = f"one that starts with {_shown(compressed)}" if compressed else "an empty file"
            raise CorruptDataError.invalid(where, "the file", "be gzip or IDX", got=got)
        yield compressed
        yield from _chunks(stream)
        return
    while compressed.startswith(_GZIP):
        inflater = isal_zlib.decompressobj(wbits=31)  # 31: accept only a gzip header, and check its CRC
        while not inflater.eof:
            if not compressed:
                raise CorruptDataError.invalid(where, "the gzip stream", "be complete", got="a truncated one")
            try:
                yield inflater.decompress(compressed, _CHUNK_BYTES)
            except isal_zlib.error as error:  # type: ignore[misc]  # their stub has it as an instance
                raise CorruptDataError.invalid(where, "the gzip stream", "be intact", got=str(error)) from error
            compressed = inflater.unconsumed_tail or (b"" if inflater.eof else stream.read(_CHUNK_BYTES))
        compressed = inflater.unused_data or compressed
        if len(compressed) < len(_GZIP):
            compressed += stream.read(_CHUNK_BYTES)
    while compressed:
        if compressed.strip(b"\0"):
            raise CorruptDataError.invalid(where, "the gzip stream", "end the file", got="more data after its end")
        compressed = stream.read(_CHUNK_BYTES)


def _shown(start: bytes) -> str:
    text = repr(start[:4].decode("ascii", errors="backslashreplace"))
    found = next((name for magic, name in _OTHER_FORMATS.items() if start.lstrip().startswith(magic)), "")
    return f"{text} ({found})" if found else text
