"""The Parquet schema of each layer, and the only code that reads or writes it.

Images are fixed-size binary: a list column carries a level per pixel and reads 3 to 5 times slower (measured, see
DESIGN). Page checksums are on, because without them most single-bit flips of a Parquet file read as wrong pixels. They
leave the footer bare, where a flip can still move columns or change the provenance, so each column and the metadata
carry a CRC-32 of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32, crc32_combine
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.atomic import atomic_file
from mnist_pipe.errors import CorruptDataError, EnvironmentFault, InputError, describe, one_line
from mnist_pipe.hardware import num_cpus

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
_ROWS_AT_ONCE = 10_000
_ROWS_IN_GROUP = 14_000  # of the 55,000 and 60,000 rows of MNIST two processors have about the same share
_ROWS_IN_CACHE = 500  # 1.6 MB of float32, which a processor still has at hand when it checks what it has decoded
_NORMALIZE_AGAIN = "run: dvc repro --force normalize"


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

    def first(self, num_rows: int | None) -> NormalizedSplit:
        """Its first `num_rows` rows, or all."""
        return replace(self, images=self.images[:num_rows], labels=self.labels[:num_rows], index=self.index[:num_rows])


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A part of a Parquet file that can be read without the rest."""

    file: str
    """Its path in the file system that it was found in."""
    number: int
    first_row: int
    """Its place in the file."""
    num_rows: int


Split = TypeVar("Split", RawSplit, NormalizedSplit)


def write_all(folder: Path, splits: Mapping[str, Split], *, write: Callable[[Path, Split], None]) -> None:
    """`write` each split to `<name>.parquet` in `folder`, side by side: the encoder of a file is a single thread."""
    with ThreadPoolExecutor(num_cpus()) as pool:
        list(pool.map(write, [folder / f"{name}.parquet" for name in splits], splits.values()))


def write_raw(path: Path, split: RawSplit) -> None:
    """Write `split` to `path`, whole or not at all."""
    write(path, RAW_SCHEMA, {"image": _binary(split.images, PIXELS), "label": split.labels}, split.provenance)


def read_raw(path: Path) -> RawSplit:
    """Read a raw split.

    Raises:
        CorruptDataError: not Parquet, another schema, a failed page checksum, no rows, a label above 9.
    """
    columns, provenance = read(path, RAW_SCHEMA, fix="run: dvc repro --force ingest")
    images, labels = columns["image"].reshape(-1, SIDE, SIDE), columns["label"].reshape(-1)
    check_labels(path, labels)
    return RawSplit(images=images, labels=labels, provenance=provenance)


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

    def check(part: dict[str, NDArray[np.uint8]], first_row: int) -> None:
        check_finite(path, _float32(part["image"]), first_row=first_row, fix=_NORMALIZE_AGAIN)

    columns, provenance = read(path, NORMALIZED_SCHEMA, check=check, fix=_NORMALIZE_AGAIN)
    labels, index = columns["label"].reshape(-1), columns["index"].view(np.uint32).reshape(-1)
    check_labels(path, labels)
    return NormalizedSplit(images=_float32(columns["image"]), labels=labels, index=index, provenance=provenance)


def check_finite(where: object, images: NDArray[np.float32], *, first_row: int = 0, fix: str = "") -> None:
    """Raise CorruptDataError that names the first pixel that is NaN or infinite; row 0 is row `first_row` of `where`.

    `images` is (rows, 28, 28).
    """
    # One sum is a hundred times cheaper than isfinite over every pixel, and a NaN or infinity cannot hide from it.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(images.sum())
    wrong = np.argwhere(~np.isfinite(images)) if suspicious else np.empty((0, 3), int)  # none where the sum overflows
    if len(wrong):
        row, y, x = wrong[0]
        got = images[row, y, x]
        raise CorruptDataError(
            describe(where, f"image[{first_row + row}] at ({y}, {x})", "be finite", got=got, fix=fix)
        )


def read_provenance(
    path: Path | str, *, filesystem: fs.FileSystem | None = None, fix: str = "run: dvc repro --force"
) -> dict[str, Any]:
    """The provenance of a split, from the file's footer alone.

    Raises:
        CorruptDataError: not Parquet, no provenance.
        EnvironmentFault: the file system does not answer.
    """
    return dict(_metadata(path, read_schema(path, filesystem=filesystem, fix=fix), fix=fix)["provenance"])


