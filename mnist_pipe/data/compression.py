"""DEFLATE and CRC-32: isal's or, where only the engine's packages are, those of Python's zlib, which take longer.

Both have the same interface, but for `crc32_combine`, which zlib has and Python does not pass on.
"""

from __future__ import annotations

try:
    from isal import isal_zlib as zlib
    from isal.isal_zlib import crc32, crc32_combine
except ImportError:
    import zlib  # type: ignore[no-redef]
    from zlib import crc32

    from mnist_pipe.data.polynomials import crc32_combine

__all__ = ["crc32", "crc32_combine", "zlib"]
