"""The Parquet schema of each layer, and the only code that reads or writes it.

Images are fixed-size binary: a list column carries a level per pixel and reads 3 to 5 times slower (measured, see
DESIGN). Page checksums are on, because without them most single-bit flips of a Parquet file read as wrong pixels. They
leave the footer bare, where a flip can still move columns or change the provenance, so each column and the metadata
carry a CRC-32 of their own.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_pipe.errors import CorruptDataError, describe, one_line
from mnist_pipe.files import replacing

SIDE = 28
PIXELS = SIDE * SIDE
NUM_CLASSES = 10

RAW_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(PIXELS), nullable=False),
        pa.field("label", pa.uint8(), nullable=False),
    ]
)
NORMALIZED_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(4 * PIXELS), nullable=False),
        pa.field("label", pa.uint8(), nullable=False),
        pa.field("index", pa.uint32(), nullable=False),
    ]
)
_METADATA_KEY = b"mnist_pipe"
_CHECKSUM_KEY = b"mnist_pipe_crc32"


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """One split as published."""

    images: NDArray[np.uint8]
    """(rows, 28, 28), 0 is background."""
    labels: NDArray[np.uint8]
    """(rows,), 0 to 9."""
    provenance: dict[str, Any]
    """At least `dataset`, the data set's name; it travels with the data to the registry."""


@dataclass(frozen=True, kw_only=True)
class NormalizedSplit:
    """One split, standardised with the mean and standard deviation of the training rows."""

    images: NDArray[np.float32]
    """(rows, 28, 28)."""
    labels: NDArray[np.uint8]
    """(rows,), 0 to 9."""
    index: NDArray[np.uint32]
    """(rows,), the row in the raw split."""
    provenance: dict[str, Any]
    """`dataset`, `mean` and `std` on the [0, 1] scale, `shape`, `dtype`, `source_sha256`."""


def write_raw(path: Path, split: RawSplit) -> None:
    """Write `split` to `path`, whole or not at all."""
    write(path, RAW_SCHEMA, {"image": _binary(split.images, PIXELS), "label": split.labels}, split.provenance)


def read_raw(path: Path) -> RawSplit:
    """Read a raw split.

    Raises:
        CorruptDataError: not Parquet, another schema, a failed page checksum, no rows, a label above 9.
    """
    table, provenance = read(path, RAW_SCHEMA, fix="run: dvc repro --force ingest")
    images = column_values(table, "image", np.dtype(np.uint8), PIXELS).reshape(-1, SIDE, SIDE)
    return RawSplit(images=images, labels=_labels(path, table), provenance=provenance)


def write_normalized(path: Path, split: NormalizedSplit) -> None:
    """Write `split` to `path`, whole or not at all."""
    columns = {
        "image": _binary(split.images.astype("<f4", copy=False), 4 * PIXELS),
        "label": split.labels,
        "index": split.index,
    }
    write(path, NORMALIZED_SCHEMA, columns, split.provenance)


def read_normalized(path: Path) -> NormalizedSplit:
    """Read a normalized split.

    Raises:
        CorruptDataError: as `read_raw`, and a pixel that is not finite.
    """
    fix = "run: dvc repro --force normalize"
    table, provenance = read(path, NORMALIZED_SCHEMA, fix=fix)
    images = column_values(table, "image", np.dtype("<f4"), PIXELS).reshape(-1, SIDE, SIDE)
    # One sum is a hundred times cheaper than isfinite over every pixel, and a NaN or infinity cannot hide from it.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(images.sum(dtype=np.float64))
    if suspicious:
        row, y, x = np.argwhere(~np.isfinite(images))[0]
        raise CorruptDataError(
            describe(path, f"image[{row}] at ({y}, {x})", "be finite", got=images[row, y, x], fix=fix)
        )
    index = column_values(table, "index", np.dtype(np.uint32), 1).reshape(-1)
    return NormalizedSplit(images=images, labels=_labels(path, table), index=index, provenance=provenance)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a split, from the file's footer alone."""
    fix = "run: dvc repro --force"
    return dict(_metadata(path, _schema(path, fix=fix), fix=fix)["provenance"])


