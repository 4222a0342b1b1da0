"""Raw and normalized splits as arrays, with their Parquet schemas, readers, writers and checks.

Images are fixed-size binary: a list column stores a level per pixel and reads 3 to 5 times slower (measured: 60,000
normalized images in 0.06 s against 0.34 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.data.facts import Facts
from mnist_pipe.data.parquet import (
    RowGroup,
    array_values,
    column_values,
    read_columns,
    read_provenance,
    read_row_group,
    verify_columns,
    write_columns,
)
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.hardware import num_cpus

SIDE = 28  # these three are MNIST's, which the studies and benchmarks are about
PIXELS = SIDE * SIDE
NUM_CLASSES = 10
MAX_CLASSES = 256
"""Largest number of classes: a label is a byte."""

_INGEST_AGAIN = "run: dvc repro --force ingest"
_NORMALIZE_AGAIN = "run: dvc repro --force normalize"


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """One split as published."""

    images: NDArray[np.uint8]
    """Levels of the pixels, `(N, height, width)`, or `(N, channels, height, width)` if there are several channels."""
    labels: NDArray[np.uint8]
    """Classes, `(N,)`, as numbers from 0 on."""
    provenance: dict[str, Any]
    """Origin of the data, with at least `dataset`, the data set's name, and with the facts about it unless they are
    MNIST's; it is kept with the data up to the registry."""

    @property
    def facts(self) -> Facts:
        """Facts about the data set."""
        return Facts.of(self.provenance)


@dataclass(frozen=True, kw_only=True)
class NormalizedSplit:
    """One split, standardised with the mean and standard deviation of the training rows."""

    images: NDArray[np.float32]
    """Standardised images, in the shape of the raw ones."""
    labels: NDArray[np.uint8]
    """Classes, `(N,)`, as numbers from 0 on."""
    index: NDArray[np.uint32]
    """Row numbers in the raw split, `(N,)`."""
    provenance: dict[str, Any]
    """Origin of the data: `dataset`, `mean` and `std` on the [0, 1] scale (lists, by channel, if there are several
    channels), `shape`, `dtype`, `source_sha256`, and the other facts unless they are MNIST's."""

    @property
    def facts(self) -> Facts:
        """Facts about the data set."""
        return Facts.of(self.provenance)

    def first(self, num_rows: int | None) -> NormalizedSplit:
        """Return the split's first `num_rows` rows, or all rows if it is None; the arrays are views."""
        return replace(self, images=self.images[:num_rows], labels=self.labels[:num_rows], index=self.index[:num_rows])


Split = TypeVar("Split", RawSplit, NormalizedSplit)