def parquet_files(location: str | Path, *, filesystem: fs.FileSystem | None = None) -> list[str]:
    """The Parquet files that `location` stands for: itself, or every `*.parquet` in the folder, by name.

    Raises:
        InputError: there is none.
        EnvironmentFault: the file system does not answer.
    """
    where = filesystem or fs.LocalFileSystem()
    path = str(location if filesystem else Path(location).resolve())
    try:
        found = where.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            raise InputError(describe(location, "the file", "exist", got="nothing"))
        if found.is_file:
            return [path]
        files = sorted(file.path for file in where.get_file_info(fs.FileSelector(path)) if file.is_file)
    except OSError as fault:
        raise EnvironmentFault(describe(location, "the path", "be readable", got=one_line(fault)[:200])) from fault
    files = [file for file in files if file.endswith(".parquet")]
    if not files:
        raise InputError(describe(location, "the folder", "hold *.parquet files", got="none"))
    return files


def row_groups(file: str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> list[RowGroup]:
    """The parts of a Parquet file, from its footer alone, those without rows left out.

    Raises:
        CorruptDataError: it is not there, or not Parquet.
        EnvironmentFault: the file system does not answer.
    """
    groups, first_row = [], 0
    with _opened(file, filesystem=filesystem, fix=fix) as parquet:
        for number in range(parquet.metadata.num_row_groups):
            num_rows = parquet.metadata.row_group(number).num_rows
            if num_rows < 0:
                rule = "have 0 rows or more"
                raise CorruptDataError(describe(file, f"row group {number}", rule, got=num_rows, fix=fix))
            if num_rows:
                groups.append(RowGroup(file=file, number=number, first_row=first_row, num_rows=num_rows))
            first_row += num_rows
    return groups


def read_row_group(
    group: RowGroup,
    *,
    start: int = 0,
    stop: int | None = None,
    columns: list[str] | None = None,
    rows_at_once: int = _ROWS_AT_ONCE,
    use_threads: bool = True,
    filesystem: fs.FileSystem | None = None,
    fix: str = "",
) -> Iterator[pa.Table]:
    """Rows `start` to `stop` (all by default) of a row group, at most `rows_at_once` at once, whatever its size.

    The columns are checked by their pages' checksums, where the writer left any; the file's schema is the caller's
    concern.

    Raises:
        CorruptDataError: a checksum that does not hold, or another number of rows than the footer says.
        EnvironmentFault: the file system does not answer.
    """
    stop = group.num_rows if stop is None else stop
    with _opened(group.file, filesystem=filesystem, fix=fix) as parquet:
        seen = 0
        for batch in parquet.iter_batches(
            rows_at_once, row_groups=[group.number], columns=columns, use_threads=use_threads
        ):
            first, last = max(start - seen, 0), min(stop - seen, batch.num_rows)
            seen += batch.num_rows
            if first < last:
                table = pa.Table.from_batches([batch.slice(first, last - first)])
                table.validate(full=True)
                yield table.replace_schema_metadata(None)
            if seen >= stop:
                return
        rule = f"have {group.num_rows} rows"
        raise CorruptDataError(describe(group.file, f"row group {group.number}", rule, got=seen, fix=fix))


def read_images(
    group: RowGroup, *, is_raw: bool, filesystem: fs.FileSystem | None = None, fix: str = ""
) -> Iterator[pa.Table]:
    """As `read_row_group`, with every image checked: there, and where it is float32 and not raw, finite.

    Raises:
        CorruptDataError: as `read_row_group`, or an image that is null or has a pixel that is not finite.
        EnvironmentFault: the file system does not answer.
    """
    row = group.first_row
    for table in read_row_group(group, filesystem=filesystem, fix=fix):
        missing = table.column("image").is_null().to_numpy()
        if missing.any():
            name = f"image[{row + missing.argmax()}]"
            raise CorruptDataError(describe(group.file, name, "be there", got="null", fix=fix))
        if not is_raw:
            images = column_values(table, "image", np.dtype("<f4"), PIXELS).reshape(-1, SIDE, SIDE)
            check_finite(group.file, images, first_row=row, fix=fix)
        yield table
        row += len(table)


def check_normalized(file: str, *, filesystem: fs.FileSystem | None = None) -> dict[str, Any]:
    """The provenance of a normalized split, once its schema and its metadata have been checked, from the footer alone.

    Raises:
        CorruptDataError: not Parquet, another schema, no provenance.
        EnvironmentFault: the file system does not answer.
    """
    return dict(_normalized_metadata(file, filesystem=filesystem)["provenance"])


def verify_normalized(file: str, *, filesystem: fs.FileSystem | None = None) -> None:
    """Read a normalized split from end to end in the memory of 10,000 rows, and check all that `read_normalized` does.

    Raises:
        CorruptDataError: as `read_normalized`.
        EnvironmentFault: the file system does not answer.
    """
    expected = _normalized_metadata(file, filesystem=filesystem)["crc32"]
    found = dict.fromkeys(NORMALIZED_SCHEMA.names, 0)
    groups = row_groups(file, filesystem=filesystem, fix=_NORMALIZE_AGAIN)
    if not groups:
        raise CorruptDataError(describe(file, "the table", "have rows", got=0, fix=_NORMALIZE_AGAIN))
    for group in groups:
        row = group.first_row
        for table in read_row_group(group, filesystem=filesystem, fix=_NORMALIZE_AGAIN):
            found = _checksums(table, found)
            for images, labels in normalized_rows(table):
                check_finite(file, images, first_row=row, fix=_NORMALIZE_AGAIN)
                check_labels(file, labels, first_row=row)
                row += len(labels)
    _check_columns(file, found, expected, fix=_NORMALIZE_AGAIN)


def normalized_rows(table: pa.Table) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """The images (rows, 28, 28) and labels (rows,) of a table of the normalized schema, read-only, in its memory."""
    for batch in table.to_batches():
        images = values(batch.column("image"), np.dtype("<f4"), PIXELS).reshape(-1, SIDE, SIDE)
        yield images, values(batch.column("label"), np.dtype(np.uint8), 1).reshape(-1)


def write(path: Path, schema: pa.Schema, columns: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write `columns`, each an array that Arrow takes, to `path`, whole or not at all."""
    arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()]
    table = pa.Table.from_arrays(arrays, schema=schema)
    checksums = _checksums(table, dict.fromkeys(table.column_names, 0))
    metadata = json.dumps({"provenance": provenance, "crc32": checksums}, sort_keys=True).encode()
    table = table.replace_schema_metadata({_METADATA_KEY: metadata, _CHECKSUM_KEY: str(crc32(metadata)).encode()})
    with atomic_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="lz4",  # files are a third larger than with zstd, and read and written faster
            row_group_size=_ROWS_IN_GROUP,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_schema(path: Path | str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> pa.Schema:
    """The schema of a Parquet file, with its metadata.

    Raises:
        CorruptDataError: it is not there, or not Parquet.
        EnvironmentFault: the file system does not answer.
    """
    with _decoding(path, "the file", "be Parquet", fix=fix):
        schema = pq.read_schema(path, filesystem=filesystem)
        str(schema)  # decodes every name
        return schema


@contextmanager
def _opened(file: str, *, filesystem: fs.FileSystem | None, fix: str) -> Iterator[pq.ParquetFile]:
    """The file, its pages' checksums on; what cannot be decoded within the block is told as a page at fault."""
    with _decoding(file, "the file", "be Parquet", fix=fix):
        # Elsewhere than on this machine, a few large reads are faster than many small ones.
        remote = filesystem is not None and not isinstance(filesystem, fs.LocalFileSystem)
        parquet = pq.ParquetFile(file, filesystem=filesystem, page_checksum_verification=True, pre_buffer=remote)
    with parquet, _decoding(file, "every page", "match its checksum", fix=fix):
        yield parquet


@contextmanager
def _decoding(where: object, name: str, rule: str, *, fix: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CorruptDataError(describe(where, "the file", "exist", got="nothing", fix=fix)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        got = one_line(fault)[:200]
        if "AWS Error" in got:  # Arrow has no class of its own for a storage that does not answer
            raise EnvironmentFault(describe(where, "the storage", "answer", got=got)) from fault
        raise CorruptDataError(describe(where, name, rule, got=got, fix=fix)) from fault


def _normalized_metadata(file: str, *, filesystem: fs.FileSystem | None) -> dict[str, Any]:
    schema = read_schema(file, filesystem=filesystem, fix=_NORMALIZE_AGAIN)
    _check_schema(file, schema, NORMALIZED_SCHEMA, fix=_NORMALIZE_AGAIN)
    return _metadata(file, schema, fix=_NORMALIZE_AGAIN)


def _check_schema(path: Path | str, found: pa.Schema, schema: pa.Schema, *, fix: str) -> None:
    if not found.equals(schema):
        got = ", ".join(f"{field.name}: {field.type}" for field in found)
        want = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise CorruptDataError(describe(path, "the schema", f"be ({want})", got=f"({got})", fix=fix))


def _metadata(path: Path | str, schema: pa.Schema, *, fix: str) -> dict[str, Any]:
    """`provenance`, and `crc32` by column."""
    metadata = schema.metadata or {}
    content = metadata.get(_METADATA_KEY, b"")
    if not content or metadata.get(_CHECKSUM_KEY) != str(crc32(content)).encode():
        got = "metadata that does not match its checksum" if content else "none"
        raise CorruptDataError(describe(path, "the metadata", "carry mnist_pipe's provenance", got=got, fix=fix))
    return dict(json.loads(content))


def _checksums(table: pa.Table, before: dict[str, int]) -> dict[str, int]:
    """The CRC-32 of each column's values, those `before` and these."""
    checksums = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        checksums[name] = before[name]
        for content in _contents(column):
            checksums[name] = crc32(content.data, checksums[name])
    return checksums


def _contents(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """The bytes of each chunk of a column of a fixed width, as (rows, bytes of a value)."""
    return [values(chunk, np.dtype(np.uint8), column.type.byte_width) for chunk in column.chunks]


def _check_columns(path: Path | str, found: dict[str, int], expected: dict[str, int], *, fix: str) -> None:
    for name, checksum in found.items():
        if checksum != expected[name]:
            raise CorruptDataError(describe(path, name, "match its checksum", got="other values", fix=fix))


def read(
    path: Path,
    schema: pa.Schema,
    *,
    check: Callable[[dict[str, NDArray[np.uint8]], int], None] = lambda *_: None,
    fix: str,
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
    """Each column as (rows, bytes of a value), writable, and the provenance.

    Every processor reads row groups of its own. `check` is called, in any order, with the columns of each part of a row
    group and the number of its first row.

    Raises:
        CorruptDataError: not Parquet, another schema, a checksum that does not hold, no rows; it tells the user `fix`.
    """
    # The schema is compared before a page is read: an extension type could run code while it is decoded.
    found = read_schema(path, fix=fix)
    _check_schema(path, found, schema, fix=fix)
    metadata = _metadata(path, found, fix=fix)
    groups = row_groups(str(path), fix=fix)
    num_rows = sum(group.num_rows for group in groups)
    if num_rows == 0:
        raise CorruptDataError(describe(path, "the table", "have rows", got=0, fix=fix))
    try:
        columns = {field.name: _empty(num_rows, field.type.byte_width) for field in schema}
    except (MemoryError, ValueError) as fault:
        raise CorruptDataError(describe(path, "the table", "fit in memory", got=f"{num_rows} rows", fix=fix)) from fault
    with ThreadPoolExecutor(num_cpus()) as pool:
        checksums = list(pool.map(lambda group: _read_into(columns, group, check=check, fix=fix), groups))
    whole = dict.fromkeys(columns, 0)
    for group, part in zip(groups, checksums, strict=True):
        for name, column in columns.items():
            whole[name] = crc32_combine(whole[name], part[name], group.num_rows * column.shape[1])
    _check_columns(path, whole, metadata["crc32"], fix=fix)
    return columns, metadata["provenance"]


def _read_into(
    columns: dict[str, NDArray[np.uint8]],
    group: RowGroup,
    *,
    check: Callable[[dict[str, NDArray[np.uint8]], int], None],
    fix: str,
) -> dict[str, int]:
    """Read `group` into its rows of `columns`; returns the CRC-32 of each column there."""
    checksums, first_row = dict.fromkeys(columns, 0), group.first_row
    # A thread of ours for each row group; more of Arrow's for its columns would only be in their way.
    for table in read_row_group(group, rows_at_once=_ROWS_IN_CACHE, use_threads=False, fix=fix):
        part = {name: column[first_row : first_row + len(table)] for name, column in columns.items()}
        for name, column in part.items():
            np.concatenate(_contents(table.column(name)), out=column)
            checksums[name] = crc32(column.data, checksums[name])
        check(part, first_row)
        first_row += len(table)
    return checksums


def _empty(num_rows: int, width: int) -> NDArray[np.uint8]:
    """(num_rows, width), not yet written to, from an address that is a multiple of 64, as torch's own tensors are.

    They may become tensors as they are, and where a tensor lies can decide how a kernel rounds.
    """
    room = np.empty(num_rows * width + 63, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_rows * width].reshape(num_rows, width)


def _float32(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(rows, bytes of an image) as (rows, 28, 28), in the same memory."""
    return images.view(np.dtype("<f4")).reshape(-1, SIDE, SIDE)


def check_labels(where: object, labels: NDArray[np.uint8], *, first_row: int = 0) -> None:
    """Raise CorruptDataError that names the first label above 9 and counts them; row 0 is row `first_row`."""
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if wrong.size:
        more = f" ({wrong.size} such labels)" if wrong.size > 1 else ""
        name, got = f"labels[{first_row + wrong[0]}]", f"{labels[wrong[0]]}{more}"
        raise CorruptDataError(describe(where, name, "be 0 to 9", got=got))


def _binary(images: NDArray[Any], width: int) -> pa.Array:
    """(rows, 28, 28) as one fixed-size binary array over the same memory."""
    content = np.ascontiguousarray(images).reshape(len(images), -1)
    assert content.itemsize * content.shape[1] == width
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(images), [None, pa.py_buffer(content)])


def column_values(table: pa.Table, name: str, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """The column as (rows, width), writable."""
    return np.concatenate([values(chunk, dtype, width) for chunk in table.column(name).chunks])


def values(array: pa.Array, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """An array of a fixed width without nulls as (rows, width), read-only, over the same memory."""
    start = array.offset * width
    return np.frombuffer(array.buffers()[1], dtype=dtype)[start : start + len(array) * width].reshape(-1, width)
