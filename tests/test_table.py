"""Test that `score` finds the images in tables as other tools write them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.splits import RawSplit, write_raw
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError
from mnist_pipe.inference import table
from tests.support import ROOT

ROWS = 30
PIXELS = np.zeros((ROWS, 28, 28), dtype=np.uint8)
PIXELS[:, 4:24, 4:24] = np.random.default_rng(0).integers(0, 256, (ROWS, 20, 20))
FLAT = PIXELS.reshape(ROWS, 784)
BYTES = [image.tobytes() for image in PIXELS]


COLOUR = Facts(shape=(3, 10, 12), labels=("cat", "dog"), resize="stretch", invert=False, background=(0, 0, 0))
COLOURED = np.random.default_rng(1).integers(0, 256, (ROWS, 10, 12, 3), dtype=np.uint8)
FIRST = np.ascontiguousarray(COLOURED.transpose(0, 3, 1, 2))


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def struct(images: list[Any]) -> pa.Array:
    """Return images as Hugging Face's `datasets` writes them."""
    return pa.array([{"bytes": image, "path": None} for image in images])


def pixel_columns(name: str, values: np.ndarray = FLAT) -> dict[str, Any]:
    return {name.format(number, number // 28 + 1, number % 28 + 1): values[:, number] for number in range(784)}


IMAGE: dict[str, pa.Array] = {
    "784 bytes": pa.array(BYTES, pa.binary(784)),
    "binary": pa.array(BYTES, pa.binary()),
    "large binary": pa.array(BYTES, pa.large_binary()),
    "PNG": pa.array([png(image) for image in PIXELS], pa.binary()),
    "PNG in a struct": struct([png(image) for image in PIXELS]),
    "bytes in a struct": struct(BYTES),
    "list of uint8": pa.array(FLAT.tolist(), pa.list_(pa.uint8())),
    "list of int64": pa.array(FLAT.tolist(), pa.list_(pa.int64())),
    "list of float32": pa.array(FLAT.tolist(), pa.list_(pa.float32())),
    "list of float64 up to 1": pa.array((FLAT / 255).tolist(), pa.list_(pa.float64())),
    "list of float32 up to 1": pa.array((FLAT / 255).tolist(), pa.list_(pa.float32())),
    "large list": pa.array(FLAT.tolist(), pa.large_list(pa.uint8())),
    "fixed-size list": pa.array(FLAT.tolist(), pa.list_(pa.uint8(), 784)),
    "list of lists": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.uint8()))),
    "fixed-size list of lists": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.uint8(), 28), 28)),
    "list with a channel": pa.array(PIXELS[:, np.newaxis].tolist(), pa.list_(pa.list_(pa.list_(pa.int32())))),
}
COLUMNS: dict[str, dict[str, Any]] = {
    **{name: {"image": array} for name, array in IMAGE.items()},
    "Kaggle's columns": pixel_columns("pixel{0}"),
    "mnist-in-csv's columns": pixel_columns("{1}x{2}"),
    "columns with numbers alone": pixel_columns("{0}"),
    "columns from 784 down to 1": dict(reversed(pixel_columns("px_{0}").items())),
    "columns of float64": pixel_columns("pixel{0}", FLAT / 255),
}


@pytest.mark.parametrize("form", COLUMNS)
def test_images_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    label = {"label": np.arange(ROWS) % 10}
    for columns in (label | COLUMNS[form], COLUMNS[form] | label):
        pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=12)
        found = table.examine(tmp_path / "in.parquet")
        found.check(MNIST)
        read = pa.concat_tables(rows for group in found.groups for rows in found.read(group, facts=MNIST))
        assert found.is_raw(MNIST)
        assert sorted(read.column_names) == ["image", "label"]
        assert read.schema.field("image").type == pa.binary(784)
        assert read["image"].to_pylist() == BYTES
        assert read["label"].to_pylist() == label["label"].tolist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([image.tobytes() for image in COLOURED], pa.binary()),
        pa.array([image.tobytes() for image in COLOURED], pa.binary(360)),
        pa.array([png(image) for image in COLOURED], pa.binary()),
        pa.array(COLOURED.tolist()),
        pa.array(FIRST.tolist()),
        pa.array(COLOURED.reshape(ROWS, -1).tolist(), pa.list_(pa.uint8(), 360)),
    ],
    ids=["binary", "360 bytes", "PNG", "lists, channels last", "lists, channels first", "list"],
)
def test_images_in_colour_come_with_their_channels_first(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"image": column}), tmp_path / "in.parquet", row_group_size=12)
    found = table.examine(tmp_path / "in.parquet")
    found.check(COLOUR)
    read = pa.concat_tables(rows for group in found.groups for rows in found.read(group, facts=COLOUR))
    assert read["image"].to_pylist() == [image.tobytes() for image in FIRST]


def test_a_file_of_this_project_in_colour_is_taken_as_it_is(tmp_path: Path) -> None:
    labels = (np.arange(ROWS) % 2).astype(np.uint8)
    write_raw(tmp_path / "in.parquet", RawSplit(images=FIRST, labels=labels, provenance=COLOUR.to_provenance()))
    found = table.examine(tmp_path / "in.parquet")
    found.check(COLOUR)
    [group] = found.groups
    [read] = found.read(group, facts=COLOUR)
    assert read["image"].to_pylist() == [image.tobytes() for image in FIRST]


