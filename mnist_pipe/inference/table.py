"""The table that `score` reads: which of its columns hold the images, in any of the forms in which tools write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.data import columns, parquet, splits
from mnist_pipe.data.arrays import grey_levels
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.images import load_image
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.data.sizing import channels_first
from mnist_pipe.errors import CorruptDataError, InputError, shortened

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
_OTHER_PICTURES = (b"BM", b"II*\0", b"MM\0*", b"RIFF")  # an image's pixels may start so


@dataclass(frozen=True, kw_only=True)
class Table:
    """The Parquet files of one input."""

    groups: list[RowGroup]
    schema: pa.Schema
    """The columns of each file."""
    images: Sequence[str]
    """The columns that hold the images: one, or one for each pixel, row by row."""
    is_ours: bool
    """Whether this project wrote the files, which then have a provenance."""

    def check(self, facts: Facts) -> None:
        """Check that the columns can hold the images of a data set, as far as the types tell.

        Raises:
            InputError: they cannot.
        """
        if (kind := self._kind) is None:
            if len(self.images) == facts.num_values:
                return
            got = f"({_shown(self.schema)})"
        elif not pa.types.is_fixed_size_binary(kind) or kind.byte_width in (facts.num_values, 4 * facts.num_values):
            return
        else:
            got = str(kind)
        size, count = _size(facts), facts.num_values
        rule = f"be images of {size}: {count} bytes, {count} numbers, a picture, or {count} columns of pixels"
        raise InputError.invalid(self.groups[0].file, "the column image", rule, got=got)

    def is_raw(self, facts: Facts) -> bool:
        """Return whether the images are grey levels or colours; if not, this project standardised them."""
        return bool(self._kind != pa.binary(4 * facts.num_values))

    def read(self, group: RowGroup, *, facts: Facts, filesystem: fs.FileSystem | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a row group, with one column `image` of raw or standardised bytes instead of `images`.

        Raises:
            CorruptDataError: as for `splits.read_images`, or an image is null, of another shape or no grey levels.
            UnavailableError: the file system does not answer.
        """
        is_raw = self.is_raw(facts)
        if self._kind == pa.binary(facts.num_values if is_raw else 4 * facts.num_values) and (
            self.is_ours or facts.shape[0] == 1
        ):
            yield from splits.read_images(group, facts=facts, is_raw=is_raw, filesystem=filesystem)
            return
        row = group.first_row
        for table in parquet.read_row_group(group, filesystem=filesystem):
            pixels = np.ascontiguousarray(self._pixels(group.file, table, row, facts=facts))
            kind = pa.binary(facts.num_values)
            image = pa.FixedSizeBinaryArray.from_buffers(kind, len(table), [None, pa.py_buffer(pixels)])
            yield table.drop_columns(list(self.images)).append_column("image", image)
            row += len(table)

    @property
    def _kind(self) -> pa.DataType | None:
        """The type of the column that holds the images; None if there is a column for each pixel."""
        return self.schema.field(self.images[0]).type if len(self.images) == 1 else None

    def _pixels(self, file: str, table: pa.Table, first_row: int, *, facts: Facts) -> NDArray[np.uint8]:
        """Return the images of a table, uint8 `(N, ...)`."""
        found = [table.column(name).combine_chunks() for name in self.images]
        if self._kind is None:
            for column in found:
                columns.check_present(file, column, first_row)
            return _in_shape(file, grey_levels(file, columns.stacked(found)), facts)
        [column] = found
        if columns.is_list(column.type):
            values = columns.numbers(file, column, first_row, num_values=facts.num_values)
            return _in_shape(file, grey_levels(file, values), facts)
        values = columns.encoded(file, column, first_row).to_pylist()
        rows = enumerate(values, first_row)
        return np.stack([_decoded(f"{file}: image[{row}]", value, facts) for row, value in rows])


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
        rule = "be bytes, lists of numbers or pictures, or there must be a column for each pixel"
        got = schema.field("image").type if schema.names.count("image") == 1 else f"({_shown(schema)})"
        raise InputError.invalid(files[0], "the column image", rule, got=got)
    for field in schema:
        if schema.names.count(field.name) > 1:
            raise InputError.invalid(files[0], "every column", "have a unique name", got=repr(field.name))
        if not columns.is_plain(field):
            # Decoding an extension type can run code.
            raise InputError.invalid(files[0], f"the column {field.name}", "be of a plain type", got=field.type)
    groups = [group for file in files for group in parquet.row_groups(file, filesystem=filesystem)]
    if not groups:
        raise InputError.invalid(location, "the input", "have rows", got=0)
    return Table(groups=groups, schema=schema, images=images, is_ours=all(map(parquet.is_ours, schemas)))


def _image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold the images, row by row if each holds a pixel; none if there are none."""
    if "image" in schema.names:
        is_one = schema.names.count("image") == 1
        return ["image"] if is_one and columns.holds_images(schema.field("image").type) else []
    return columns.pixel_columns(schema)


def _shown(schema: pa.Schema) -> str:
    text = ", ".join(f"{field.name}: {field.type}" for field in schema)
    return text if len(text) <= 100 else f"{len(schema)} columns: {shortened(text, width=80)}"


def _size(facts: Facts) -> str:
    """Return the height and width of an image, and the channels of one in colour, as `28x28` or `32x32x3`."""
    channels, height, width = facts.shape
    return f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")


def _in_shape(file: str, values: NDArray[np.uint8], facts: Facts) -> NDArray[np.uint8]:
    """Return images as the data set's, whose channels come first; elsewhere those of a pixel stand beside each other.

    Raises:
        CorruptDataError: lists of lists have another shape.
    """
    channels, height, width = facts.shape
    shape = tuple(length for length in values.shape[1:] if length > 1)
    last = (height, width) if channels == 1 else (height, width, channels)
    if shape == facts.array_shape:
        return values
    if len(shape) > 1 and shape != last:
        got = "x".join(map(str, shape))
        raise CorruptDataError.invalid(file, "every image", f"be {_size(facts)}", got=got)
    return channels_first(values.reshape(-1, *last))


def _decoded(name: str, value: bytes, facts: Facts) -> NDArray[np.uint8]:
    """Return an image that is its bytes or a picture, uint8 in the shape of the data set's."""
    is_bytes = len(value) == facts.num_values
    if value.startswith(_PICTURES) or (value.startswith(_OTHER_PICTURES) and not is_bytes):
        # In a table a picture is an image, and no page with a digit somewhere on it.
        known = replace(facts, resize="fit") if facts.resize == "digit_box" else facts
        try:
            return load_image(value, facts=known, name=name)
        except InputError as error:
            raise CorruptDataError(str(error)) from error
    if not is_bytes:
        rule = f"be {_size(facts)} bytes or a picture"
        raise CorruptDataError.invalid(name, "the value", rule, got=f"{len(value)} bytes")
    return _in_shape(name, np.frombuffer(value, dtype=np.uint8)[np.newaxis], facts).reshape(facts.array_shape)