def write(path: Path, schema: pa.Schema, columns: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write `columns`, each an array that Arrow takes, to `path`, whole or not at all."""
    arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()]
    table = pa.Table.from_arrays(arrays, schema=schema)
    metadata = json.dumps({"provenance": provenance, "crc32": _checksums(table)}, sort_keys=True).encode()
    table = table.replace_schema_metadata({_METADATA_KEY: metadata, _CHECKSUM_KEY: str(zlib.crc32(metadata)).encode()})
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=1,
            row_group_size=10_000,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def _schema(path: Path, *, fix: str) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
        str(schema)  # decodes every name
        return schema
    except FileNotFoundError:
        raise CorruptDataError(describe(path, "the file", "exist", got="nothing", fix=fix)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise CorruptDataError(describe(path, "the file", "be Parquet", got=one_line(fault)[:200], fix=fix)) from fault


def _metadata(path: Path, schema: pa.Schema, *, fix: str) -> dict[str, Any]:
    """`provenance`, and `crc32` by column."""
    metadata = schema.metadata or {}
    content = metadata.get(_METADATA_KEY, b"")
    if not content or metadata.get(_CHECKSUM_KEY) != str(zlib.crc32(content)).encode():
        got = "metadata that does not match its checksum" if content else "none"
        raise CorruptDataError(describe(path, "the metadata", "carry mnist_pipe's provenance", got=got, fix=fix))
    return dict(json.loads(content))


def _checksums(table: pa.Table) -> dict[str, int]:
    """The CRC-32 of each column's values."""
    checksums = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        checksum, width = 0, column.type.byte_width
        for chunk in column.chunks:
            checksum = zlib.crc32(chunk.buffers()[1].slice(chunk.offset * width, len(chunk) * width), checksum)
        checksums[name] = checksum
    return checksums


def read(path: Path, schema: pa.Schema, *, fix: str) -> tuple[pa.Table, dict[str, Any]]:
    """The table and its provenance.

    Raises:
        CorruptDataError: not Parquet, another schema, a checksum that does not hold, no rows; it tells the user `fix`.
    """
    # The schema is compared before a page is read: an extension type could run code while it is decoded.
    found = _schema(path, fix=fix)
    if not found.equals(schema):
        got = ", ".join(f"{field.name}: {field.type}" for field in found)
        want = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise CorruptDataError(describe(path, "the schema", f"be ({want})", got=f"({got})", fix=fix))
    metadata = _metadata(path, found, fix=fix)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as fault:
        raise CorruptDataError(
            describe(path, "every page", "match its checksum", got=one_line(fault)[:200], fix=fix)
        ) from fault
    if table.num_rows == 0:
        raise CorruptDataError(describe(path, "the table", "have rows", got=0, fix=fix))
    for name, checksum in _checksums(table).items():
        if checksum != metadata["crc32"][name]:
            raise CorruptDataError(describe(path, name, "match its checksum", got="other values", fix=fix))
    return table, metadata["provenance"]


def _labels(path: Path, table: pa.Table) -> NDArray[np.uint8]:
    labels: NDArray[np.uint8] = column_values(table, "label", np.dtype(np.uint8), 1).reshape(-1)
    check_labels(path, labels)
    return labels


def check_labels(where: object, labels: NDArray[np.uint8]) -> None:
    """Raise CorruptDataError that names the first label above 9 and counts them."""
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if wrong.size:
        more = f" ({wrong.size} such labels)" if wrong.size > 1 else ""
        raise CorruptDataError(describe(where, f"labels[{wrong[0]}]", "be 0 to 9", got=f"{labels[wrong[0]]}{more}"))


def _binary(images: NDArray[Any], width: int) -> pa.Array:
    """(rows, 28, 28) as one fixed-size binary array over the same memory."""
    content = np.ascontiguousarray(images).reshape(len(images), -1)
    assert content.itemsize * content.shape[1] == width
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(images), [None, pa.py_buffer(content)])


def column_values(table: pa.Table, name: str, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """The column as (rows, width), writable."""
    chunks = []
    for chunk in table.column(name).chunks:
        buffer = chunk.buffers()[1]
        start = chunk.offset * width
        chunks.append(np.frombuffer(buffer, dtype=dtype)[start : start + len(chunk) * width].reshape(-1, width))
    return np.concatenate(chunks)
