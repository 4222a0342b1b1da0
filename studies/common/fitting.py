"""What the studies share of training: the rows as they want them, and `loop.train` to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.training import ema, loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe

Splits = Mapping[str, NormalizedSplit]
"""By the names train, validation and test."""


def device() -> torch.device:
    """Where a run computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole(splits: Splits) -> NormalizedSplit:
    """The published training rows, train and validation together, in the published order."""
    parts = [splits["train"], splits["validation"]]
    index = np.concatenate([part.index for part in parts])
    order = np.argsort(index)
    images = np.empty((len(index), *parts[0].images.shape[1:]), np.float32)
    rank = np.argsort(order)
    start = 0
    for part in parts:  # one copy of the images and not three
        images[rank[start : start + len(part.index)]] = part.images
        start += len(part.index)
    labels = np.concatenate([part.labels for part in parts])[order]
    return replace(parts[0], images=images, labels=labels, index=index[order])


def pixels(split: NormalizedSplit) -> NDArray[np.float32]:
    """(rows, 28, 28) on the published scale, from 0, the paper, to 1, ink."""
    mean, std = (float(split.provenance[name]) for name in ("mean", "std"))
    found: NDArray[np.float32] = np.clip(split.images * np.float32(std) + np.float32(mean), 0, 1)
    return found


def fit(
    recipe: Recipe, *, training: NormalizedSplit, watched: NormalizedSplit
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train by `recipe` and return the model and an entry for each epoch, as `loop.train` yields them.

    What these call validation is `watched`, from which nothing is learned; an average of the weights is put in place.

    Raises:
        DivergedError: the loss is not finite.
    """
    model, optimizer = loop.new_run(recipe, device=device())
    rows, others = (to_device(split, device=device()) for split in (training, watched))
    history = list(loop.train(recipe, model=model, optimizer=optimizer, training=rows, validation=others))
    ema.swap(optimizer)
    return model, history


def predicted(model: nn.Module, split: NormalizedSplit) -> NDArray[np.uint8]:
    """(rows,) the digits that `model` takes the images of `split` for."""
    digits: NDArray[np.uint8] = loop.logits(model, split.images).argmax(1).astype(np.uint8)
    return digits