def test_a_picture_of_another_size_is_resized_by_the_rule_of_the_data_set(tmp_path: Path) -> None:
    upper, lower = (np.array(colour, np.uint8) for colour in ([200, 100, 50], [0, 10, 20]))
    picture = png(np.where(np.arange(40)[:, None, None] < 20, upper, lower).repeat(20, axis=1))
    for start in (b"\x89PNG", b"BM"):  # pixels may start with the bytes BM, but not of another number
        content = picture if start != b"BM" else bmp(picture)
        pq.write_table(pa.table({"image": pa.array([content])}), tmp_path / "in.parquet")
        found = table.examine(tmp_path / "in.parquet")
        [rows] = found.read(found.groups[0], facts=COLOUR)
        pixels = np.frombuffer(rows["image"][0].as_py(), np.uint8).reshape(3, 10, 12)
        for rows, colour in ((pixels[:, :3], upper), (pixels[:, 7:], lower)):
            np.testing.assert_array_equal(rows, np.broadcast_to(colour[:, None, None], rows.shape))


def bmp(content: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(content)).save(stream, "BMP")
    return stream.getvalue()


def error(path: Path, kind: type[PipelineError], columns: dict[str, Any], *, facts: Facts = MNIST) -> str:
    pq.write_table(pa.table(columns), path)

    def read_first() -> None:
        found = table.examine(path)
        found.check(facts)
        list(found.read(found.groups[0], facts=facts))

    with pytest.raises(kind) as caught:
        read_first()
    assert len(str(caught.value)) <= 300
    return str(caught.value).removeprefix(f"{path}: ")


def test_columns_without_images_are_refused(tmp_path: Path) -> None:
    none = "the column image must be bytes, lists of numbers or pictures, or there must be a column for each pixel, "
    other = "the column image must be images of 28x28: 784 bytes, 784 numbers, a picture, or 784 columns of pixels, "
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pixels": [1]}, "(pixels: int64)"),
        ({"image": ["a.png"]}, "string"),
        ({"image": [1]}, "int64"),
        ({"image": [{"path": "a.png"}]}, "struct<path: string>"),
    ]
    for columns, got in cases:
        assert error(tmp_path / "in.parquet", InputError, columns) == f"{none}but got {got}"
    cases = [
        ({"image": pa.array([b"abc"], pa.binary(3))}, "fixed_size_binary[3]"),
        (
            {f"column {number}": [1] for number in range(785)},
            "(785 columns: column 0: int64, column 1: int64, column 2: int64, column 3: int64, column 4: …)",
        ),
    ]
    for columns, got in cases:
        assert error(tmp_path / "in.parquet", InputError, columns) == f"{other}but got {got}"


def test_values_that_are_no_images_are_refused(tmp_path: Path) -> None:
    good = [0] * 784
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": [good, good[:-1]]}, "image[1] must have 784 values, but got 783"),
        ({"image": [good, []]}, "image[1] must have 784 values, but got 0"),
        ({"image": [good, None]}, "image[1] must have a value, but got null"),
        ({"image": [good, [*good[:-1], 256]]}, "every value must be a whole number from 0 to 255, but got 256"),
        ({"image": [good, [*good[:-1], -1]]}, "every value must be a whole number from 0 to 255, but got -1"),
        (
            {"image": [[0.0] * 784, [*good[:-1], np.nan]]},
            "every value must be a whole number from 0 to 255, but got nan",
        ),
        ({"image": [BYTES[0], b"abc"]}, "image[1]: the value must be 28x28 bytes or a picture, but got 3 bytes"),
        ({"image": [BYTES[0], None]}, "image[1] must have a value, but got null"),
        ({"image": struct([BYTES[0], None])}, "image[1] must have a value, but got null"),
        ({"image": [png(PIXELS[0])[:-20]]}, "image[0]: the image must be undamaged, but got "),
        (pixel_columns("pixel{0}") | {"pixel9": [None, *[1] * (ROWS - 1)]}, "image[0] must have a value, but got null"),
    ]
    for columns, expected in cases:
        assert error(tmp_path / "in.parquet", CorruptDataError, columns).startswith(expected)


def test_images_of_another_shape_than_the_models_are_refused(tmp_path: Path) -> None:
    lists = pa.array(COLOURED.transpose(0, 2, 1, 3).tolist())
    assert error(tmp_path / "in.parquet", CorruptDataError, {"image": lists}, facts=COLOUR) == (
        "every image must be 10x12x3, but got 12x10x3"
    )
    turned = pa.array(PIXELS.reshape(ROWS, 14, 56).tolist())
    assert error(tmp_path / "in.parquet", CorruptDataError, {"image": turned}) == (
        "every image must be 28x28, but got 14x56"
    )
    grey = pa.array(BYTES, pa.binary(784))
    assert error(tmp_path / "in.parquet", InputError, {"image": grey}, facts=COLOUR) == (
        "the column image must be images of 10x12x3: 360 bytes, 360 numbers, a picture, or 360 columns of pixels, "
        "but got fixed_size_binary[784]"
    )


def test_a_table_is_refused_before_anything_large_is_imported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "in.parquet")
    program = "from mnist_pipe.inference import table; import sys; print({'ray', 'torch', 'mlflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "set()\n"
