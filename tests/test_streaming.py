"""Test streamed training rows: each once an epoch, in an order fixed by the seed, and none of them damaged."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from mnist_pipe.cluster.ray_session import Cluster, Scale
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.data.splits import NormalizedSplit, write_normalized
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.training import streaming
from mnist_pipe.training.batches import ALONE, Ranks, to_device
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.streaming import Arrays, Buffer, Shards, Stream
from tests.support import ray_data
from tests.support.ray_runs import ONE, TWO, fit
from tests.support.training import CPU, run

ROWS = 25_000  # three row groups

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=8)


def groups_of(sizes: list[int]) -> list[RowGroup]:
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        RowGroup(file="f", number=n, first_row=start, num_rows=size)
        for n, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]


def rows_of(pieces: list[streaming.Piece]) -> list[int]:
    return [piece.group.first_row + row for piece in pieces for row in range(piece.start, piece.stop)]


@given(sizes=sizes, size=st.integers(1, 5), data=st.data(), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_workers_divide_all_rows_and_each_has_its_share_of_every_batch(
    sizes: list[int], size: int, data: st.DataObject, seed: int, epoch: int
) -> None:
    total = sum(sizes)
    batch_size = data.draw(st.integers(min(size, total), total))
    shares = []
    for rank in range(size):
        ranks = Ranks(rank=rank, size=size)
        pieces = streaming.plan(groups_of(sizes), seed=seed, epoch=epoch, batch_size=batch_size, ranks=ranks)
        shares.append(rows_of(pieces))
        assert len(shares[-1]) >= total // batch_size * len(range(rank, batch_size, size))
    assert sorted(row for share in shares for row in share) == list(range(total))


def test_row_groups_have_another_order_in_another_epoch() -> None:
    orders = {
        tuple(rows_of(streaming.plan(groups_of([2] * 6), seed=seed, epoch=epoch, batch_size=4, ranks=Ranks())))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@given(sizes=sizes, buffer=st.integers(1, 60), data=st.data())
def test_the_buffer_yields_distinct_rows_within_its_limit(sizes: list[int], buffer: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, min(buffer, sum(sizes))))
    num_batches = sum(sizes) // batch_size
    read = 0

    def chunks() -> Iterator[Arrays]:
        nonlocal read
        for group in groups_of(sizes):
            read += group.num_rows
            numbers = np.arange(group.first_row, group.first_row + group.num_rows)
            images = np.broadcast_to(numbers[:, None, None], (len(numbers), 28, 28)).astype(np.float32)
            yield images, (numbers % 10).astype(np.uint8)

    seen: list[int] = []
    random = np.random.default_rng(0)
    batches = Buffer(buffer, shape=(28, 28)).shuffle(
        chunks(), batch_size=batch_size, num_batches=num_batches, random=random
    )
    for images, labels in batches:
        assert len(images) == len(labels) == batch_size
        assert (images[:, 3, 4].astype(int) % 10 == labels).all()
        seen += images[:, 0, 0].astype(int).tolist()
        assert read <= len(seen) + buffer + max(sizes)
    assert len(set(seen)) == len(seen) == num_batches * batch_size
    assert set(seen) <= set(range(sum(sizes)))


# --- on Ray


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def split() -> NormalizedSplit:
    """Split whose images each contain the number of their row."""
    split = ray_data.split(ROWS)
    split.images[:, 0, 0] = np.arange(ROWS)
    return split


@pytest.fixture(scope="module")
def folder(split: NormalizedSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the same rows as one file, and as a folder of four."""
    folder = tmp_path_factory.mktemp("shards")
    write_normalized(folder / "whole.parquet", split)
    for number, rows in enumerate(np.array_split(np.arange(ROWS), 4)):
        part = dataclasses.replace(split, images=split.images[rows], labels=split.labels[rows], index=split.index[rows])
        write_normalized(folder / "parts" / f"{number}.parquet", part)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, cluster: Cluster) -> Shards:  # noqa: ARG001
    return streaming.shards(folder / "whole.parquet")


def batches(
    source: Shards, epochs: range, *, batch_size: int = 1000, seed: int = 0, ranks: Ranks = ALONE, num_epochs: int = 3
) -> list[list[int]]:
    """Return the row numbers of each batch of these epochs, after a check of shapes, dtypes and labels."""
    found = []
    rows = Stream(source, num_epochs=num_epochs, device=CPU, buffer_rows=5000)
    for epoch in epochs:
        for images, labels in rows.epoch(epoch, seed=seed, batch_size=batch_size, ranks=ranks):
            assert images.shape[1:] == (1, 28, 28)
            assert labels.dtype == torch.int64
            numbers = images[:, 0, 0, 0].int()
            assert torch.equal(numbers % 10, labels.int())
            found.append(numbers.tolist())
    return found


@pytest.fixture(scope="module")
def two_epochs(whole: Shards) -> list[list[int]]:
    """Batches of the first two epochs, 25 of each."""
    return batches(whole, range(2))


def test_each_epoch_yields_every_row_once_in_its_own_order(two_epochs: list[list[int]]) -> None:
    first, second = (list(chain(*two_epochs[start : start + 25])) for start in (0, 25))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert len({tuple(first), tuple(second), tuple(range(ROWS))}) == 3


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(
    whole: Shards, two_epochs: list[list[int]]
) -> None:
    assert batches(whole, range(1)) == two_epochs[:25] != batches(whole, range(1), seed=1)


