"""Boosting by filtering (Drucker, Schapire & Simard 1993): three networks, the later two trained on hard patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_pipe.data import augment
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import forward
from mnist_pipe.training.batches import generators, to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.fitting import fit, predicted

_IMAGES_AT_ONCE = 1000


def train(
    recipe: Recipe,
    *,
    training: NormalizedSplit,
    watched: NormalizedSplit,
    num_passes: int,
    num_epochs: int,
) -> tuple[list[nn.Module], list[int]]:
    """Train the three networks; return them and the number of patterns that each of the later two learned from.

    The first network is trained by `recipe`. Distorted copies of the training rows then pass through it: the second
    learns from those that it gets wrong and as many that it gets right, the third from those on which the first and the
    second disagree. Both start from new weights.

    Args:
        recipe: the training of the first network; the later two change its seed and number of epochs.
        training: the rows to learn from.
        watched: the rows that are evaluated after each epoch; nothing is learned from them.
        num_passes: distorted copies of the training rows from which the patterns of a later network are selected.
        num_epochs: epochs of the later two networks over their patterns.
    """
    first, _ = fit(recipe, training=training, watched=watched)
    later = replace(recipe, num_epochs=num_epochs)
    wrong = filtered(training, recipe, range(num_passes), lambda rows: predicted(first, rows) != rows.labels)
    right = filtered(training, recipe, range(1), lambda rows: predicted(first, rows) == rows.labels)
    num_each = min(len(wrong.labels), len(right.labels))
    half = joined([wrong.first(num_each), right.first(num_each)])
    second, _ = fit(replace(later, seed=recipe.seed + 1000), training=half, watched=watched)
    passes = range(num_passes, 2 * num_passes)
    disputed = filtered(training, recipe, passes, lambda rows: predicted(first, rows) != predicted(second, rows))
    third, _ = fit(replace(later, seed=recipe.seed + 2000), training=disputed, watched=watched)
    return [first, second, third], [len(half.labels), len(disputed.labels)]


def added(networks: Sequence[nn.Module], split: NormalizedSplit) -> NDArray[np.float64]:
    """Return the sum of the networks' output probabilities, float64 `(N, 10)`, for the images of `split`."""
    outputs = [torch.from_numpy(forward.logits(network, split.images)).double().softmax(1) for network in networks]
    total: NDArray[np.float64] = torch.stack(outputs).sum(0).numpy()
    return total


def filtered(
    training: NormalizedSplit,
    recipe: Recipe,
    passes: range,
    keep: Callable[[NormalizedSplit], NDArray[np.bool_]],
) -> NormalizedSplit:
    """Return the rows that `keep` selects from distorted copies of the training rows, one copy for each of the passes.

    `keep` returns which rows of a split to keep, bool `(N,)`. The number of a pass seeds the distortions of its copy.
    """
    data = to_device(training, device=torch.device("cpu"))
    found = []
    for number in passes:
        _, chance = generators(recipe.seed, recipe.num_epochs + number)  # no copy equals one that was trained on
        moves = augment.draw(
            data.num_rows,
            rotation_degrees=recipe.rotation_degrees,
            translation_pixels=recipe.translation_pixels,
            generator=chance,
        )
        for start in range(0, data.num_rows, _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            images = augment.affine(data.images[part], moves[part], background=data.background).squeeze(1).numpy()
            found.append(
                _selected(
                    replace(training, images=images, labels=training.labels[part], index=training.index[part]), keep
                )
            )
    return joined(found)


def _selected(split: NormalizedSplit, keep: Callable[[NormalizedSplit], NDArray[np.bool_]]) -> NormalizedSplit:
    """Return the rows of `split` that `keep` selects."""
    rows = keep(split)
    return replace(split, images=split.images[rows], labels=split.labels[rows], index=split.index[rows])


def joined(parts: Sequence[NormalizedSplit]) -> NormalizedSplit:
    """Return the rows of all parts, one part after the other, as one split."""
    return replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        index=np.concatenate([part.index for part in parts]),
    )
