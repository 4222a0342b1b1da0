"""Reader and writer of Parquet files in which every flipped bit is detected.

Page checksums are on, because without them most single-bit flips of a Parquet file are read as wrong values. They do
not cover the footer, where a flip can still move columns or change the provenance, so each column and the metadata
carry a CRC-32 of their own. All columns have a fixed width and no nulls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.atomic import atomic_file
from mnist_pipe.data.compression import crc32, crc32_combine
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError, one_line
from mnist_pipe.hardware import num_cpus

_METADATA_KEY = b"mnist_pipe"
_CHECKSUM_KEY = b"mnist_pipe_crc32"
_ROWS_AT_ONCE = 10_000
_ROWS_IN_GROUP = 14_000  # the 55,000 and 60,000 rows of MNIST become groups that two CPUs share about equally
_ROWS_IN_CACHE = 500  # 1.6 MB of float32, which are still in the CPU's cache when they are checked


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group of a Parquet file, which can be read without the rest of the file."""

    file: str
    """Path of the file in the file system that it was found in."""
    number: int
    """Position among the file's row groups, from 0."""
    first_row: int
    """Row number, in the file, of the group's first row."""
    num_rows: int


RowCheck = Callable[[pa.Table, int], None]
"""Function that raises an exception if rows break a rule; it takes the rows and the first one's number in the file."""
Layout = Callable[[Mapping[str, Any]], pa.Schema]
"""Function that returns the schema that a file with this provenance must have."""


