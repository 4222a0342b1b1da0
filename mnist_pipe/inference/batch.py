"""Batch inference with a registered model, from Parquet to Parquet, on every free CPU or GPU of the cluster.

Readers decode the rows, one actor per CPU (or per GPU, if there are any) computes, and this process writes the results
in the order of the input. Neither the input nor the output is ever in memory as a whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import nn

from mnist_pipe.atomic import atomic_file, atomic_folder, check_new_or_empty
from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.cluster.ordered_reader import read_in_order
from mnist_pipe.cluster.ray_session import Cluster, connected
from mnist_pipe.data import parquet
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.errors import BusyError, InputError
from mnist_pipe.inference import table
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.inference.table import Table

if TYPE_CHECKING:
    import ray.data


RESULTS = ("prediction", "probability", "probabilities")
"""The columns that replace the images in the output: the class, its probability, and those of all classes."""

_SHARD_ROWS = 250_000
_BLOCK_ROWS = 10_000  # of MNIST's size; small compared with the input, so that every actor has work
_ACTORS_PER_READER = 10  # one reader decodes 300,000 rows a second
_MODEL_KEY = b"mnist_pipe_model"
_MAX_WAIT_SECONDS = 10.0  # how long to wait for a CPU or GPU of a busy cluster


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of `score`."""

    num_rows: int
    seconds: float
    """Wall-clock seconds from before Ray is joined or started until the last file is written."""
    start_seconds: float
    """The part of `seconds` until the first rows are scored, in which Ray and its actors start."""
    accuracy: float | None
    """The accuracy in [0, 1] over the rows with a label; None without labels in an integer column `label`."""


def score(location: str | Path, output: Path, *, model: Classifier, filesystem: fs.FileSystem | None = None) -> Scored:
    """Predict every row of the Parquet files at `location` and write the results to the folder `output`.

    Each row is an image of the shape that the model takes. The column `image` holds its pixels as bytes or lists of
    numbers, or a picture, which may be the field `bytes` of a struct; or there is a column for each pixel. In colour
    the channels of a pixel stand beside each other, but in this project's own files and in lists of three lists. These
    grey levels are standardised with the mean and standard deviation in the model's card. The column may also be
    float32, which this project standardised with the same numbers. The output has all other columns, followed by
    `RESULTS`, and keeps the order of the rows. It is written whole or not at all.

    Args:
        location: a Parquet file, or a folder of them.
        output: a folder that is empty or does not exist.
        model: the model that predicts.
        filesystem: the file system of `location`; None is this machine's.

    Raises:
        InputError: the input does not exist, has no rows or other columns, or images of another shape or classes than
            the model's, or the output exists.
        CorruptDataError: a page does not match its checksum, a pixel or a logit is not finite.
        UnavailableError: the file system does not answer.
        BusyError: every CPU or GPU of the cluster is in use.
    """
    output = output.resolve()
    check_new_or_empty(output)
    found = table.examine(location, filesystem=filesystem)
    _check_names(found, found.groups[0].file)
    if found.is_ours:
        _check_provenance(found, model, filesystem=filesystem)
    found.check(model.facts)
    if not found.is_raw(model.facts):
        _check_mean_and_std(found.groups, model.card, filesystem=filesystem)
    started = time.perf_counter()
    with (
        connected("score") as available,
        closing(_scored(found, model, available=available, filesystem=filesystem)) as scored,
        atomic_folder(output) as folder,
    ):
        first = next(scored)
        start_seconds = time.perf_counter() - started
        tag = json.dumps({"model": model.name, "content_sha256": model.content_sha256, "labels": model.labels})
        exporter = Exporter(stage="score")
        num_rows, accuracy = _write(folder, _counted(chain([first], scored), exporter), tag=tag)
        seconds = time.perf_counter() - started
    return Scored(num_rows=num_rows, seconds=seconds, start_seconds=start_seconds, accuracy=accuracy)


def _check_names(found: Table, location: object) -> None:
    for name in RESULTS:
        if name in found.schema.names:
            rule = f"have a unique name other than {', '.join(RESULTS)}"
            raise InputError.invalid(location, "every column", rule, got=repr(name), fix="rename it")


def _check_provenance(found: Table, model: Classifier, *, filesystem: fs.FileSystem | None) -> None:
    """Check that files of this project have the images and classes that the model was trained with."""
    for file in sorted({group.file for group in found.groups}):
        own = Facts.of(parquet.read_provenance(file, filesystem=filesystem))
        model.facts.check_same(own, where=file, whose="the model's")


def _check_mean_and_std(
    groups: Iterable[RowGroup], card: Mapping[str, Any], *, filesystem: fs.FileSystem | None
) -> None:
    for file in sorted({group.file for group in groups}):
        provenance = parquet.read_provenance(file, filesystem=filesystem, fix="score the raw images")
        for key in ("mean", "std"):
            if provenance.get(key) != card[key]:
                rule = f"be {card[key]}, which the model was trained with"
                got = provenance.get(key)
                raise InputError.invalid(file, key, rule, got=got, fix="score the raw images")


