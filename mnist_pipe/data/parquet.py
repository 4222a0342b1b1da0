"""Parquet files in which every flipped bit is found, written and read in one place.

Page checksums are on, because without them most single-bit flips of a Parquet file read as wrong values. They leave the
footer bare, where a flip can still move columns or change the provenance, so each column and the metadata carry a
CRC-32 of their own. All columns have a fixed width and no nulls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32, crc32_combine
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.atomic import atomic_file
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError, one_line
from mnist_pipe.hardware import num_cpus

_METADATA_KEY = b"mnist_pipe"
_CHECKSUM_KEY = b"mnist_pipe_crc32"
_ROWS_AT_ONCE = 10_000
_ROWS_IN_GROUP = 14_000  # the 55,000 and 60,000 rows of MNIST become groups that two CPUs share about equally
_ROWS_IN_CACHE = 500  # 1.6 MB of float32, still in the CPU's cache when it is checked after it has been decoded


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A part of a Parquet file that can be read without the rest."""

    file: str
    """Its path in the file system that it was found in."""
    number: int
    """Its place among the file's row groups."""
    first_row: int
    """The number of its first row in the file."""
    num_rows: int


RowCheck = Callable[[pa.Table, int], None]
"""Raises where rows of a file break a rule; gets the rows and the number of the first of them in the file."""


def write_columns(path: Path, schema: pa.Schema, columns: dict[str, Any], provenance: dict[str, Any]) -> None:
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


def read_columns(
    path: Path, schema: pa.Schema, *, check: RowCheck = lambda *_: None, fix: str
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
    """Read each column as (rows, bytes of a value), writable, and the provenance.

    Every CPU reads row groups of its own. `check` is called with each part of a row group, in any order.

    Raises:
        CorruptDataError: not Parquet, another schema, a checksum that does not hold, no rows; it tells the user `fix`.
    """
    metadata = _checked_metadata(path, schema, fix=fix)
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
    file: str, schema: pa.Schema, *, check: RowCheck, filesystem: fs.FileSystem | None = None, fix: str
) -> None:
    """Check all that `read_columns` does, from end to end of the file, in the memory of 10,000 rows.

    Raises:
        CorruptDataError: as `read_columns`.
        UnavailableError: the file system does not answer.
    """
    metadata = _checked_metadata(file, schema, filesystem=filesystem, fix=fix)
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
    schema: pa.Schema | None = None,
    filesystem: fs.FileSystem | None = None,
    fix: str = "run: dvc repro --force",
) -> dict[str, Any]:
    """The provenance in a file's footer, which is all that is read, checked against `schema` if there is one.

    Raises:
        CorruptDataError: not Parquet, another schema, no provenance.
        UnavailableError: the file system does not answer.
    """
    return dict(_checked_metadata(path, schema, filesystem=filesystem, fix=fix)["provenance"])


