"""Test the validation split and the standardised images against plain numpy."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_pipe.data import normalization, sources
from mnist_pipe.data.splits import NormalizedSplit, RawSplit, read_normalized, write_raw
from mnist_pipe.errors import CorruptDataError

Splits = dict[str, RawSplit]


def normalize(
    raw: Splits, *, validation_rows: int = 60, seed: int = 0
) -> tuple[dict[str, NormalizedSplit], dict[str, Any]]:
    return normalization.normalize(
        raw["train"],
        raw["test"],
        validation_rows=validation_rows,
        seed=seed,
    )


def error(raw: Splits) -> str:
    with pytest.raises(CorruptDataError) as caught:
        normalize(raw)
    return str(caught.value)


def test_every_row_lands_in_one_split_under_its_own_number(raw_splits: Splits) -> None:
    splits, _ = normalize(raw_splits)
    assert sorted([*splits["train"].index, *splits["validation"].index]) == [*range(500)]
    assert splits["test"].index.tolist() == [*range(100)]
    assert len(splits["validation"].index) == 60
    for name, normalized in splits.items():
        raw = raw_splits["test" if name == "test" else "train"]
        assert np.array_equal(normalized.labels, raw.labels[normalized.index])
        assert (np.diff(normalized.index.astype(int)) > 0).all()
        columns = (normalized.images, normalized.labels, normalized.index)
        assert [column.dtype.name for column in columns] == ["float32", "uint8", "uint32"]


def test_images_are_standardised_with_training_rows_only(raw_splits: Splits) -> None:
    splits, report = normalize(raw_splits)
    training = raw_splits["train"].images[splits["train"].index].astype(np.float64) / 255
    assert report["mean"] == pytest.approx(training.mean(), rel=1e-14)
    assert report["std"] == pytest.approx(training.std(), rel=1e-12)
    for name, normalized in splits.items():
        pixels = raw_splits["test" if name == "test" else "train"].images[normalized.index] / 255
        np.testing.assert_allclose(normalized.images, (pixels - training.mean()) / training.std(), rtol=1e-6, atol=1e-6)

    other = raw_splits["train"].images.copy()
    other[splits["validation"].index] = 255
    changed, _ = normalize(raw_splits | {"train": dataclasses.replace(raw_splits["train"], images=other)})
    assert np.array_equal(changed["train"].images, splits["train"].images)


def sha256_of(raw: RawSplit) -> str:
    return hashlib.sha256(raw.images.tobytes() + raw.labels.tobytes()).hexdigest()


def test_a_split_records_its_provenance(raw_splits: Splits) -> None:
    splits, report = normalize(raw_splits)
    common = {
        "dataset": "toy",
        "fallback_for": None,
        "mean": report["mean"],
        "std": report["std"],
        "shape": [28, 28],
        "dtype": "float32",
    }
    assert {name: normalized.provenance for name, normalized in splits.items()} == {
        "train": common | {"source_sha256": sha256_of(raw_splits["train"])},
        "validation": common | {"source_sha256": sha256_of(raw_splits["train"])},
        "test": common | {"source_sha256": sha256_of(raw_splits["test"])},
    }
    assert (report["dataset"], report["fallback_for"]) == ("toy", None)
    assert report["rows"] == {"train": 440, "validation": 60, "test": 100}
    assert report["rows_by_class"] == {
        name: {str(label): int((normalized.labels == label).sum()) for label in range(10)}
        for name, normalized in splits.items()
    }


def test_at_most_a_fifth_is_held_out(raw_splits: Splits) -> None:
    splits, _ = normalize(raw_splits, validation_rows=5000)
    assert len(splits["validation"].labels) == 100


def test_only_the_seed_chooses_the_rows(raw_splits: Splits) -> None:
    chosen = [normalize(raw_splits, seed=seed)[0]["validation"].index.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data())
def test_each_class_is_held_out_in_its_share_to_within_one_row(labels: list[int], data: st.DataObject) -> None:
    array = np.array(labels, dtype=np.uint8)
    num_rows = data.draw(st.integers(0, len(labels)))
    rows = normalization.stratified(array, num_rows=num_rows, seed=1)
    assert len(set(rows.tolist())) == len(rows) == num_rows
    share = np.bincount(array, minlength=10) * num_rows / len(array)
    assert np.abs(np.bincount(array[rows], minlength=10) - share).max() < 1


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_the_moments_do_not_depend_on_how_the_rows_are_chunked(rows: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (rows, 4), dtype=np.uint8)
    images[0, :2] = 0, 255
    exact = [int(pixel) for pixel in images.ravel()]
    total, squares = sum(exact), sum(pixel**2 for pixel in exact)
    mean, std = normalization.mean_and_std(images)
    assert mean == pytest.approx(total / len(exact) / 255, rel=1e-15)
    assert std == pytest.approx(((len(exact) * squares - total**2) ** 0.5) / len(exact) / 255, rel=1e-14)


@pytest.mark.parametrize("rows", [999, 1000, 1001, 2500])
def test_images_standardised_in_chunks_agree_with_all_at_once(rows: int) -> None:
    random = np.random.default_rng(rows)
    raw = {
        name: RawSplit(
            images=random.integers(0, 256, (rows, 28, 28), dtype=np.uint8),
            labels=(np.arange(rows) % 10).astype(np.uint8),
            provenance={"dataset": "toy"},
        )
        for name in ("train", "test")
    }
    splits, report = normalize(raw)
    levels = ((np.arange(256) / 255 - report["mean"]) / report["std"]).astype(np.float32)
    for name, normalized in splits.items():
        images = raw["test" if name == "test" else "train"].images
        assert np.array_equal(normalized.images, levels[images][normalized.index])


@pytest.mark.parametrize("grey", [254, 255])
def test_the_moments_of_the_brightest_images_are_exact(grey: int) -> None:
    """Check the largest possible sums, which would be the first to be rounded in float32."""
    images = np.full((331, 28, 28), grey, np.uint8)
    images[0, 0, :3] = 253, 0, 1
    exact = [int(pixel) for pixel in images.ravel()]
    total, squares = sum(exact), sum(pixel**2 for pixel in exact)
    deviation = math.isqrt((len(exact) * squares - total**2) << 128) / 2**64
    assert normalization.mean_and_std(images) == pytest.approx(
        (total / (255 * len(exact)), deviation / (255 * len(exact))), rel=1e-15
    )


def test_test_images_that_occur_in_train_are_counted(raw_splits: Splits) -> None:
    test = raw_splits["test"].images.copy()
    test[3] = raw_splits["train"].images[17]
    raw = raw_splits | {"test": dataclasses.replace(raw_splits["test"], images=test)}
    assert normalize(raw)[1]["test_images_in_train"] == 1
    test[4] = raw_splits["train"].images[18]
    assert error(raw) == (
        "test: must share at most 1% of its images with train, but got 2 of 100; are the files swapped?"
    )


def test_a_training_split_that_is_too_small_is_refused(raw_splits: Splits) -> None:
    train = raw_splits["train"]
    few = dataclasses.replace(train, images=train.images[:4], labels=train.labels[:4])
    assert error(raw_splits | {"train": few}) == (
        "train: must have 5 rows or more, a fifth of them for validation, but got 4"
    )


def test_constant_training_images_are_refused(raw_splits: Splits) -> None:
    constant = dataclasses.replace(raw_splits["train"], images=np.full((500, 28, 28), 9, np.uint8))
    assert error(raw_splits | {"train": constant}) == (
        "train: the images must have more than one grey level, but got 9 in every pixel"
    )


def test_mnist_has_the_known_moments_and_no_overlap(mnist_mirror: Path) -> None:
    found = sources.fetch("mnist", mirrors=[str(mnist_mirror)], timeout_seconds=1, log=print)
    raw = sources.load("mnist", found)
    assert [round(moment, 4) for moment in normalization.mean_and_std(raw["train"].images)] == [0.1307, 0.3081]
    splits, report = normalize(raw, validation_rows=5000)
    assert report["rows"] == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert report["test_images_in_train"] == 0
    assert abs(splits["train"].images.mean(dtype=np.float64)) < 1e-6
    assert splits["train"].images.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)


@pytest.mark.services
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_is_deterministic_and_writes_nothing_from_damaged_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_splits: Splits
) -> None:
    from mnist_pipe.params.schema import NormalizeParams
    from pipelines.normalize import normalize as flow

    monkeypatch.chdir(tmp_path)
    for name, raw in raw_splits.items():
        write_raw(Path(f"data/raw/{name}.parquet"), raw)
    outputs = [Path(f"data/normalized/{name}.parquet") for name in ("train", "validation", "test")]
    outputs.append(Path("reports/data.json"))
    written = []
    for _ in range(2):
        flow(NormalizeParams(validation_rows=60, seed=0))
        written.append([path.read_bytes() for path in outputs])
        for path in outputs:
            path.unlink()
    assert written[0] == written[1]
    outputs[0].write_bytes(written[0][0])
    assert read_normalized(outputs[0]).provenance["source_sha256"] == sha256_of(raw_splits["train"])

    outputs[0].unlink()
    damaged = Path("data/raw/test.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=r"^data/raw/test.parquet: the file must be Parquet, but got "):
        flow(NormalizeParams(validation_rows=60, seed=0))
    assert not any(path.exists() for path in outputs)
