"""Strict reader and writer of the IDX format that MNIST was published in: every byte is checked before it is used.

A file is two zero bytes, a type byte (0x08, unsigned byte), the number of dimensions, each dimension as a big-endian
uint32, then the big-endian values in row-major order (LeCun, Cortes, Burges: "THE IDX FILE FORMAT",
yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import bz2
import lzma
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast
from zlib import error as DeflateError

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.arrays import grey_levels, images_of, labels_of, square
from mnist_pipe.data.compression import zlib
from mnist_pipe.errors import CorruptDataError, one_line

Kind = Literal["images", "labels"]
_UNSIGNED_BYTE = 0x08
_TYPES = {_UNSIGNED_BYTE: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 64  # the limit of numpy
_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"<": "HTML",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}
_CHUNK_BYTES = 1 << 20
_MAX_DICTIONARY = 1 << 28  # bytes; `xz -9` needs a quarter
_CODECS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "xz": (b"\xfd7zXZ\0", partial(lzma.LZMADecompressor, memlimit=_MAX_DICTIONARY)),
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
}
_QMNIST_COLUMNS = 8  # class, then facts about the writer


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


def read(path: Path, *, kind: Kind, max_bytes: int, member: str = "") -> NDArray[Any]:
    """Return the images or labels in an IDX file.

    The file may be gzip, xz or bzip2, whatever its name, and its values of any type of IDX: of images, whole numbers
    from 0 to 255, or grey levels that were divided by 255; of labels, whole numbers. Square images may also be flat,
    and colours the last dimension or the one before the height. Labels may have a second dimension of 1, or of the 8
    columns of QMNIST, of which the first is the class. Memory is bounded by `max_bytes` of content, one chunk of 1 MiB
    and a float64 array of the values if they are no bytes, whatever the size of the decompressed file.

    Args:
        path: the IDX file, or a zip file that contains it.
        kind: what the file holds.
        max_bytes: the largest size of the content.
        member: the name of the IDX file in a zip file.

    Returns:
        Images, uint8 `(N, height, width)` or `(N, height, width, 3)`, or labels, int64 `(N,)`.

    Raises:
        CorruptDataError: the compressed stream is damaged or cut short or has data after its end, the content exceeds
            `max_bytes` or is refused by `decode`, the file holds labels instead of images or the reverse, or a value is
            neither a grey level nor a whole number.
    """
    content = bytearray()
    with _opened(path, member) as stream:
        for chunk in _unpacked(stream, where=path):
            content += chunk
            if len(content) > max_bytes:
                raise CorruptDataError.invalid(path, "the content", f"be at most {max_bytes} bytes", got="more")
    array = decode(content, where=path)
    rest = tuple(length for length in array.shape[1:] if length > 1)
    found: Kind = "labels" if rest in ((), (_QMNIST_COLUMNS,)) else "images"
    if found != kind and (found == "labels" or len(rest) > 1 or square(rest[0])):
        rule = "NxHxW or NxHxWx3 (images)" if kind == "images" else "N or Nx1 (labels)"
        got = f"{'x'.join(map(str, array.shape))} ({found})"
        raise CorruptDataError.invalid(path, "the shape", f"be {rule}", got=got, fix="are the files swapped?")
    if kind == "images":
        return grey_levels(path, images_of(path, array))
    return labels_of(path, array[:, 0] if rest == (_QMNIST_COLUMNS,) else array)


@contextmanager
def _opened(path: Path, member: str) -> Iterator[BinaryIO]:
    """Yield the file, or its member if it is a zip file, whose CRC is checked at its end."""
    if not member:
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
            yield cast(BinaryIO, packed)
    except (zipfile.BadZipFile, DeflateError, LookupError, EOFError, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, CorruptDataError):
            raise
        raise CorruptDataError.invalid(path, member, "be intact in the zip file", got=one_line(error)) from error


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(partial(stream.read, _CHUNK_BYTES), b"")


def _unpacked(stream: BinaryIO, *, where: Path) -> Iterator[bytes]:
    """Yield the content of a file, which may be gzip, in chunks of at most 1 MiB, so that no bomb fills the memory.

    A gzip file may have several members, and zeros after the last one (RFC 1952, section 2.2; GNU gzip, "Tapes").
    """
    compressed = stream.read(_CHUNK_BYTES)
    for name, (magic, make) in _CODECS.items():
        if compressed.startswith(magic):
            yield from _inflated(stream, compressed, name=name, magic=magic, make=make, where=where)
            return
    if not compressed.startswith(_GZIP):
        is_named_gzip = where.suffix.lower() == ".gz" and not compressed.startswith(b"\0\0")
        if is_named_gzip or any(map(compressed.lstrip().startswith, _OTHER_FORMATS)):
            got = f"one that starts with {_shown(compressed)}" if compressed else "an empty file"
            raise CorruptDataError.invalid(where, "the file", "be IDX, gzip, xz or bzip2", got=got)
        yield compressed
        yield from _chunks(stream)
        return
    while compressed.startswith(_GZIP):
        inflater = zlib.decompressobj(wbits=31)  # 31: accept only a gzip header, and check its CRC
        while not inflater.eof:
            if not compressed:
                raise CorruptDataError.invalid(where, "the gzip stream", "be complete", got="a truncated one")
            try:
                yield inflater.decompress(compressed, _CHUNK_BYTES)
            except zlib.error as error:  # type: ignore[misc]  # their stub has it as an instance
                raise CorruptDataError.invalid(where, "the gzip stream", "be intact", got=str(error)) from error
            compressed = inflater.unconsumed_tail or (b"" if inflater.eof else stream.read(_CHUNK_BYTES))
        compressed = inflater.unused_data or compressed
        if len(compressed) < len(_GZIP):
            compressed += stream.read(_CHUNK_BYTES)
    while compressed:
        if compressed.strip(b"\0"):
            raise CorruptDataError.invalid(where, "the gzip stream", "end the file", got="more data after its end")
        compressed = stream.read(_CHUNK_BYTES)


def _inflated(
    stream: BinaryIO, compressed: bytes, *, name: str, magic: bytes, make: Callable[[], Any], where: Path
) -> Iterator[bytes]:
    """Yield the content of an xz or bzip2 file, of which `compressed` was read, in chunks of at most 1 MiB."""
    while compressed.startswith(magic):
        codec = make()
        while not codec.eof:
            if codec.needs_input and not compressed and not (compressed := stream.read(_CHUNK_BYTES)):
                raise CorruptDataError.invalid(where, f"the {name} stream", "be complete", got="a truncated one")
            try:
                yield codec.decompress(compressed, _CHUNK_BYTES)
            except (lzma.LZMAError, OSError, MemoryError) as error:
                raise CorruptDataError.invalid(where, f"the {name} stream", "be intact", got=one_line(error)) from error
            compressed = b""
        compressed = codec.unused_data
        if len(compressed) < len(magic):
            compressed += stream.read(_CHUNK_BYTES)
    while compressed:
        if compressed.strip(b"\0"):
            raise CorruptDataError.invalid(where, f"the {name} stream", "end the file", got="more data after its end")
        compressed = stream.read(_CHUNK_BYTES)


def _shown(start: bytes) -> str:
    text = repr(start[:4].decode("ascii", errors="backslashreplace"))
    found = next((name for magic, name in _OTHER_FORMATS.items() if start.lstrip().startswith(magic)), "")
    return f"{text} ({found})" if found else text