def read_schema(path: Path | str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> pa.Schema:
    """The schema of a Parquet file, with its metadata.

    Raises:
        CorruptDataError: it is not there, or not Parquet.
        UnavailableError: the file system does not answer.
    """
    with _decoding(path, "the file", "be Parquet", fix=fix):
        schema = pq.read_schema(path, filesystem=filesystem)
        str(schema)  # decodes every name
        return schema


def parquet_files(location: str | Path, *, filesystem: fs.FileSystem | None = None) -> list[str]:
    """The Parquet files that `location` stands for: itself, or every `*.parquet` in the folder, by name.

    Raises:
        InputError: there is none.
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
        raise UnavailableError.invalid(location, "the path", "be readable", got=one_line(error)[:200]) from error
    files = [file for file in files if file.endswith(".parquet")]
    if not files:
        raise InputError.missing("no *.parquet file", state="is in the folder", where=location)
    return files


def row_groups(file: str, *, filesystem: fs.FileSystem | None = None, fix: str = "") -> list[RowGroup]:
    """The parts of a Parquet file that have rows, from its footer alone.

    Raises:
        CorruptDataError: it is not there, or not Parquet.
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
    """Rows `start` to `stop` (all by default) of a row group, at most `rows_at_once` at a time, whatever its size.

    The pages' checksums are verified, if the writer left any; to check the file's schema is up to the caller.

    Raises:
        CorruptDataError: a checksum that does not hold, or another number of rows than the footer says.
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
    """A column as (rows, width), writable."""
    return np.concatenate([array_values(chunk, dtype, width) for chunk in table.column(name).chunks])


def array_values(array: pa.Array, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """An array of a fixed width without nulls as (rows, width), read-only, over the same memory."""
    start = array.offset * width
    return np.frombuffer(array.buffers()[1], dtype=dtype)[start : start + len(array) * width].reshape(-1, width)


@contextmanager
def _opened(file: str, *, filesystem: fs.FileSystem | None, fix: str) -> Iterator[pq.ParquetFile]:
    """The file, its pages' checksums on; what cannot be decoded within the block is reported as a damaged page."""
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
        got = one_line(error)[:200]
        if "AWS Error" in got:  # Arrow has no class of its own for a storage that does not answer
            raise UnavailableError.unreachable("the storage", where=where, cause=got) from error
        raise CorruptDataError.invalid(where, name, rule, got=got, fix=fix) from error


def _checked_metadata(
    path: Path | str, schema: pa.Schema | None, *, filesystem: fs.FileSystem | None = None, fix: str
) -> dict[str, Any]:
    """`provenance`, and `crc32` by column, of a file that has that schema."""
    # The schema is compared before a page is read: an extension type could run code while it is decoded.
    found = read_schema(path, filesystem=filesystem, fix=fix)
    if schema is not None and not found.equals(schema):
        want, got = (", ".join(f"{field.name}: {field.type}" for field in fields) for fields in (schema, found))
        raise CorruptDataError.invalid(path, "the schema", f"be ({want})", got=f"({got})", fix=fix)
    metadata = found.metadata or {}
    content = metadata.get(_METADATA_KEY, b"")
    if not content or metadata.get(_CHECKSUM_KEY) != str(crc32(content)).encode():
        got = "metadata that does not match its checksum" if content else "none"
        raise CorruptDataError.invalid(path, "the metadata", "carry mnist_pipe's provenance", got=got, fix=fix)
    return dict(json.loads(content))


def _groups_with_rows(file: str, *, filesystem: fs.FileSystem | None = None, fix: str) -> list[RowGroup]:
    groups = row_groups(file, filesystem=filesystem, fix=fix)
    if not groups:
        raise CorruptDataError.invalid(file, "the table", "have rows", got=0, fix=fix)
    return groups


def _read_into(columns: dict[str, NDArray[np.uint8]], group: RowGroup, *, check: RowCheck, fix: str) -> dict[str, int]:
    """Read `group` into its rows of `columns`; returns the CRC-32 of each column there."""
    checksums, row = dict.fromkeys(columns, 0), group.first_row
    # Each row group has a thread of ours; Arrow's own threads for its columns would only compete with them.
    for table in read_row_group(group, rows_at_once=_ROWS_IN_CACHE, use_threads=False, fix=fix):
        checksums = _checksums(table, checksums)
        check(table, row)
        for name, column in columns.items():
            np.concatenate(_contents(table.column(name)), out=column[row : row + len(table)])
        row += len(table)
    return checksums


def _checksums(table: pa.Table, before: dict[str, int]) -> dict[str, int]:
    """The CRC-32 of each column's values, those `before` and these."""
    checksums = dict(before)
    for name, column in zip(table.column_names, table.columns, strict=True):
        for content in _contents(column):
            checksums[name] = crc32(content.data, checksums[name])
    return checksums


def _contents(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """The bytes of each chunk of a column, as (rows, bytes of a value)."""
    return [array_values(chunk, np.dtype(np.uint8), column.type.byte_width) for chunk in column.chunks]


def _compare_checksums(path: Path | str, found: dict[str, int], expected: dict[str, int], *, fix: str) -> None:
    for name, checksum in found.items():
        if checksum != expected[name]:
            raise CorruptDataError.invalid(path, name, "match its checksum", got="other values", fix=fix)


def _aligned(num_rows: int, width: int) -> NDArray[np.uint8]:
    """(num_rows, width), not yet written to, at an address that is a multiple of 64, as torch's own tensors are.

    The columns may become tensors as they are, and where a tensor lies can decide how a kernel rounds.
    """
    room = np.empty(num_rows * width + 63, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_rows * width].reshape(num_rows, width)
