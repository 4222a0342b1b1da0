"""The training that the studies share: the splits in the form that they need, and `loop.train` run to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import forward
from mnist_pipe.training import ema, loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe

Splits = Mapping[str, NormalizedSplit]
"""The splits by name: train, validation and test."""


def device() -> torch.device:
    """Return the device that a run computes on: the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole(splits: Splits) -> NormalizedSplit:
    """Return the published training rows, train and validation together, in the published order."""
    parts = [splits["train"], splits["validation"]]
    index = np.concatenate([part.index for part in parts])
    order = np.argsort(index)
    images = np.empty((len(index), *parts[0].images.shape[1:]), np.float32)
    rank = np.argsort(order)
    start = 0
    for part in parts:  # makes one copy of the images; concatenating and sorting would make three
        images[rank[start : start + len(part.index)]] = part.images
        start += len(part.index)
    labels = np.concatenate([part.labels for part in parts])[order]
    return replace(parts[0], images=images, labels=labels, index=index[order])


def pixels(split: NormalizedSplit) -> NDArray[np.float32]:
    """Return the images, float32 `(N, 28, 28)`, on the published scale: from 0, the paper, to 1, ink."""
    mean, std = (float(split.provenance[name]) for name in ("mean", "std"))
    found: NDArray[np.float32] = np.clip(split.images * np.float32(std) + np.float32(mean), 0, 1)
    return found


def fit(
    recipe: Recipe, *, training: NormalizedSplit, watched: NormalizedSplit
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train by `recipe`; return the model and an entry for each epoch, as `loop.train` yields them.

    The entries call `watched` validation; nothing is learned from it. If the recipe averages the weights, the returned
    model has the average.

    Raises:
        DivergedError: the loss is not finite.
    """
    model, optimizer = loop.new_run(recipe, device=device())
    rows, others = (to_device(split, device=device()) for split in (training, watched))
    history = list(loop.train(recipe, model=model, optimizer=optimizer, training=rows, validation=others))
    ema.swap(optimizer)
    return model, history


def predicted(model: nn.Module, split: NormalizedSplit) -> NDArray[np.uint8]:
    """Return the digits, uint8 `(N,)`, that `model` predicts for the images of `split`."""
    digits: NDArray[np.uint8] = forward.logits(model, split.images).argmax(1).astype(np.uint8)
    return digits
