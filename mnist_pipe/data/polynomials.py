"""CRC-32 as arithmetic: the checksum of two byte strings after each other, from those of each.

A byte string is a polynomial over the integers modulo 2, and its CRC-32 the remainder modulo a fixed one. Strings after
each other add up, once the first is multiplied by a power of x. As in zlib, bit 31 of a number is the coefficient of
x^0, and bit 0 that of x^31.
"""

from __future__ import annotations

_MODULUS = 0xEDB88320
_ONE, _BYTE = 1 << 31, 1 << 23  # x^0 and x^8


def crc32_combine(first: int, second: int, num_bytes: int) -> int:
    """Return the CRC-32 of two byte strings after each other, from theirs and the length of the second.

    >>> import zlib
    >>> crc32_combine(zlib.crc32(b"mnist"), zlib.crc32(b"-pipe"), 5) == zlib.crc32(b"mnist-pipe")
    True
    """
    factor, power = _ONE, _BYTE
    while num_bytes:
        if num_bytes & 1:
            factor = _product(factor, power)
        power, num_bytes = _product(power, power), num_bytes >> 1
    return _product(factor, first) ^ second


def _product(first: int, second: int) -> int:
    """Return the product of two polynomials modulo that of CRC-32."""
    found = 0
    while first:
        if first & _ONE:
            found ^= second
        first = first << 1 & 0xFFFFFFFF
        second = second >> 1 ^ (_MODULUS if second & 1 else 0)
    return found
