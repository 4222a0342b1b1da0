"""The table that `score` reads: which of its columns hold the images, in any of the forms in which tools write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.data import idx, parquet, splits
from mnist_pipe.data.images import RESIZE, load_image
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.data.splits import PIXELS, SIDE
from mnist_pipe.errors import CorruptDataError, InputError, shortened

_PIXEL = re.compile(r"(?:pixel|px|p|x|f|feature|column|col|attr|v)?[ _-]?(\d+)(?:[x_](\d+))?", re.IGNORECASE)
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")


@dataclass(frozen=True, kw_only=True)
class Table:
    """The Parquet files of one input."""

    groups: list[RowGroup]
    schema: pa.Schema
    """The columns of each file."""
    images: Sequence[str]
    """The columns that hold the images: one, or one for each pixel, row by row."""

    @property
    def is_raw(self) -> bool:
        """Whether the images are grey levels; if not, this project standardised them."""
        return bool(self.schema.field(self.images[0]).type != pa.binary(4 * PIXELS))

    def read(self, group: RowGroup, *, filesystem: fs.FileSystem | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a row group, with one column `image` of 784 or 3,136 bytes instead of `images`.

        Raises:
            CorruptDataError: as for `read_images`, or an image is null or no 784 grey levels.
            UnavailableError: the file system does not answer.
        """
        if pa.types.is_fixed_size_binary(self.schema.field(self.images[0]).type):
            yield from splits.read_images(group, is_raw=self.is_raw, filesystem=filesystem)
            return
        row = group.first_row
        for table in parquet.read_row_group(group, filesystem=filesystem):
            pixels = np.ascontiguousarray(self._pixels(group.file, table, row))
            image = pa.FixedSizeBinaryArray.from_buffers(pa.binary(PIXELS), len(table), [None, pa.py_buffer(pixels)])
            yield table.drop_columns(list(self.images)).append_column("image", image)
            row += len(table)

    def _pixels(self, file: str, table: pa.Table, first_row: int) -> NDArray[np.uint8]:
        """Return the images of a table, uint8 `(N, 784)`."""
        columns = [table.column(name).combine_chunks() for name in self.images]
        for column in columns:
            _check_present(file, column, first_row)
        if len(columns) == PIXELS:
            return idx.grey_levels(
                file, np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
            )
        [column] = columns
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
            _check_present(file, column, first_row)
        if not _is_binary(column.type):
            return idx.grey_levels(file, _flat(file, column, first_row))
        return np.stack(
            [_decoded(f"{file}: image[{first_row + row}]", value) for row, value in enumerate(column.to_pylist())]
        )


def examine(location: str | Path, *, filesystem: fs.FileSystem | None = None) -> Table:
    """Return the table at `location`, a Parquet file or a folder of them; only the footers are read.

    Raises:
        InputError: it does not exist, or has no rows or no column of images, or another column's type is not plain.
        CorruptDataError: a file is not Parquet.
        UnavailableError: the file system does not answer.
    """
    files = parquet.parquet_files(location, filesystem=filesystem)
    schemas = [parquet.read_schema(file, filesystem=filesystem) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if not schema.equals(schemas[0]):
            rule = f"be those of {files[0]}, ({_shown(schemas[0])})"
            raise InputError.invalid(file, "the columns", rule, got=f"({_shown(schema)})")
    schema = schemas[0]
    images = _image_columns(schema)
    if not images:
        rule = f"be {PIXELS} bytes, {PIXELS} numbers, a PNG, or {PIXELS} columns of pixels"
        got = schema.field("image").type if schema.names.count("image") == 1 else f"({_shown(schema)})"
        raise InputError.invalid(files[0], "the column image", rule, got=got)
    for field in schema:
        if schema.names.count(field.name) > 1:
            raise InputError.invalid(files[0], "every column", "have a unique name", got=repr(field.name))
        if not _is_plain(field):
            # Decoding an extension type can run code.
            raise InputError.invalid(files[0], f"the column {field.name}", "be of a plain type", got=field.type)
    groups = [group for file in files for group in parquet.row_groups(file, filesystem=filesystem)]
    if not groups:
        raise InputError.invalid(location, "the input", "have rows", got=0)
    return Table(groups=groups, schema=schema, images=images)


def _image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold the images, row by row if each holds a pixel; none if there are none."""
    if "image" in schema.names:
        return ["image"] if schema.names.count("image") == 1 and _holds_images(schema.field("image").type) else []
    places = {}
    for field in schema:
        found = _PIXEL.fullmatch(field.name)
        if found and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            places[field.name] = tuple(int(part) for part in found.groups() if part is not None)
    return sorted(places, key=places.__getitem__) if len(set(places.values())) == len(places) == PIXELS else []


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return kind.byte_width in (PIXELS, 4 * PIXELS)
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        return number >= 0 and _is_binary(kind.field(number).type)
    if _is_binary(kind):
        return True
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth > 0 and bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_plain(field: pa.Field) -> bool:
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return False
    return all(_is_plain(field.type.field(number)) for number in range(field.type.num_fields))


def _shown(schema: pa.Schema) -> str:
    text = ", ".join(f"{field.name}: {field.type}" for field in schema)
    return text if len(text) <= 100 else f"{len(schema)} columns: {shortened(text, width=80)}"


def _check_present(file: str, column: pa.Array, first_row: int) -> None:
    if column.null_count:
        row = first_row + int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise CorruptDataError.invalid(file, f"image[{row}]", "have a value", got="null")


def _flat(file: str, column: pa.Array, first_row: int) -> NDArray[Any]:
    """Return the numbers in a column of lists, of lists of lists and so on, `(N, 784)`."""
    sizes = np.ones(len(column), dtype=np.int64)
    parents = np.arange(len(column))
    while _is_list(column.type):
        is_fixed = pa.types.is_fixed_size_list(column.type)
        lengths = column.type.list_size if is_fixed else column.value_lengths().to_numpy(zero_copy_only=False)
        parents = np.repeat(parents, lengths)
        sizes = np.bincount(parents, minlength=len(sizes))
        column = column.flatten()
        _check_present(file, column, first_row)
    if (sizes != PIXELS).any():
        row = int((sizes != PIXELS).argmax())
        raise CorruptDataError.invalid(file, f"image[{first_row + row}]", f"have {PIXELS} values", got=sizes[row])
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(-1, PIXELS)


def _decoded(name: str, value: bytes) -> NDArray[np.uint8]:
    """Return 784 bytes, or the pixels of a PNG or JPEG of 28x28, uint8 `(784,)`."""
    if value.startswith(_PICTURES):
        try:
            return load_image(value, rule=RESIZE, name=name).reshape(-1)
        except InputError as error:
            raise CorruptDataError(str(error)) from error
    if len(value) != PIXELS:
        raise CorruptDataError.invalid(name, "the value", f"be {SIDE}x{SIDE} bytes or a PNG", got=f"{len(value)} bytes")
    return np.frombuffer(value, dtype=np.uint8)