def raw_schema(provenance: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of a raw split with this provenance."""
    return _schema(Facts.of(provenance).num_values)


def normalized_schema(provenance: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of a normalized split with this provenance."""
    schema = _schema(4 * Facts.of(provenance).num_values)
    return schema.append(pa.field("index", pa.uint32(), nullable=False))


def _schema(width: int) -> pa.Schema:
    return pa.schema(
        [pa.field("image", pa.binary(width), nullable=False), pa.field("label", pa.uint8(), nullable=False)]
    )


def write_all(folder: Path, splits: Mapping[str, Split], *, write: Callable[[Path, Split], None]) -> None:
    """Write each split with `write` to `<name>.parquet` in `folder`, in parallel.

    The encoder of one file uses a single thread.
    """
    with ThreadPoolExecutor(num_cpus()) as pool:
        list(pool.map(write, [folder / f"{name}.parquet" for name in splits], splits.values()))


def write_raw(path: Path, split: RawSplit) -> None:
    """Write a raw split to `path`, whole or not at all."""
    schema = raw_schema(split.provenance)
    columns = {"image": _binary(split.images, schema.field("image").type), "label": split.labels}
    write_columns(path, schema, columns, split.provenance)


def read_raw(path: Path) -> RawSplit:
    """Read a raw split from `path`.

    Raises:
        CorruptDataError: the file is not Parquet, has another schema or no rows, fails a checksum, or has a label
            without a class.
    """
    columns, provenance = read_columns(path, raw_schema, fix=_INGEST_AGAIN)
    facts = Facts.of(provenance)
    images, labels = columns["image"].reshape(-1, *facts.array_shape), columns["label"].reshape(-1)
    check_labels(path, labels, num_classes=facts.num_classes)
    return RawSplit(images=images, labels=labels, provenance=provenance)


def write_normalized(path: Path, split: NormalizedSplit) -> None:
    """Write a normalized split to `path`, whole or not at all."""
    schema = normalized_schema(split.provenance)
    columns = {
        "image": _binary(split.images.astype("<f4", copy=False), schema.field("image").type),
        "label": split.labels,
        "index": split.index,
    }
    write_columns(path, schema, columns, split.provenance)


def read_normalized(path: Path) -> NormalizedSplit:
    """Read a normalized split from `path`.

    Raises:
        CorruptDataError: as for `read_raw`, or a pixel is not finite.
    """
    facts = Facts.of(check_normalized(str(path)))

    def check(table: pa.Table, first_row: int) -> None:
        for images, _ in normalized_rows(table, facts=facts):
            check_finite(path, images, first_row=first_row, fix=_NORMALIZE_AGAIN)
            first_row += len(images)

    columns, provenance = read_columns(path, normalized_schema, check=check, fix=_NORMALIZE_AGAIN)
    images = columns["image"].view(np.dtype("<f4")).reshape(-1, *facts.array_shape)
    labels, index = columns["label"].reshape(-1), columns["index"].view(np.uint32).reshape(-1)
    check_labels(path, labels, num_classes=facts.num_classes)
    return NormalizedSplit(images=images, labels=labels, index=index, provenance=provenance)


def check_normalized(file: str, *, filesystem: fs.FileSystem | None = None) -> dict[str, Any]:
    """Return the provenance of a normalized split after checking its schema and metadata; only the footer is read.

    Raises:
        CorruptDataError: the file is not Parquet, or has another schema or no provenance.
        UnavailableError: the file system does not answer.
    """
    return read_provenance(file, layout=normalized_schema, filesystem=filesystem, fix=_NORMALIZE_AGAIN)


def verify_normalized(file: str, *, filesystem: fs.FileSystem | None = None) -> NDArray[np.int64]:
    """Check a normalized split as `read_normalized` does, from end to end, with at most 10,000 rows in memory.

    Returns:
        The number of rows of each class, int64 `(classes,)`.

    Raises:
        CorruptDataError: as for `read_normalized`.
        UnavailableError: the file system does not answer.
    """
    facts = Facts.of(check_normalized(file, filesystem=filesystem))
    counts = np.zeros(facts.num_classes, dtype=np.int64)

    def check(table: pa.Table, first_row: int) -> None:
        for images, labels in normalized_rows(table, facts=facts):
            check_finite(file, images, first_row=first_row, fix=_NORMALIZE_AGAIN)
            check_labels(file, labels, num_classes=facts.num_classes, first_row=first_row)
            counts[:] += np.bincount(labels, minlength=facts.num_classes)
            first_row += len(labels)

    verify_columns(file, normalized_schema, check=check, filesystem=filesystem, fix=_NORMALIZE_AGAIN)
    return counts


def normalized_rows(table: pa.Table, *, facts: Facts) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield the images and labels of each batch of a table that has the normalized schema, without a copy.

    Yields:
        Images, float32, as in `NormalizedSplit`, and labels, uint8 `(N,)`, both read-only.
    """
    for batch in table.to_batches():
        flat = array_values(batch.column("image"), np.dtype("<f4"), facts.num_values)
        images = flat.reshape(-1, *facts.array_shape)
        yield images, array_values(batch.column("label"), np.dtype(np.uint8), 1).reshape(-1)


def read_images(
    group: RowGroup, *, facts: Facts, is_raw: bool, filesystem: fs.FileSystem | None = None, fix: str = ""
) -> Iterator[pa.Table]:
    """Yield the rows of a row group as `read_row_group` does, after checking every image.

    Args:
        group: the row group.
        facts: the facts about its images.
        is_raw: the images are uint8; if False, they are float32 and every pixel must be finite.
        filesystem: where the file is; None is the local file system.
        fix: the remedy that the exceptions name.

    Raises:
        CorruptDataError: as for `read_row_group`, or an image is null or has a pixel that is not finite.
        UnavailableError: the file system does not answer.
    """
    row = group.first_row
    for table in read_row_group(group, filesystem=filesystem, fix=fix):
        missing = table.column("image").is_null().to_numpy()
        if missing.any():
            name = f"image[{row + missing.argmax()}]"
            raise CorruptDataError.invalid(group.file, name, "have a value", got="null", fix=fix)
        if not is_raw:
            values = column_values(table, "image", np.dtype("<f4"), facts.num_values)
            check_finite(group.file, values.reshape(-1, *facts.array_shape), first_row=row, fix=fix)
        yield table
        row += len(table)


def check_finite(where: object, images: NDArray[np.float32], *, first_row: int = 0, fix: str = "") -> None:
    """Raise an exception if a pixel is NaN or infinite.

    Args:
        where: the file, for the message.
        images: float32, as in `NormalizedSplit`.
        first_row: the number of the first image in the file, for the message.
        fix: the remedy that the exception names.

    Raises:
        CorruptDataError: a pixel is NaN or infinite; the message names the first one.
    """
    # One sum is a hundred times cheaper than isfinite over every pixel, and any NaN or infinity makes it not finite.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(images.sum())
    # If only the sum overflowed, no pixel is wrong.
    wrong = np.argwhere(~np.isfinite(images)) if suspicious else np.empty((0, images.ndim), int)
    if len(wrong):
        row, *place = wrong[0].tolist()
        name, got = f"image[{first_row + row}] at ({', '.join(map(str, place))})", images[tuple(wrong[0])]
        raise CorruptDataError.invalid(where, name, "be finite", got=got, fix=fix)


def check_labels(where: object, labels: NDArray[Any], *, num_classes: int, first_row: int = 0) -> None:
    """Raise an exception if a label has no class.

    Args:
        where: the file or split, for the message.
        labels: whole numbers `(N,)`.
        num_classes: the number of classes.
        first_row: the number of the first label in the file, for the message.

    Raises:
        CorruptDataError: a label has no class; the message names the first one and counts them.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        more = f" ({wrong.size} such labels)" if wrong.size > 1 else ""
        name, got = f"labels[{first_row + wrong[0]}]", f"{labels[wrong[0]]}{more}"
        raise CorruptDataError.invalid(where, name, f"be 0 to {num_classes - 1}", got=got)


def _binary(images: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return images as an array of the fixed-size binary type `kind`, without a copy if they are contiguous."""
    content = np.ascontiguousarray(images).reshape(len(images), -1)
    assert content.itemsize * content.shape[1] == kind.byte_width
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, pa.py_buffer(content)])
