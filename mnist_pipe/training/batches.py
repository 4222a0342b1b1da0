"""Sources of training batches, and the rows of a batch that each worker takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mnist_pipe.data.facts import Background
from mnist_pipe.data.splits import NormalizedSplit


@dataclass(frozen=True, kw_only=True)
class DeviceSplit:
    """A split as tensors on the device that trains or evaluates on it."""

    images: Tensor
    """Images, float32 `(rows, channels, height, width)`, standardised."""
    labels: Tensor
    """Labels, int64 `(rows,)`."""
    background: Background
    """Value of an empty pixel after standardisation."""

    @property
    def num_rows(self) -> int:
        """Number of rows of the split."""
        return len(self.labels)

    @property
    def class_counts(self) -> Tensor:
        """Number of rows of each class, int64 `(classes,)`, up to the last class that has rows."""
        return torch.bincount(self.labels)

    def epoch(
        self, number: int, *, seed: int, batch_size: int, ranks: Ranks, balanced: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's rows of each whole batch, in an order drawn from (seed, epoch); see `Batches.epoch`."""
        generator = generators(seed, number)[0]
        if balanced:
            chances = class_weights(self.class_counts)[self.labels].cpu()
            order = torch.multinomial(chances, self.num_rows, replacement=True, generator=generator)
        else:
            order = torch.randperm(self.num_rows, generator=generator)
        order = order.to(self.labels.device)
        for start in range(0, self.num_rows - batch_size + 1, batch_size):
            rows = order[start : start + batch_size][ranks.rank_slice]
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Rank of this process among the workers; the default is a run with one worker."""

    rank: int = 0
    """Rank of this process, from 0."""
    size: int = 1
    """Number of workers."""
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Function that returns the sum of a small tensor over all workers, in place or not."""

    @property
    def rank_slice(self) -> slice:
        """Slice of a batch's rows that this process takes."""
        return slice(self.rank, None, self.size)


class Batches(Protocol):
    """Source of a worker's training batches: a `DeviceSplit` in memory, or a `streaming.Stream`."""

    @property
    def num_rows(self) -> int:
        """Number of rows of the whole training split, over all workers."""

    @property
    def background(self) -> Background:
        """Value of an empty pixel after standardisation."""

    @property
    def class_counts(self) -> Tensor:
        """Number of rows of each class, int64 `(classes,)`, up to the last class that has rows."""

    def epoch(
        self, number: int, *, seed: int, batch_size: int, ranks: Ranks, balanced: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's rows of each of the `num_rows // batch_size` whole batches of an epoch.

        No row is in two batches or goes to two workers, unless the epoch is balanced.

        Args:
            number: the epoch, from 0.
            seed: the seed of the run.
            batch_size: rows of a batch over all workers.
            ranks: the rank of this worker.
            balanced: draw the rows with replacement, each class equally often.

        Yields:
            Images, float32 `(rows, channels, height, width)`, and labels, int64 `(rows,)`, as in `DeviceSplit`.
        """


ALONE = Ranks()


def class_weights(counts: Tensor) -> Tensor:
    """Return the weight of a row of each class, float32 `(classes,)`: the inverse of the class's rows, 1 on average.

    `counts` are the rows of each class, int64 `(classes,)`; a class without rows has the weight 0.
    """
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 0.0).float()


def to_device(split: NormalizedSplit, *, device: torch.device) -> DeviceSplit:
    """Return the split as tensors on `device`.

    On the CPU the images are not copied, so their memory may be read-only, such as that of Ray's object store. That is
    safe because every batch is a copy.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(split.images)
    return DeviceSplit(
        images=images.to(device).view(-1, *split.facts.shape),
        labels=torch.tensor(split.labels, device=device, dtype=torch.int64),
        background=split.facts.empty_pixel(split.provenance),
    )


def generators(seed: int, epoch: int) -> tuple[torch.Generator, torch.Generator]:
    """Return two generators for an epoch: one draws the order of the rows, the other the augmentation of each row."""
    order, chance = (torch.Generator().manual_seed(derived_seed(seed, epoch, which)) for which in (1, 2))
    return order, chance


def derived_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all `numbers` and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
