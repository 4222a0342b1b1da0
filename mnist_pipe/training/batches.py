"""Where training batches come from, and which of their rows are a worker's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mnist_pipe.data.splits import NormalizedSplit


@dataclass(frozen=True, kw_only=True)
class DeviceSplit:
    """A split on its device."""

    images: Tensor
    """(rows, 1, 28, 28) float32, standardised."""
    labels: Tensor
    """(rows,) int64."""
    background: float
    """The value of an empty pixel."""

    @property
    def num_rows(self) -> int:
        """Of the split."""
        return len(self.labels)

    def epoch(self, number: int, *, seed: int, batch_size: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Batches` says, the rows in an order that (seed, epoch) draws."""
        order = torch.randperm(self.num_rows, generator=generators(seed, number)[0]).to(self.labels.device)
        for start in range(0, self.num_rows - batch_size + 1, batch_size):
            rows = order[start : start + batch_size][ranks.rank_slice]
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the workers; the default is a run of one."""

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """All-reduce, in place or not, of a small tensor."""

    @property
    def rank_slice(self) -> slice:
        """This process's rows of a batch."""
        return slice(self.rank, None, self.size)


class Batches(Protocol):
    """Where a worker's training batches come from: a `DeviceSplit` in memory, or a `stream.Stream`."""

    @property
    def num_rows(self) -> int:
        """Of the whole training split, over all workers together."""

    @property
    def background(self) -> float:
        """The value of an empty pixel."""

    def epoch(self, number: int, *, seed: int, batch_size: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's rows of each of the `num_rows // batch_size` whole batches of epoch `number`, from 0.

        A batch is (images, labels) as in `DeviceSplit`. No row is in two batches or with two workers.
        """


ALONE = Ranks()


def to_device(split: NormalizedSplit, *, device: torch.device) -> DeviceSplit:
    """The split as tensors on `device`.

    On the CPU the images stay where they are, which may be memory that nobody may write to, such as Ray's: a batch is a
    copy.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(split.images)
    return DeviceSplit(
        images=images.to(device).unsqueeze(1),
        labels=torch.tensor(split.labels, device=device, dtype=torch.int64),
        background=-float(split.provenance["mean"]) / float(split.provenance["std"]),
    )


def generators(seed: int, epoch: int) -> tuple[torch.Generator, torch.Generator]:
    """What draws the order of an epoch's rows, and what draws how each of them is moved."""
    order, chance = (torch.Generator().manual_seed(derived_seed(seed, epoch, which)) for which in (1, 2))
    return order, chance


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits that depends on all `numbers` and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
