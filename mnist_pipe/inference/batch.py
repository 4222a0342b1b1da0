"""The registered model on any number of rows: Parquet in, Parquet out, on every free CPU or GPU of the cluster.

Readers decode the rows, one actor per CPU (or per GPU, if there are any) computes, and this process writes the results
in the order of the input. Neither the input nor the output is ever in memory as a whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
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

from mnist_pipe.atomic import atomic_file, atomic_folder
from mnist_pipe.cluster.ordered_reader import read_in_order
from mnist_pipe.cluster.ray_session import Cluster, connected
from mnist_pipe.data import parquet, splits
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.data.splits import NUM_CLASSES, PIXELS, SIDE
from mnist_pipe.errors import BusyError, CorruptDataError, InputError
from mnist_pipe.training.loop import logits

if TYPE_CHECKING:
    import ray.data


RESULTS = pa.schema(
    [
        pa.field("prediction", pa.uint8(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field(
            "probabilities", pa.list_(pa.field("item", pa.float32(), nullable=False), NUM_CLASSES), nullable=False
        ),
    ]
)
"""What is added to the columns of the input other than `image`: the digit, its probability, and those of 0 to 9."""

_SHARD_ROWS = 250_000
_BLOCK_ROWS = 10_000  # small compared with the input, so that every actor has work
_ACTORS_PER_READER = 10  # one reader decodes 300,000 rows a second
_MODEL_KEY = b"mnist_pipe_model"
_MAX_WAIT_SECONDS = 10.0  # for a CPU or GPU of a busy cluster


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What `score` did."""

    num_rows: int
    seconds: float
    """From before Ray was joined or started to the last file."""
    start_seconds: float
    """Of these, until the first rows were scored: Ray and its actors start."""
    accuracy: float | None
    """In [0, 1], where the input has whole numbers as `label`; rows without one are left out."""


@dataclass(frozen=True, kw_only=True)
class _Input:
    groups: list[RowGroup]
    schema: pa.Schema
    is_raw: bool


@dataclass(frozen=True, kw_only=True)
class Model:
    """What scores."""

    name: str
    """`NAME/VERSION`; it is written to the output beside the digest of the files."""
    content_sha256: str
    network: nn.Module
    card: dict[str, Any]
    """At least `mean` and `std`, on the [0, 1] scale."""