def _scored(
    found: Table,
    model: Classifier,
    *,
    available: Cluster,
    filesystem: fs.FileSystem | None,
) -> Generator[pa.Table]:
    """Yield the rows of the output, in the order of the input."""
    import ray.data

    kind = "GPU" if available.num_gpus else "CPU"
    num_rows = sum(group.num_rows for group in found.groups)
    facts, is_raw = model.facts, found.is_raw(model.facts)
    block_rows = max(1, _BLOCK_ROWS * MNIST.num_values // facts.num_values)
    num_actors = min(_num_free(kind), -(-num_rows // block_rows))

    def with_scores(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return dataset.map_batches(
            _Scorer,
            fn_constructor_args=(model.network, dict(model.card), is_raw),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0 if kind == "GPU" else 1,
            num_gpus=1 if kind == "GPU" else 0,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
        )

    return read_in_order(
        [(group,) for group in found.groups],
        partial(found.read, facts=facts, filesystem=filesystem),
        node=None if filesystem else ray.get_runtime_context().get_node_id(),
        then=with_scores,
        # Beside GPUs, the CPUs have nothing else to do.
        readers=min(len(found.groups), available.num_cpus if kind == "GPU" else 1 + num_actors // _ACTORS_PER_READER),
        block_bytes=block_rows * facts.num_values * (1 if is_raw else 4),
    )


def _num_free(kind: str) -> int:
    """Return the number of free CPUs or GPUs of the cluster; wait up to `_MAX_WAIT_SECONDS` until there is one."""
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while (free := int(ray.available_resources().get(kind, 0))) < 1:
        if time.monotonic() > deadline:
            raise BusyError.missing(f"no {kind}", state="is free", where="the cluster", fix="try again later")
        time.sleep(0.2)
    return free


class _Scorer:
    """The predictor of blocks of rows; each actor has one instance."""

    def __init__(self, network: nn.Module, card: dict[str, Any], is_raw: bool) -> None:
        self._is_raw = is_raw
        torch.set_num_threads(1)
        self._classifier = Classifier(network, card=card)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return `rows` with `RESULTS` in place of the column `image`."""
        if self._is_raw:
            probabilities = self._classifier.probabilities(self._images(rows, np.dtype(np.uint8)))
        else:
            probabilities = self._classifier.probabilities_of_standardised(self._images(rows, np.dtype("<f4")))
        kind = pa.list_(pa.field("item", pa.float32(), nullable=False), probabilities.shape[1])
        results = [
            pa.array(probabilities.argmax(1).astype(np.uint8)),
            pa.array(probabilities.max(1)),
            pa.FixedSizeListArray.from_arrays(probabilities.ravel(), type=kind),
        ]
        carried = rows.drop_columns(["image"])
        own = [pa.field(name, found.type, nullable=False) for name, found in zip(RESULTS, results, strict=True)]
        schema = pa.schema([*carried.schema, *own])
        return pa.Table.from_arrays([*carried.columns, *results], schema=schema)

    def _images(self, rows: pa.Table, dtype: np.dtype[Any]) -> NDArray[Any]:
        facts = self._classifier.facts
        return parquet.column_values(rows, "image", dtype, facts.num_values).reshape(-1, *facts.array_shape)


def _counted(blocks: Iterable[pa.Table], exporter: Exporter) -> Iterator[pa.Table]:
    """Yield the blocks, and export how many images each has and how many a second came since the one before it."""
    began: float | None = None
    for block in blocks:
        now = time.perf_counter()
        exporter.images(len(block), seconds=now - began if began is not None else 0.0)
        began = now
        yield block


def _write(folder: Path, blocks: Iterable[pa.Table], *, tag: str) -> tuple[int, float | None]:
    """Write `part-00000.parquet` and so on; return the number of rows, and the accuracy if rows have labels."""
    num_rows = num_parts = num_labelled = num_correct = 0
    pending: list[pa.Table] = []

    def flush() -> None:
        nonlocal num_parts
        rows = pa.concat_tables(pending, promote_options="default").replace_schema_metadata({_MODEL_KEY: tag.encode()})
        with atomic_file(folder / f"part-{num_parts:05}.parquet") as temporary:
            pq.write_table(rows, temporary, compression="zstd", compression_level=1, write_page_checksum=True)
        num_parts += 1
        pending.clear()

    for block in blocks:
        num_rows += len(block)
        labelled, correct = _count_correct(block)
        num_labelled, num_correct = num_labelled + labelled, num_correct + correct
        pending.append(block)
        if sum(map(len, pending)) >= _SHARD_ROWS:
            flush()
    if pending:
        flush()
    return num_rows, num_correct / num_labelled if num_labelled else None


def _count_correct(block: pa.Table) -> tuple[int, int]:
    """Return the number of rows with an integer label, and how many of these are predicted correctly."""
    if "label" not in block.column_names or not pa.types.is_integer(block.schema.field("label").type):
        return 0, 0
    labels = block.column("label")
    return len(labels) - labels.null_count, pc.sum(pc.equal(labels, block.column("prediction"))).as_py() or 0