def write_columns(path: Path, schema: pa.Schema, columns: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write columns and provenance as one Parquet file to `path`, whole or not at all.

    Args:
        path: the file.
        schema: the names and types of the columns.
        columns: arrays `(N,)` by name, in the order of `schema`, of any kind that Arrow converts.
        provenance: JSON-like values that `read_provenance` returns.
    """
    arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()]
    table = pa.Table.from_arrays(arrays, schema=schema)
    checksums = _checksums(table, dict.fromkeys(table.column_names, 0))
    metadata = json.dumps({"provenance": provenance, "crc32": checksums}, sort_keys=True).encode()
    table = table.replace_schema_metadata({_METADATA_KEY: metadata, _CHECKSUM_KEY: str(crc32(metadata)).encode()})
    with atomic_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="lz4",  # files are a third larger than with zstd, but faster to read and write
            row_group_size=_ROWS_IN_GROUP,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_columns(
    path: Path, layout: Layout, *, check: RowCheck = lambda *_: None, fix: str
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
    """Read all columns and the provenance of a file, one row group per CPU at a time.

    Args:
        path: the file.
        layout: the schema that the file must have.
        check: called with each part of a row group, in any order and from several threads.
        fix: the remedy that the exceptions name.

    Returns:
        The columns by name, uint8 `(N, bytes of a value)`, writable, and the provenance.

    Raises:
        CorruptDataError: the file is not Parquet, has another schema or no rows, or fails a checksum.
    """
    schema, metadata = _checked_metadata(path, layout, fix=fix)
    groups = _groups_with_rows(str(path), fix=fix)
    num_rows = sum(group.num_rows for group in groups)
    try:
        columns = {field.name: _aligned(num_rows, field.type.byte_width) for field in schema}
    except (MemoryError, ValueError) as error:
        raise CorruptDataError.invalid(path, "the table", "fit in memory", got=f"{num_rows} rows", fix=fix) from error
    with ThreadPoolExecutor(num_cpus()) as pool:
        checksums = list(pool.map(lambda group: _read_into(columns, group, check=check, fix=fix), groups))
    whole = dict.fromkeys(columns, 0)
    for group, part in zip(groups, checksums, strict=True):
        for name, column in columns.items():
            whole[name] = crc32_combine(whole[name], part[name], group.num_rows * column.shape[1])
    _compare_checksums(path, whole, metadata["crc32"], fix=fix)
    return columns, metadata["provenance"]


def verify_columns(
    file: str, layout: Layout, *, check: RowCheck, filesystem: fs.FileSystem | None = None, fix: str
) -> None:
    """Check a file as `read_columns` does, from end to end, with at most 10,000 rows in memory.

    Raises:
        CorruptDataError: as for `read_columns`.
        UnavailableError: the file system does not answer.
    """
    schema, metadata = _checked_metadata(file, layout, filesystem=filesystem, fix=fix)
    found = dict.fromkeys(schema.names, 0)
    for group in _groups_with_rows(file, filesystem=filesystem, fix=fix):
        row = group.first_row
        for table in read_row_group(group, filesystem=filesystem, fix=fix):
            found = _checksums(table, found)
            check(table, row)
            row += len(table)
    _compare_checksums(file, found, metadata["crc32"], fix=fix)


def read_provenance(
    path: Path | str,
    *,
    layout: Layout | None = None,
    filesystem: fs.FileSystem | None = None,
    fix: str = "run: dvc repro --force",
) -> dict[str, Any]:
    """Return the provenance of a file from its footer, after comparing the file's schema with `layout` if it is given.

    Raises:
        CorruptDataError: the file is not Parquet, or has another schema or no provenance.
        UnavailableError: the file system does not answer.
    """
    _, metadata = _checked_metadata(path, layout, filesystem=filesystem, fix=fix)
    return dict(metadata["provenance"])


def is_ours(schema: pa.Schema) -> bool:
    """Return whether this project wrote a file with this schema, whose metadata has a provenance then."""
    return _METADATA_KEY in (schema.metadata or {})


def read_schema(path: Path | str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> pa.Schema:
    """Return the schema of a Parquet file, with its metadata.

    Raises:
        CorruptDataError: the file does not exist or is not Parquet.
        UnavailableError: the file system does not answer.
    """
    with _decoding(path, "the file", "be Parquet", fix=fix):
        schema = pq.read_schema(path, filesystem=filesystem)
        str(schema)  # decodes every name, so a damaged one raises here
        return schema


def parquet_files(location: str | Path, *, filesystem: fs.FileSystem | None = None) -> list[str]:
    """Return the paths of the Parquet files at `location`: the file itself, or all `*.parquet` in the folder, sorted.

    Raises:
        InputError: `location` does not exist, or the folder has no Parquet file.
        UnavailableError: the file system does not answer.
    """
    where = filesystem or fs.LocalFileSystem()
    path = str(location if filesystem else Path(location).resolve())
    try:
        found = where.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            raise InputError.missing(location)
        if found.is_file:
            return [path]
        files = sorted(file.path for file in where.get_file_info(fs.FileSelector(path)) if file.is_file)
    except OSError as error:
        raise UnavailableError.invalid(location, "the path", "be readable", got=one_line(error)) from error
    files = [file for file in files if file.endswith(".parquet")]
    if not files:
        raise InputError.missing("no *.parquet file", state="is in the folder", where=location)
    return files


def row_groups(file: str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> list[RowGroup]:
    """Return the row groups of a Parquet file that have rows; only the footer is read.

    Raises:
        CorruptDataError: the file does not exist, is not Parquet, or has a row group with a negative number of rows.
        UnavailableError: the file system does not answer.
    """
    groups, first_row = [], 0
    with _opened(file, filesystem=filesystem, fix=fix) as parquet:
        for number in range(parquet.metadata.num_row_groups):
            num_rows = parquet.metadata.row_group(number).num_rows
            if num_rows < 0:
                rule = "have 0 rows or more"
                raise CorruptDataError.invalid(file, f"row group {number}", rule, got=num_rows, fix=fix)
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
    """Yield the rows of a row group in tables of at most `rows_at_once` rows, whatever the group's size.

    Page checksums are verified if the file has them. The caller checks the file's schema.

    Args:
        group: the row group.
        start: the first row, counted from the start of the group.
        stop: the row after the last; None is the end of the group.
        columns: the columns to read; None is all.
        rows_at_once: the largest number of rows of a table.
        use_threads: decode the columns in Arrow's threads.
        filesystem: where the file is; None is the local file system.
        fix: the remedy that the exceptions name.

    Raises:
        CorruptDataError: a page does not match its checksum, or the number of rows differs from the footer's.
        UnavailableError: the file system does not answer.
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
        raise CorruptDataError.invalid(group.file, f"row group {group.number}", rule, got=seen, fix=fix)


def column_values(table: pa.Table, name: str, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """Return a copy of a column without nulls as `dtype` `(N, width)`, writable; `width` is values per row."""
    return np.concatenate([array_values(chunk, dtype, width) for chunk in table.column(name).chunks])


def array_values(array: pa.Array, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """Return a fixed-width array without nulls as `dtype` `(N, width)`, read-only, over the same memory."""
    start = array.offset * width
    return np.frombuffer(array.buffers()[1], dtype=dtype)[start : start + len(array) * width].reshape(-1, width)


@contextmanager
def _opened(file: str, *, filesystem: fs.FileSystem | None, fix: str) -> Iterator[pq.ParquetFile]:
    """Open the file with page checksums on; report what cannot be decoded within the block as a damaged page."""
    with _decoding(file, "the file", "be Parquet", fix=fix):
        # Over a network, a few large reads are faster than many small ones.
        remote = filesystem is not None and not isinstance(filesystem, fs.LocalFileSystem)
        parquet = pq.ParquetFile(file, filesystem=filesystem, page_checksum_verification=True, pre_buffer=remote)
    with parquet, _decoding(file, "every page", "match its checksum", fix=fix):
        yield parquet


@contextmanager
def _decoding(where: object, name: str, rule: str, *, fix: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CorruptDataError.missing(where, fix=fix) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        got = one_line(error)
        if "AWS Error" in got:  # Arrow has no exception of its own for unreachable storage
            raise UnavailableError.unreachable("the storage", where=where, cause=got) from error
        raise CorruptDataError.invalid(where, name, rule, got=got, fix=fix) from error


def _checked_metadata(
    path: Path | str, layout: Layout | None, *, filesystem: fs.FileSystem | None = None, fix: str
) -> tuple[pa.Schema, dict[str, Any]]:
    """Return the schema of a file, and its `provenance` and `crc32` by column, after checking both.

    A file without valid metadata is compared with the layout of an empty provenance first.
    """
    # The schema is compared before a page is read, because an extension type could run code while it is decoded.
    found = read_schema(path, filesystem=filesystem, fix=fix)
    metadata = found.metadata or {}
    content = metadata.get(_METADATA_KEY, b"")
    is_valid = bool(content) and metadata.get(_CHECKSUM_KEY) == str(crc32(content)).encode()
    known: dict[str, Any] = json.loads(content) if is_valid else {"provenance": {}}
    schema = layout(known["provenance"]) if layout else found
    if not found.equals(schema):
        want, got = (", ".join(f"{field.name}: {field.type}" for field in fields) for fields in (schema, found))
        raise CorruptDataError.invalid(path, "the schema", f"be ({want})", got=f"({got})", fix=fix)
    if not is_valid:
        got = "metadata that does not match its checksum" if content else "none"
        raise CorruptDataError.invalid(path, "the metadata", "contain mnist_pipe's provenance", got=got, fix=fix)
    return schema, known


def _groups_with_rows(file: str, *, filesystem: fs.FileSystem | None = None, fix: str) -> list[RowGroup]:
    groups = row_groups(file, filesystem=filesystem, fix=fix)
    if not groups:
        raise CorruptDataError.invalid(file, "the table", "have rows", got=0, fix=fix)
    return groups


def _read_into(columns: dict[str, NDArray[np.uint8]], group: RowGroup, *, check: RowCheck, fix: str) -> dict[str, int]:
    """Read `group` into its rows of `columns`, and return the CRC-32 of these rows by column."""
    checksums, row = dict.fromkeys(columns, 0), group.first_row
    # Each row group is already read in a thread of its own, with which Arrow's threads for columns would only compete.
    for table in read_row_group(group, rows_at_once=_ROWS_IN_CACHE, use_threads=False, fix=fix):
        checksums = _checksums(table, checksums)
        check(table, row)
        for name, column in columns.items():
            np.concatenate(_contents(table.column(name)), out=column[row : row + len(table)])
        row += len(table)
    return checksums


def _checksums(table: pa.Table, before: dict[str, int]) -> dict[str, int]:
    """Return the CRC-32 of each column, continued from the checksums `before` over the values of `table`."""
    checksums = dict(before)
    for name, column in zip(table.column_names, table.columns, strict=True):
        for content in _contents(column):
            checksums[name] = crc32(content.data, checksums[name])
    return checksums


def _contents(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """Return the bytes of each chunk of a column, uint8 `(N, bytes of a value)`."""
    return [array_values(chunk, np.dtype(np.uint8), column.type.byte_width) for chunk in column.chunks]


def _compare_checksums(path: Path | str, found: dict[str, int], expected: dict[str, int], *, fix: str) -> None:
    for name, checksum in found.items():
        if checksum != expected[name]:
            raise CorruptDataError.invalid(path, name, "match its checksum", got="a different one", fix=fix)


def _aligned(num_rows: int, width: int) -> NDArray[np.uint8]:
    """Return an uninitialised array, uint8 `(num_rows, width)`, at an address that is a multiple of 64, as in torch.

    The columns may become tensors without a copy, and the alignment of a tensor can decide how a kernel rounds.
    """
    room = np.empty(num_rows * width + 63, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_rows * width].reshape(num_rows, width)
