"""Arrays as text, for results that are JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(values: NDArray[Any]) -> str:
    """Return an array's bytes as text."""
    return base64.b64encode(values.tobytes()).decode()


def unpacked(text: str, dtype: type[np.generic]) -> NDArray[Any]:
    """Return the flat array of `dtype` that `packed` turned into `text`."""
    return np.frombuffer(base64.b64decode(text), dtype=dtype)
