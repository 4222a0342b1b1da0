"""Small data set and a recipe for it, for the tests that start Ray."""

from __future__ import annotations

import numpy as np

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.training.recipe import Recipe
from tests.support.training import blobs

RECIPE = Recipe(
    model="convnet",
    model_params={"channels": [4, 8]},
    optimizer="adamw",
    learning_rate=0.003,
    batch_size=64,
    num_epochs=6,
    rotation_degrees=5,
    translation_pixels=1,
    precision="float32",
)


def split(num_rows: int, *, seed: int = 0) -> NormalizedSplit:
    """Return blobs as `normalize` would standardise them."""
    data = blobs(num_rows, seed=seed)
    return NormalizedSplit(
        images=data.images[:, 0].numpy(),
        labels=data.labels.numpy().astype(np.uint8),
        index=np.arange(num_rows, dtype=np.uint32),
        provenance={"dataset": "blobs", "mean": 0.1, "std": 0.25},
    )
