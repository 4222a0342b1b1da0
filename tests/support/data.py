"""Small splits for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.splits import NormalizedSplit, RawSplit


def random_split(num_rows: int, random: np.random.Generator) -> RawSplit:
    """Random images, every class among them."""
    return RawSplit(
        images=random.integers(0, 256, (num_rows, 28, 28), dtype=np.uint8),
        labels=random.permutation(np.arange(num_rows) % 10).astype(np.uint8),
        provenance={"dataset": "toy", "fallback_for": None},
    )


def normalized_split(
    images: NDArray[np.float32], *, labels: NDArray[np.uint8] | None = None, **provenance: Any
) -> NormalizedSplit:
    """A split of (rows, 28, 28) images, of class 0 unless `labels` are given, with more `provenance` than `dataset`."""
    return NormalizedSplit(
        images=images,
        labels=np.zeros(len(images), dtype=np.uint8) if labels is None else labels,
        index=np.arange(len(images), dtype=np.uint32),
        provenance={"dataset": "toy", **provenance},
    )
