"""Small splits for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.splits import NormalizedSplit, RawSplit
from mnist_pipe.params import loader
from mnist_pipe.params.schema import IngestParams
from tests.support import ROOT


def random_split(num_rows: int, random: np.random.Generator) -> RawSplit:
    """Return random images, uint8 `(num_rows, 28, 28)`, with randomly ordered labels that include every class."""
    return RawSplit(
        images=random.integers(0, 256, (num_rows, 28, 28), dtype=np.uint8),
        labels=random.permutation(np.arange(num_rows) % 10).astype(np.uint8),
        provenance={"dataset": "toy", "fallback_for": None},
    )


def ingest_params(**changes: Any) -> IngestParams:
    """Return the section `ingest` as it is shipped, with some keys changed."""
    shipped = loader.load(ROOT / "params.yaml", names=None).ingest
    return IngestParams.model_validate({**shipped.model_dump(), **changes})


def normalized_split(
    images: NDArray[np.float32], *, labels: NDArray[np.uint8] | None = None, **provenance: Any
) -> NormalizedSplit:
    """Return a split of images, float32 `(rows, 28, 28)`, of class 0 by default, with the given `provenance` added."""
    return NormalizedSplit(
        images=images,
        labels=np.zeros(len(images), dtype=np.uint8) if labels is None else labels,
        index=np.arange(len(images), dtype=np.uint32),
        provenance={"dataset": "toy", **provenance},
    )
