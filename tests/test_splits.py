"""Test the Parquet tables: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_pipe.data import parquet, splits
from mnist_pipe.data.facts import MNIST
from mnist_pipe.data.splits import NormalizedSplit, RawSplit
from mnist_pipe.errors import CorruptDataError


@pytest.fixture
def raw(raw_splits: dict[str, RawSplit]) -> RawSplit:
    return raw_splits["test"]


@pytest.fixture
def normalized(raw: RawSplit) -> NormalizedSplit:
    return NormalizedSplit(
        images=(raw.images / 255 - 0.1307).astype(np.float32),
        labels=raw.labels,
        index=np.arange(100, 200, dtype=np.uint32),
        provenance={"dataset": "toy", "mean": 0.1307, "std": 1.0},
    )


def same(one: Any, other: Any) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(np.array_equal(a, b) and getattr(a, "dtype", 0) == getattr(b, "dtype", 0) for a, b in pairs)


def error(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CorruptDataError) as caught:
        read(path)
    assert caught.value.exit_code == 4
    return str(caught.value).replace(str(path), path.name)


def write(path: Path, columns: dict[str, pa.Array], *, fields: list[pa.Field] | None = None) -> Path:
    fields = fields or [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    pq.write_table(pa.Table.from_arrays([*columns.values()], schema=pa.schema(fields)), path)
    return path


def test_a_split_survives_the_round_trip(tmp_path: Path, raw: RawSplit, normalized: NormalizedSplit) -> None:
    splits.write_raw(tmp_path / "raw", raw)
    splits.write_normalized(tmp_path / "normalized", normalized)
    assert same(splits.read_raw(tmp_path / "raw"), raw)
    assert same(splits.read_normalized(tmp_path / "normalized"), normalized)
    assert parquet.read_provenance(tmp_path / "raw") == raw.provenance


def test_more_rows_than_a_row_group_holds_keep_their_order(tmp_path: Path) -> None:
    rows = 28_001
    images = np.zeros((rows, 28, 28), np.uint8)
    images[:, 0, :2] = np.arange(rows, dtype=">u2").view(np.uint8).reshape(-1, 2)
    labels = (np.arange(rows) % 10).astype(np.uint8)
    splits.write_raw(tmp_path / "raw", RawSplit(images=images, labels=labels, provenance={}))
    assert pq.ParquetFile(tmp_path / "raw").num_row_groups == 3
    read = splits.read_raw(tmp_path / "raw")
    assert np.array_equal(read.images, images)
    assert np.array_equal(read.labels, labels)


def test_the_same_split_is_the_same_bytes(tmp_path: Path, raw: RawSplit) -> None:
    for name in ("one", "two"):
        splits.write_raw(tmp_path / name, raw)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_non_contiguous_view_is_written_correctly(tmp_path: Path, raw: RawSplit) -> None:
    backwards = dataclasses.replace(raw, images=raw.images[::-1, :, ::-1], labels=raw.labels[::-1])
    splits.write_raw(tmp_path / "raw", backwards)
    assert same(splits.read_raw(tmp_path / "raw"), backwards)


def streamed(path: Path) -> NormalizedSplit:
    """Return the split as a streamed training reads it: row group by row group, after the file has been verified."""
    splits.verify_normalized(str(path))
    tables = [rows for group in parquet.row_groups(str(path)) for rows in parquet.read_row_group(group)]
    images, labels = zip(*(part for rows in tables for part in splits.normalized_rows(rows, facts=MNIST)), strict=True)
    index = [parquet.column_values(rows, "index", np.dtype(np.uint32), 1).reshape(-1) for rows in tables]
    provenance = splits.check_normalized(str(path))
    return NormalizedSplit(
        images=np.concatenate(images), labels=np.concatenate(labels), index=np.concatenate(index), provenance=provenance
    )


@pytest.fixture
def many(normalized: NormalizedSplit, monkeypatch: pytest.MonkeyPatch) -> NormalizedSplit:
    """Split of 3,501 rows in three row groups, no two rows with the same image or index."""
    monkeypatch.setattr(parquet, "_ROWS_IN_GROUP", 1400)
    rows = np.arange(3501)
    images = normalized.images[rows % 100]
    images[:, 0, 0] = rows
    labels = np.random.default_rng(0).integers(0, 10, len(rows), dtype=np.uint8)
    return dataclasses.replace(normalized, images=images, labels=labels, index=rows.astype(np.uint32))


def test_a_streamed_split_equals_the_split(tmp_path: Path, many: NormalizedSplit) -> None:
    splits.write_normalized(tmp_path / "n", many)
    assert same(streamed(tmp_path / "n"), many)
    [_, second, _] = parquet.row_groups(str(tmp_path / "n"))
    [part] = parquet.read_row_group(second, start=3, stop=8, columns=["index"])
    assert part.to_pydict() == {"index": [1403, 1404, 1405, 1406, 1407]}


def test_row_groups_read_in_parallel_equal_the_split(tmp_path: Path, many: NormalizedSplit) -> None:
    splits.write_normalized(tmp_path / "n", many)
    read = splits.read_normalized(tmp_path / "n")
    assert same(read, many)
    oracle = pq.read_table(tmp_path / "n")
    assert b"".join(oracle["image"].to_pylist()) == read.images.tobytes()
    assert oracle["index"].to_pylist() == read.index.tolist()
    assert read.images.ctypes.data % 64 == 0
    assert read.images.flags.writeable


def test_a_flipped_bit_is_detected_in_every_row_group_and_column(tmp_path: Path, many: NormalizedSplit) -> None:
    path = tmp_path / "n"
    splits.write_normalized(path, many)
    intact, metadata = path.read_bytes(), pq.read_metadata(path)
    assert metadata.num_row_groups == 3
    for group in range(3):
        for number in range(3):
            column = metadata.row_group(group).column(number)
            flipped = bytearray(intact)
            flipped[column.data_page_offset + column.total_compressed_size - 3] ^= 1
            path.write_bytes(flipped)
            assert error(splits.read_normalized, path).startswith("n: every page must match its checksum, but got ")


@pytest.mark.parametrize("column", ["image", "label", "index"])
def test_pages_in_the_wrong_row_group_are_detected(tmp_path: Path, many: NormalizedSplit, column: str) -> None:
    """Check what page checksums cannot detect: every page is intact, but two pages of a column are swapped."""
    path = tmp_path / "n"
    splits.write_normalized(path, many)
    whole = pq.read_table(path)
    swapped = pa.concat_tables([whole.slice(1400, 1400), whole.slice(0, 1400), whole.slice(2800)])
    moved = whole.set_column(whole.column_names.index(column), whole.schema.field(column), swapped[column])
    pq.write_table(moved, path, row_group_size=1400, write_page_checksum=True)
    assert error(splits.read_normalized, path) == (
        f"n: {column} must match its checksum, but got a different one; run: dvc repro --force normalize"
    )


def test_splits_written_in_parallel_equal_those_written_in_turn(tmp_path: Path, raw_splits: Any) -> None:
    splits.write_all(tmp_path / "both", raw_splits, write=splits.write_raw)
    for name, split in raw_splits.items():
        splits.write_raw(tmp_path / "one.parquet", split)
        assert (tmp_path / "both" / f"{name}.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize("layer", ["raw", "normalized", "streamed"])
def test_every_bit_flip_is_detected_or_harmless(
    tmp_path: Path, layer: str, raw: RawSplit, normalized: NormalizedSplit
) -> None:
    path = tmp_path / layer
    if layer == "raw":
        split: Any = dataclasses.replace(raw, images=raw.images[:8], labels=raw.labels[:8])
        read: Callable[[Path], Any] = splits.read_raw
        splits.write_raw(path, split)
    else:
        eight = {name: getattr(normalized, name)[:8] for name in ("images", "labels", "index")}
        split = dataclasses.replace(normalized, **eight)
        read = streamed if layer == "streamed" else splits.read_normalized
        splits.write_normalized(path, split)
    intact = path.read_bytes()
    footer = int.from_bytes(intact[-8:-4], "little") + 8
    random = np.random.default_rng(0)
    bits = {*range(64), *random.integers(0, 8 * len(intact), 300).tolist()}  # the magic bytes, then random bits
    bits |= {*range(8 * (len(intact) - footer), 8 * len(intact), 7)}  # every seventh bit of the footer
    silent = []
    for bit in sorted(bits):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            if not same(read(path), split):
                silent.append(bit)
        except CorruptDataError:
            pass
    assert silent == []


def test_every_truncation_is_refused(tmp_path: Path, raw: RawSplit) -> None:
    path = tmp_path / "raw"
    splits.write_raw(path, raw)
    intact = path.read_bytes()
    for length in [*range(0, len(intact), 997), len(intact) - 1]:
        path.write_bytes(intact[:length])
        assert error(splits.read_raw, path).startswith("raw: the file must be Parquet, but got ")


def test_a_flipped_pixel_is_reported_with_a_remedy(tmp_path: Path, raw: RawSplit) -> None:
    path = tmp_path / "raw"
    splits.write_raw(path, raw)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = error(splits.read_raw, path)
    assert message.startswith("raw: every page must match its checksum, but got ")
    assert message.endswith("; run: dvc repro --force ingest")
    assert "\n" not in message


def test_a_file_that_is_missing_or_not_parquet_is_reported(tmp_path: Path) -> None:
    assert error(splits.read_raw, tmp_path / "raw") == ("raw does not exist; run: dvc repro --force ingest")
    (tmp_path / "raw").write_text("index,label\n0,7\n")
    message = error(splits.read_normalized, tmp_path / "raw")
    assert message.startswith("raw: the file must be Parquet, but got ")
    assert message.endswith("; run: dvc repro --force normalize")


def test_another_schema_is_reported(tmp_path: Path, raw: RawSplit, normalized: NormalizedSplit) -> None:
    images = pa.array([image.tobytes() for image in raw.images], pa.binary(784))
    labels = pa.array(raw.labels)
    want = "must be (image: fixed_size_binary[784], label: uint8), but got"
    fix = "run: dvc repro --force ingest"
    cases = {
        "list": ({"image": pa.array([[0.5]] * 100), "label": labels}, "image: list<element: double>, label: uint8"),
        "wide": ({"image": images, "label": labels.cast(pa.int64())}, "image: fixed_size_binary[784], label: int64"),
        "extra": (
            {"image": images, "label": labels, "id": labels},
            "image: fixed_size_binary[784], label: uint8, id: uint8",
        ),
        "swapped": ({"label": labels, "image": images}, "label: uint8, image: fixed_size_binary[784]"),
        "short": (
            {"image": pa.array([b"x" * 783] * 100, pa.binary(783)), "label": labels},
            "image: fixed_size_binary[783], label: uint8",
        ),
        "pickled": (
            {"image": pa.array([pickle.dumps(image) for image in raw.images]), "label": labels},
            "image: binary, label: uint8",
        ),
    }
    for name, (columns, got) in cases.items():
        assert error(splits.read_raw, write(tmp_path / name, columns)) == f"{name}: the schema {want} ({got}); {fix}"
    splits.write_normalized(tmp_path / "normalized", normalized)
    assert error(splits.read_raw, tmp_path / "normalized") == (
        f"normalized: the schema {want} (image: fixed_size_binary[3136], label: uint8, index: uint32); {fix}"
    )


def test_null_labels_are_refused(tmp_path: Path, raw: RawSplit) -> None:
    images = pa.array([image.tobytes() for image in raw.images], pa.binary(784))
    labels = pa.array([None, *raw.labels[1:].tolist()], pa.uint8())
    path = write(
        tmp_path / "raw",
        {"image": images, "label": labels},
        fields=[pa.field("image", images.type, nullable=False), pa.field("label", pa.uint8())],
    )
    assert "the schema must be" in error(splits.read_raw, path)


def test_an_extension_type_is_refused_before_it_is_decoded(tmp_path: Path, raw: RawSplit) -> None:
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * 100, pa.binary(16)))
    assert error(splits.read_raw, write(tmp_path / "raw", {"image": uuids, "label": pa.array(raw.labels)})) == (
        "raw: the schema must be (image: fixed_size_binary[784], label: uint8), but got (image: extension<arrow.uuid>, "
        "label: uint8); run: dvc repro --force ingest"
    )


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_hidden_in_the_schema_is_never_run(tmp_path: Path, raw: RawSplit) -> None:
    """Check CVE-2023-47248: pyarrow before 14.0.1 unpickled such a schema on reading."""
    images = pa.array([image.tobytes() for image in raw.images], pa.binary(784))
    hidden = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(_Payload(tmp_path / "executed")),
    }
    path = write(
        tmp_path / "raw",
        {"image": images, "label": pa.array(raw.labels)},
        fields=[
            pa.field("image", images.type, nullable=False, metadata=hidden),
            pa.field("label", pa.uint8(), nullable=False),
        ],
    )
    with suppress(CorruptDataError):
        splits.read_raw(path)
    assert not (tmp_path / "executed").exists()


def test_a_split_without_rows_is_refused(tmp_path: Path, raw: RawSplit) -> None:
    splits.write_raw(tmp_path / "raw", raw)
    pq.write_table(pq.read_table(tmp_path / "raw").slice(0, 0), tmp_path / "raw")
    assert error(splits.read_raw, tmp_path / "raw") == (
        "raw: the table must have rows, but got 0; run: dvc repro --force ingest"
    )


@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        (None, "none"),
        ({b"mnist_pipe": b'{"provenance": {}}'}, "metadata that does not match its checksum"),
        (
            {b"mnist_pipe": b'{"provenance": {}}', b"mnist_pipe_crc32": b"1"},
            "metadata that does not match its checksum",
        ),
    ],
)
def test_foreign_provenance_is_refused(
    tmp_path: Path, raw: RawSplit, metadata: dict[bytes, bytes] | None, got: str
) -> None:
    images = pa.array([image.tobytes() for image in raw.images], pa.binary(784))
    schema = splits.raw_schema({}).with_metadata(metadata)
    pq.write_table(pa.Table.from_arrays([images, pa.array(raw.labels)], schema=schema), tmp_path / "raw")
    message = f"raw: the metadata must contain mnist_pipe's provenance, but got {got}; run: dvc repro --force"
    assert error(splits.read_raw, tmp_path / "raw") == f"{message} ingest"
    assert error(parquet.read_provenance, tmp_path / "raw") == message


def test_a_label_above_nine_is_reported(tmp_path: Path, raw: RawSplit) -> None:
    labels = raw.labels.copy()
    labels[17] = 11
    splits.write_raw(tmp_path / "raw", dataclasses.replace(raw, labels=labels))
    assert error(splits.read_raw, tmp_path / "raw") == "raw: labels[17] must be 0 to 9, but got 11"
    labels[40:42] = 255
    splits.write_raw(tmp_path / "raw", dataclasses.replace(raw, labels=labels))
    assert error(splits.read_raw, tmp_path / "raw") == "raw: labels[17] must be 0 to 9, but got 11 (3 such labels)"


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_non_finite_pixel_is_reported(tmp_path: Path, normalized: NormalizedSplit, value: float, shown: str) -> None:
    images = normalized.images.copy()
    images[5, 3, 4] = value
    splits.write_normalized(tmp_path / "n", dataclasses.replace(normalized, images=images))
    for read in (splits.read_normalized, streamed):
        assert error(read, tmp_path / "n") == (
            f"n: image[5] at (3, 4) must be finite, but got {shown}; run: dvc repro --force normalize"
        )


def test_a_pixel_of_a_later_row_group_is_reported_with_its_row(tmp_path: Path, many: NormalizedSplit) -> None:
    for row in (2499, 1025, 1024):
        many.images[row, 27, 27] = np.nan
        splits.write_normalized(tmp_path / "n", many)
        assert f"n: image[{row}] at (27, 27) must be finite" in error(splits.read_normalized, tmp_path / "n")


def test_finite_pixels_with_an_infinite_sum_are_valid(tmp_path: Path, normalized: NormalizedSplit) -> None:
    large = np.full_like(normalized.images, np.finfo(np.float32).max)
    splits.write_normalized(tmp_path / "n", dataclasses.replace(normalized, images=large))
    assert np.array_equal(splits.read_normalized(tmp_path / "n").images, large)


def test_infinities_that_cancel_in_a_sum_are_detected(tmp_path: Path, normalized: NormalizedSplit) -> None:
    images = normalized.images.copy()
    images[5, 3, 4], images[6, 0, 0] = np.inf, -np.inf
    splits.write_normalized(tmp_path / "n", dataclasses.replace(normalized, images=images))
    assert "image[5] at (3, 4) must be finite" in error(splits.read_normalized, tmp_path / "n")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, raw: RawSplit) -> None:
    path = tmp_path / "raw"
    splits.write_raw(path, raw)
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid):
        splits.write_raw(path, dataclasses.replace(raw, labels=raw.labels[:3]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["raw"]