def test_an_epoch_does_not_depend_on_earlier_reads(whole: Shards, two_epochs: list[list[int]]) -> None:
    assert batches(whole, range(1, 2)) == two_epochs[25:]


def test_a_stream_that_is_given_up_reads_no_more(whole: Shards) -> None:
    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]

    gc.collect()
    gc.disable()  # a later collection would end the reading too, and perhaps after Ray's end
    try:
        rows = Stream(whole, num_epochs=100, device=CPU)  # more than fits the memory that it may take
        next(rows.epoch(0, seed=0, batch_size=1000, ranks=ALONE))
        assert len(readers()) == 1
        del rows
        assert readers() == []
    finally:
        gc.enable()


def test_incomplete_batches_are_dropped_and_one_batch_may_be_all_rows(whole: Shards) -> None:
    assert [len(batch) for batch in batches(whole, range(1), batch_size=4000)] == [4000] * 6
    assert [len(batch) for batch in batches(whole, range(1), batch_size=ROWS)] == [ROWS]


def test_two_workers_divide_each_batch(whole: Shards) -> None:
    shares = [batches(whole, range(1), batch_size=501, ranks=Ranks(rank=rank, size=2)) for rank in range(2)]
    assert [{len(batch) for batch in share} for share in shares] == [{251}, {250}]
    seen = [row for share in shares for batch in share for row in batch]
    assert len(set(seen)) == len(seen) == 501 * (ROWS // 501)


@pytest.mark.parametrize("filesystem", [None, fs.LocalFileSystem()])
@pytest.mark.usefixtures("cluster")
def test_a_folder_of_shards_is_one_split(folder: Path, filesystem: fs.FileSystem | None) -> None:
    source = streaming.shards(str(folder / "parts"), filesystem=filesystem)
    assert source.num_rows == ROWS
    assert sorted(chain(*batches(source, range(1)))) == list(range(ROWS))


def test_streamed_rows_are_counted_by_class_and_are_not_sampled(split: NormalizedSplit, whole: Shards) -> None:
    rows = Stream(whole, num_epochs=1, device=CPU)
    assert rows.class_counts.tolist() == np.bincount(split.labels, minlength=10).tolist()
    with pytest.raises(InputError) as caught:
        next(rows.epoch(0, seed=0, batch_size=10, ranks=ALONE, balanced=True))
    assert str(caught.value) == (
        "train: balance must be none or weights where train.data is stream, which reads every row once, "
        "but got sampling"
    )


def write(folder: Path) -> Path:
    """Write the training rows of `ray_runs.fit` as one file, and return its path."""
    write_normalized(folder / "train.parquet", ray_data.split(3200))
    return folder / "train.parquet"


def flip(path: Path, *, row_group: int) -> None:
    """Change one bit of a page with images."""
    column = pq.read_metadata(path).row_group(row_group).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("cluster")
def test_a_damaged_shard_is_refused_before_training_starts(split: NormalizedSplit, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_normalized(path, split)
    flip(path, row_group=1)
    with pytest.raises(CorruptDataError) as caught:
        streaming.shards(path)
    assert str(caught.value).startswith(f"{path}: every page must match its checksum, but got ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("cluster")
def test_damage_during_an_epoch_ends_it_in_one_line(split: NormalizedSplit, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_normalized(path, split)
    source = streaming.shards(path)
    flip(path, row_group=1)
    with pytest.raises(CorruptDataError) as caught:
        batches(source, range(1))
    assert str(caught.value).startswith(f"{path}: every page must match its checksum, but got ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("cluster")
def test_shards_that_do_not_form_one_split_are_reported(split: NormalizedSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        streaming.shards(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no \*\.parquet file is in the folder"):
        streaming.shards(tmp_path)
    small = dataclasses.replace(split, images=split.images[:20], labels=split.labels[:20], index=split.index[:20])
    write_normalized(tmp_path / "a.parquet", small)
    write_normalized(tmp_path / "b.parquet", dataclasses.replace(small, provenance={**split.provenance, "mean": 0.5}))
    with pytest.raises(CorruptDataError, match=r"b\.parquet: mean must be 0\.1 as in .*a\.parquet, but got 0\.5"):
        streaming.shards(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "scale", [pytest.param(ONE, id="one worker", marks=pytest.mark.slow), pytest.param(TWO, id="two workers")]
)
@pytest.mark.usefixtures("cluster")
def test_a_streamed_training_is_as_accurate_as_one_in_memory(tmp_path: Path, scale: Scale) -> None:
    file = write(tmp_path)
    recipe = Recipe(**{**ray_data.RECIPE.to_dict(), "num_epochs": 3, "batch_size": 63})
    training, validation = (to_device(ray_data.split(n, seed=n % 2), device=CPU) for n in (3200, 501))
    in_memory, _ = run(recipe, training=training, validation=validation)
    streamed = fit(tmp_path, recipe=recipe, training=streaming.shards(file), scale=scale).history
    accuracies = [history[-1]["validation_accuracy"] for history in (in_memory, streamed)]
    assert min(accuracies) > 0.97, accuracies
    assert abs(accuracies[0] - accuracies[1]) < 0.02, accuracies


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_damage_during_a_training_ends_it_in_one_line(tmp_path: Path) -> None:
    file = write(tmp_path)
    source = streaming.shards(file)
    flip(file, row_group=0)
    with pytest.raises(CorruptDataError) as caught:
        fit(tmp_path, training=source)
    assert str(caught.value).startswith(f"{file}: every page must match its checksum, but got ")
    assert len(str(caught.value).splitlines()) == 1
