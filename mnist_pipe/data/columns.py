"""The columns of a table that hold images, in any of the forms in which tools write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_pipe.data.arrays import LEAST_SIDE
from mnist_pipe.errors import CorruptDataError

_PIXEL = re.compile(r"(?:pixel|px|p|x|f|feature|column|col|attr|v)?[ _-]?(\d+)(?:[x_](\d+))?", re.IGNORECASE)


def pixel_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of numbers that hold a pixel each, row by row, by their names.

    There are none if two have one place, or if they are too few for an image.
    """
    places = {}
    for field in schema:
        found = _PIXEL.fullmatch(field.name)
        if found and _is_number(field.type):
            places[field.name] = tuple(int(part) for part in found.groups() if part is not None)
    are_pixels = len(set(places.values())) == len(places) >= LEAST_SIDE**2
    return sorted(places, key=places.__getitem__) if are_pixels else []


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images: bytes, lists of numbers, or a struct with `bytes`."""
    if pa.types.is_fixed_size_binary(kind) or is_binary(kind):
        return True
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        return number >= 0 and is_binary(kind.field(number).type)
    depth = 0
    while is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth > 0 and _is_number(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a type is bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_plain(field: pa.Field) -> bool:
    """Return whether decoding a field runs no code: it and those in it are of no extension type."""
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return False
    return all(is_plain(field.type.field(number)) for number in range(field.type.num_fields))


def check_present(file: str, column: pa.Array, first_row: int) -> None:
    """Raise CorruptDataError if a value is null; the message names the first one."""
    if column.null_count:
        row = first_row + int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise CorruptDataError.invalid(file, f"image[{row}]", "have a value", got="null")


def encoded(file: str, column: pa.Array, first_row: int) -> pa.Array:
    """Return a column of bytes without nulls, of a struct its field `bytes`.

    Raises:
        CorruptDataError: a value is null.
    """
    check_present(file, column, first_row)
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
        check_present(file, column, first_row)
    return column


def numbers(file: str, column: pa.Array, first_row: int, *, num_values: int | None = None) -> NDArray[Any]:
    """Return the numbers in a column of lists, of lists of lists and so on, `(N, ...)` in the shape of the lists.

    Args:
        file: the file, for the message.
        column: the column.
        first_row: the number of its first row in the file.
        num_values: the number of values that each row must have; None is that of the first row.

    Raises:
        CorruptDataError: a value is null, or the rows have other numbers of values.
    """
    check_present(file, column, first_row)
    sizes = np.ones(len(column), dtype=np.int64)
    parents = np.arange(len(column))
    shape: list[int] = []
    while is_list(column.type):
        is_fixed = pa.types.is_fixed_size_list(column.type)
        lengths = column.type.list_size if is_fixed else column.value_lengths().to_numpy(zero_copy_only=False)
        parents = np.repeat(parents, lengths)
        sizes = np.bincount(parents, minlength=len(sizes))
        shape.append(int(np.max(lengths, initial=0)))
        column = column.flatten()
        check_present(file, column, first_row)
    expected = (int(sizes[0]) if len(sizes) else 0) if num_values is None else num_values
    if (sizes != expected).any():
        row = int((sizes != expected).argmax())
        raise CorruptDataError.invalid(file, f"image[{first_row + row}]", f"have {expected} values", got=sizes[row])
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    return values.reshape(len(sizes), *(shape if np.prod(shape) == expected else [expected]))


def stacked(columns: Sequence[pa.Array]) -> NDArray[Any]:
    """Return columns of a number a row as `(N, columns)`."""
    return np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