def load(spec: str | None, *, root: Path) -> Model:
    """The registered version that `spec` stands for, as `predict.registered` has it.

    Raises:
        InputError: no such version.
        UnavailableError: there is no champion, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    from mnist_pipe.inference import predict
    from mnist_pipe.registry import mlflow_registry
    from mnist_pipe.training.checkpoint import load_model

    found = predict.registered(spec, root=root)
    network, card = load_model(mlflow_registry.download(found, root=root))
    name = f"{found.name}/{found.version}"
    return Model(name=name, content_sha256=found.content_sha256, network=network, card=card)


def score(location: str | Path, output: Path, *, model: Model, filesystem: fs.FileSystem | None = None) -> Scored:
    """Score every row of the Parquet file, or folder of them, at `location`, and write them to the folder `output`.

    The column `image` holds raw bytes, `fixed_size_binary[784]`, which are standardised by the figures in the model's
    card, or float32, `fixed_size_binary[3136]`, that this project standardised by those same figures. Every other
    column goes to the output, in the same order of rows, with `RESULTS` beside it. The output is there whole or not.
    `filesystem` is where `location` is, this machine by default.

    Raises:
        InputError: no such input, other columns, no rows, an output that is there already.
        CorruptDataError: a page that does not match its checksum, a pixel that is not finite.
        UnavailableError: the file system does not answer.
        BusyError: every CPU or GPU of the cluster is in use.
    """
    output = output.resolve()
    _check_output(output)
    found = _examine(location, filesystem=filesystem)
    if not found.is_raw:
        _check_figures(found.groups, model.card, filesystem=filesystem)
    started = time.perf_counter()
    with connected("score") as available, atomic_folder(output) as folder:
        scored = _scored(found, model, available=available, filesystem=filesystem)
        first = next(scored)
        start_seconds = time.perf_counter() - started
        tag = json.dumps({"model": model.name, "content_sha256": model.content_sha256})
        num_rows, accuracy = _write(folder, chain([first], scored), tag=tag)
        seconds = time.perf_counter() - started
    return Scored(num_rows=num_rows, seconds=seconds, start_seconds=start_seconds, accuracy=accuracy)


def _check_output(output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise InputError.invalid(output, "the output", "be new", got="one that exists", fix="remove it or name another")


def _examine(location: str | Path, *, filesystem: fs.FileSystem | None) -> _Input:
    """The parts of the input, once its columns have been checked, from the footers alone."""
    files = parquet.parquet_files(location, filesystem=filesystem)
    schemas = [parquet.read_schema(file, filesystem=filesystem) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if not schema.equals(schemas[0]):
            rule = f"be those of {files[0]}, ({_shown(schemas[0])})"
            raise InputError.invalid(file, "the columns", rule, got=f"({_shown(schema)})")
    schema = schemas[0]
    kind = schema.field("image").type if schema.names.count("image") == 1 else None
    if kind not in (pa.binary(PIXELS), pa.binary(4 * PIXELS)):
        rule = f"be fixed_size_binary[{PIXELS}] (bytes) or [{4 * PIXELS}] (float32)"
        got = f"({_shown(schema)})" if kind is None else kind
        raise InputError.invalid(files[0], "the column image", rule, got=got)
    for field in schema:
        if field.name in RESULTS.names or schema.names.count(field.name) > 1:
            rule = "have a name of its own"
            raise InputError.invalid(files[0], "every column", rule, got=repr(field.name), fix="rename it")
        if not _is_plain(field):
            # An extension type can run code while it is decoded.
            raise InputError.invalid(files[0], f"the column {field.name}", "be of a plain type", got=field.type)
    groups = [group for file in files for group in parquet.row_groups(file, filesystem=filesystem)]
    if not groups:
        raise InputError.invalid(location, "the input", "have rows", got=0)
    return _Input(groups=groups, schema=schema, is_raw=kind == pa.binary(PIXELS))


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _is_plain(field: pa.Field) -> bool:
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return False
    return all(_is_plain(field.type.field(number)) for number in range(field.type.num_fields))


def _check_figures(groups: Iterable[RowGroup], card: dict[str, Any], *, filesystem: fs.FileSystem | None) -> None:
    for file in sorted({group.file for group in groups}):
        provenance = parquet.read_provenance(file, filesystem=filesystem, fix="score the raw images")
        for key in ("mean", "std"):
            if provenance.get(key) != card[key]:
                rule = f"be {card[key]}, which the model was trained with"
                got = provenance.get(key)
                raise InputError.invalid(file, key, rule, got=got, fix="score the raw images")


def _scored(
    found: _Input,
    model: Model,
    *,
    available: Cluster,
    filesystem: fs.FileSystem | None,
) -> Iterator[pa.Table]:
    """The output's rows, in order."""
    import ray.data

    kind = "GPU" if available.num_gpus else "CPU"
    num_rows = sum(group.num_rows for group in found.groups)
    num_actors = min(_num_free(kind), -(-num_rows // _BLOCK_ROWS))

    def with_scores(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return dataset.map_batches(
            _Scorer,
            fn_constructor_args=(model.network, float(model.card["mean"]), float(model.card["std"]), found.is_raw),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0 if kind == "GPU" else 1,
            num_gpus=1 if kind == "GPU" else 0,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
        )

    return read_in_order(
        [(group,) for group in found.groups],
        partial(splits.read_images, is_raw=found.is_raw, filesystem=filesystem),
        node=None if filesystem else ray.get_runtime_context().get_node_id(),
        then=with_scores,
        readers=min(len(found.groups), num_actors if kind == "GPU" else 1 + num_actors // _ACTORS_PER_READER),
        block_bytes=_BLOCK_ROWS * found.schema.field("image").type.byte_width,
    )


def _num_free(kind: str) -> int:
    """The number of free CPUs or GPUs of the cluster, at least one, after a short wait for it."""
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while (free := int(ray.available_resources().get(kind, 0))) < 1:
        if time.monotonic() > deadline:
            raise BusyError.missing(f"no {kind}", state="is free", where="the cluster", fix="try again later")
        time.sleep(0.2)
    return free


def _images(rows: pa.Table, dtype: np.dtype[Any]) -> NDArray[Any]:
    return parquet.column_values(rows, "image", dtype, PIXELS).reshape(-1, SIDE, SIDE)


class _Scorer:
    """Computes the results of a block of rows; one instance in each actor."""

    def __init__(self, network: nn.Module, mean: float, std: float, is_raw: bool) -> None:
        self._is_raw = is_raw
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # On a CPU, 2.5 times as fast as the default layout.
        self._network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._grey_levels = ((np.arange(256) / 255 - mean) / std).astype(np.float32)  # as `normalize` has them

    def __call__(self, rows: pa.Table) -> pa.Table:
        images = _images(rows, np.dtype(np.uint8 if self._is_raw else "<f4"))
        if self._is_raw:
            images = self._grey_levels.take(images, mode="clip")
        outputs = logits(self._network, images)
        if not np.isfinite(outputs).all():
            raise CorruptDataError.invalid("the model", "every logit", "be finite", got=outputs.sum())
        # Not `evaluation.metrics`: its import of scipy would delay the start of every actor by 0.2 s.
        probabilities = torch.softmax(torch.from_numpy(outputs).double(), dim=1).float().numpy()
        digits = outputs.argmax(1)
        results = [
            pa.array(digits.astype(np.uint8)),
            pa.array(probabilities[np.arange(len(digits)), digits]),
            pa.FixedSizeListArray.from_arrays(probabilities.ravel(), type=RESULTS.field("probabilities").type),
        ]
        carried = rows.drop_columns(["image"])
        schema = pa.schema([*carried.schema, *RESULTS])
        return pa.Table.from_arrays([*carried.columns, *results], schema=schema)


def _write(folder: Path, blocks: Iterable[pa.Table], *, tag: str) -> tuple[int, float | None]:
    """Write the blocks to `part-00000.parquet` and so on; the number of rows, and the accuracy if they have labels."""
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
    """How many rows have a label that is a whole number, and how many of these are predicted right."""
    if "label" not in block.column_names or not pa.types.is_integer(block.schema.field("label").type):
        return 0, 0
    labels = block.column("label")
    return len(labels) - labels.null_count, pc.sum(pc.equal(labels, block.column("prediction"))).as_py() or 0
