"""The joined checksum, against zlib's own of the whole."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_pipe.data import crc32


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_the_checksum_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    assert crc32.joined((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


@pytest.mark.parametrize("shape", [(0,), (0, 7), (1,), (1 << 20,), ((1 << 20) + 1,), (1, 3_000_001), (4099, 3136)])
def test_an_array_has_the_checksum_of_its_bytes(shape: tuple[int, ...]) -> None:
    content = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert crc32.of(content) == zlib.crc32(content.tobytes())


def test_parts_in_another_order_or_length_have_another_checksum() -> None:
    one, two = (zlib.crc32(b"1234"), 4), (zlib.crc32(b"56789"), 5)
    assert len({crc32.joined(parts) for parts in ([one, two], [two, one], [one, (two[0], 4)], [one])}) == 4
