"""Streamed training rows, which need not fit in memory: Parquet shards, read through Ray Data during training.

The data are not shuffled as a whole. Each epoch takes the row groups in a random order, and each worker draws its
batches from a buffer through which its row groups pass. Rows that are sorted by label over many row groups should be
shuffled once, when the shards are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from mnist_pipe.cluster.ordered_reader import read_in_order
from mnist_pipe.data import parquet, splits
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.training.batches import Ranks

BUFFER_ROWS = 32_768
"""Number of rows in a worker's buffer (103 MB); more than 2 row groups as this project writes them."""
_VERIFIERS = 8
_MAX_PARTS = 8  # parts of an epoch: a lost reader starts its part again, so a part must not be the whole epoch

Arrays = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Images, float32, as in `NormalizedSplit`, and labels, uint8 `(rows,)`."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A training split in one or more Parquet files of the normalized schema."""

    groups: Sequence[RowGroup]
    """Row groups of all files."""
    provenance: dict[str, Any]
    """Provenance of the data as in `NormalizedSplit`, taken from the first file."""
    filesystem: fs.FileSystem | None
    """File system of the files, or None for the local disk."""
    class_counts: tuple[int, ...]
    """Number of rows of each class."""
    node: str | None
    """Id of the Ray node whose disk holds the files, or None if every node can read them."""

    @property
    def num_rows(self) -> int:
        """Number of rows of all files together."""
        return sum(group.num_rows for group in self.groups)

    @property
    def facts(self) -> Facts:
        """Facts about the data set."""
        return Facts.of(self.provenance)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one row group, from `start` to before `stop`."""

    group: RowGroup
    start: int
    stop: int


def shards(location: str | Path, *, filesystem: fs.FileSystem | None = None) -> Shards:
    """Return the shards at `location`, a Parquet file or a folder of them, after reading and checking each in full.

    Ray must be connected. Without `filesystem` the files are on this node's disk and are read by actors on this node;
    with it, every node of the cluster must be able to read them.

    Raises:
        InputError: there is no such file, or the folder has no Parquet file.
        CorruptDataError: `splits.read_normalized` would refuse a file, or the files come from different data sets, have
            other shapes or classes, or are standardised with different means or standard deviations.
        UnavailableError: the file system does not answer.
    """
    files = parquet.parquet_files(location, filesystem=filesystem)
    provenances = [splits.check_normalized(file, filesystem=filesystem) for file in files]
    for file, provenance in zip(files, provenances, strict=True):
        for key in ("dataset", "mean", "std", "shape", "labels"):
            if provenance.get(key) != provenances[0].get(key):
                rule = f"be {provenances[0].get(key)} as in {files[0]}"
                raise CorruptDataError.invalid(file, key, rule, got=provenance.get(key))
    with ThreadPoolExecutor(_VERIFIERS) as threads:
        counts = list(threads.map(partial(splits.verify_normalized, filesystem=filesystem), files))
    groups = [group for file in files for group in parquet.row_groups(file, filesystem=filesystem)]
    node = None if filesystem else ray.get_runtime_context().get_node_id()
    return Shards(
        groups=groups,
        provenance=provenances[0],
        filesystem=filesystem,
        class_counts=tuple(np.sum(counts, axis=0).tolist()),
        node=node,
    )


def plan(groups: Sequence[RowGroup], *, seed: int, epoch: int, batch_size: int, ranks: Ranks) -> list[Piece]:
    """Return the pieces that a worker reads in an epoch, in order.

    The row groups are put in an order drawn from (seed, epoch), and divided among the workers in proportion to each
    worker's rows of a batch, if necessary within a row group. Each worker thus has enough rows for every whole batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(groups)).tolist()
    num_rows = sum(group.num_rows for group in groups)
    shares = [len(range(rank, batch_size, ranks.size)) for rank in range(ranks.size)]
    before = sum(shares[: ranks.rank])
    first, last = (num_rows * part // batch_size for part in (before, before + shares[ranks.rank]))
    pieces, row = [], 0
    for group in (groups[number] for number in order):
        start, stop = max(first - row, 0), min(last - row, group.num_rows)
        if start < stop:
            pieces.append(Piece(group=group, start=start, stop=stop))
        row += group.num_rows
    return pieces


class Buffer:
    """Buffer of rows from which a worker draws its batches.

    One buffer serves all epochs, because new memory is slow to touch.
    """

    def __init__(self, num_rows: int, *, shape: tuple[int, ...]) -> None:
        """Make room for `num_rows` images of the shape `Facts.array_shape`."""
        self._images = np.empty((num_rows, *shape), dtype=np.float32)
        self._labels = np.empty(num_rows, dtype=np.uint8)
        self.num_rows = num_rows

    def shuffle(
        self, chunks: Iterator[Arrays], *, batch_size: int, num_batches: int, random: np.random.Generator
    ) -> Iterator[Arrays]:
        """Yield batches of distinct rows of `chunks`, each drawn at random from the rows that are in the buffer.

        Args:
            chunks: at least `num_batches * batch_size` rows, read as the buffer has room for them.
            batch_size: rows of a batch, at most the size of the buffer.
            num_batches: the number of batches to yield.
            random: the generator that draws the rows.

        Yields:
            Images, float32 `(batch_size, ...)`, and labels, uint8 `(batch_size,)`, both copies.
        """
        rest: Arrays | None = None

        def fill(slots: NDArray[np.int64]) -> int:
            """Put the next rows into the buffer at `slots`, int64 `(n,)`, and return their number."""
            nonlocal rest
            filled = 0
            while filled < len(slots):
                rest = rest or next(chunks, None)
                if rest is None:
                    break
                num_taken = min(len(slots) - filled, len(rest[1]))
                where = slots[filled : filled + num_taken]
                self._images[where], self._labels[where] = rest[0][:num_taken], rest[1][:num_taken]
                rest = (rest[0][num_taken:], rest[1][num_taken:]) if num_taken < len(rest[1]) else None
                filled += num_taken
            return filled

        full = np.arange(len(self._labels))
        full = full[: fill(full)]
        for _ in range(num_batches):
            drawn = random.choice(len(full), batch_size, replace=False, shuffle=False)
            slots = full[drawn]
            yield self._images[slots], self._labels[slots]
            refilled = fill(slots)
            full = np.delete(full, drawn[refilled:])


class Stream:
    """Streamed training batches of a worker; see `batches.Batches`."""

    def __init__(
        self, source: Shards, *, num_epochs: int, device: torch.device, buffer_rows: int = BUFFER_ROWS
    ) -> None:
        self.num_rows = source.num_rows
        self._facts = source.facts
        self.background = self._facts.empty_pixel(source.provenance)
        self._source, self._num_epochs, self._device = source, num_epochs, device
        self._buffer = Buffer(min(buffer_rows, self.num_rows), shape=self._facts.array_shape)
        self._next_epoch = -1
        self._chunks: Iterator[Arrays] = iter(())

    @property
    def class_counts(self) -> Tensor:
        """Number of rows of each class, int64 `(classes,)`."""
        return torch.tensor(self._source.class_counts, device=self._device)

    def epoch(
        self, number: int, *, seed: int, batch_size: int, ranks: Ranks, balanced: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's rows of each whole batch of an epoch; see `Batches.epoch`.

        The draws depend on the seed, the epoch and the ranks, and not on what was read before.

        Raises:
            InputError: the epoch is to be balanced, which streamed rows cannot be.
            CorruptDataError: a page does not match its checksum.
            UnavailableError: the file system does not answer.
        """
        if balanced:
            rule = "be none or weights where train.data is stream, which reads every row once"
            raise InputError.invalid("train", "balance", rule, got="sampling")
        if number != self._next_epoch:
            epochs = range(number, self._num_epochs)
            self._chunks = _read_ahead(self._source, epochs, seed=seed, batch_size=batch_size, ranks=ranks)
        self._next_epoch = number + 1
        pieces = plan(self._source.groups, seed=seed, epoch=number, batch_size=batch_size, ranks=ranks)
        share = len(range(ranks.rank, batch_size, ranks.size))
        chunks = _first_rows(self._chunks, sum(piece.stop - piece.start for piece in pieces))
        if share > self._buffer.num_rows:
            self._buffer = Buffer(share, shape=self._facts.array_shape)
        for images, labels in self._buffer.shuffle(
            chunks,
            batch_size=share,
            num_batches=self.num_rows // batch_size,
            random=np.random.default_rng([seed, number, ranks.rank]),
        ):
            yield self._on_device(images).view(-1, *self._facts.shape), self._on_device(labels).long()
        for _ in chunks:  # the next epoch starts after the rows that fill no whole batch
            pass

    def _on_device(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor


def _read_ahead(source: Shards, epochs: Sequence[int], *, seed: int, batch_size: int, ranks: Ranks) -> Iterator[Arrays]:
    """Yield the rows of the epochs; while one epoch ends, the next is read ahead.

    It is no method, as a stream that refers to its reader would keep it reading until the next garbage collection.
    Ray aborts a process in which a reader outlives its Ray and another Ray starts.
    """
    num_parts = max(1, min(len(source.groups), _MAX_PARTS))
    # One reader per worker is enough: it decodes 300,000 rows/s, and few models train on as many.
    parts = [(epoch, part) for epoch in epochs for part in range(num_parts)]

    def read(epoch: int, part: int) -> Iterator[pa.Table]:
        pieces = plan(source.groups, seed=seed, epoch=epoch, batch_size=batch_size, ranks=ranks)
        for piece in pieces[len(pieces) * part // num_parts : len(pieces) * (part + 1) // num_parts]:
            yield from parquet.read_row_group(
                piece.group,
                start=piece.start,
                stop=piece.stop,
                columns=["image", "label"],
                filesystem=source.filesystem,
            )

    facts = source.facts
    for block in read_in_order(parts, read, node=source.node, sharers=ranks.size):
        yield from splits.normalized_rows(block, facts=facts)


def _first_rows(chunks: Iterator[Arrays], num_rows: int) -> Iterator[Arrays]:
    """Yield the chunks that hold the next `num_rows` rows; no chunk may hold rows of two epochs."""
    while num_rows > 0:
        chunk = next(chunks)
        num_rows -= len(chunk[1])
        yield chunk
