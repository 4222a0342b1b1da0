"""CRC-32 of what several threads have read, each its own part.

The checksum of a whole follows from those of its parts and their lengths, as in zlib's own `crc32_combine`, which
Python does not have: a CRC is the remainder of a polynomial over GF(2), and n bytes behind it multiply it by x**(8n).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from numpy.typing import NDArray

from mnist_pipe.machine import num_cpus

_POLYNOMIAL = 0xEDB88320  # of zlib, gzip and PNG, the lowest power in the highest bit
_ONE = 1 << 31
_MIN_BYTES = 1 << 20  # for a thread of its own


def of(content: NDArray[Any]) -> int:
    """The CRC-32 of a contiguous array, every processor at its own part of the rows."""
    num_rows = max(-(-len(content) // num_cpus()), -(-_MIN_BYTES * len(content) // max(content.nbytes, 1)), 1)
    parts = [content[start : start + num_rows] for start in range(0, len(content), num_rows)]
    with ThreadPoolExecutor(num_cpus()) as pool:
        return joined(
            (checksum, part.nbytes) for checksum, part in zip(pool.map(zlib.crc32, parts), parts, strict=True)
        )


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of parts one behind the other, from the CRC-32 and the number of bytes of each; of none it is 0."""
    whole = 0
    for checksum, num_bytes in parts:
        whole = _product(_shift(num_bytes), whole) ^ checksum
    return whole


@cache
def _shift(num_bytes: int) -> int:
    """x**(8 * num_bytes), by squaring."""
    power, square = _ONE, _ONE >> 8
    while num_bytes:
        if num_bytes & 1:
            power = _product(power, square)
        square = _product(square, square)
        num_bytes >>= 1
    return power


def _product(one: int, other: int) -> int:
    """Of two polynomials of degree below 32, modulo that of the checksum."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product
