"""Test the predictions file: it is read as written, or an error names the file and the row."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation.predictions import Predictions, predict, read_predictions, write_predictions

FIX = "; run: dvc repro --force evaluate"


@pytest.fixture
def predictions() -> Predictions:
    random = np.random.default_rng(5)
    return predict(
        random.normal(size=(300, 10)).astype(np.float32),
        random.normal(size=(300, 10)).astype(np.float32),
        labels=random.integers(0, 10, 300).astype(np.uint8),
        index=random.permutation(300).astype(np.uint32),
        provenance={"dataset": "toy", "source_sha256": "ab"},
    )


def test_predictions_of_two_rows_agree_with_a_calculation_by_hand() -> None:
    logits = np.log(np.array([[0.5] + [0.5 / 9] * 9, [0.1] * 10], dtype=np.float32))
    baseline = np.eye(10, dtype=np.float32)[[9, 0]]
    found = predict(
        logits,
        baseline,
        labels=np.array([1, 0], dtype=np.uint8),
        index=np.array([7, 8], dtype=np.uint32),
        provenance={},
    )
    assert (found.prediction.tolist(), found.baseline_prediction.tolist()) == ([0, 0], [9, 0])
    assert found.probability == pytest.approx([0.5, 0.1])
    assert found.true_probability == pytest.approx([0.5 / 9, 0.1])
    assert (found.correct.tolist(), found.baseline_correct.tolist()) == ([False, True], [False, True])


def test_predictions_survive_the_round_trip(tmp_path: Path, predictions: Predictions) -> None:
    write_predictions(tmp_path / "p.parquet", predictions)
    found = read_predictions(tmp_path / "p.parquet")
    for field in fields(Predictions):
        expected, value = getattr(predictions, field.name), getattr(found, field.name)
        np.testing.assert_array_equal(value, expected)
        assert getattr(value, "dtype", None) == getattr(expected, "dtype", None), field.name


def test_the_same_predictions_are_the_same_bytes(tmp_path: Path, predictions: Predictions) -> None:
    for name in ("a", "b"):
        write_predictions(tmp_path / name, predictions)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_flipped_bit_is_detected(tmp_path: Path, predictions: Predictions) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, predictions)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptDataError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: every page must match its checksum, but got ")
    assert str(error.value).endswith(FIX)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"label": pa.array([1], pa.int64())}), path)
    with pytest.raises(CorruptDataError) as error:
        read_predictions(path)
    columns = "index: uint32, label: uint8, baseline_prediction: uint8, prediction: uint8, probability: float"
    assert str(error.value) == (
        f"{path}: the schema must be ({columns}, true_probability: float), but got (label: int64){FIX}"
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", 10, "label[4] must be 0 to 9, but got 10"),
        ("prediction", 255, "prediction[4] must be 0 to 9, but got 255"),
        ("baseline_prediction", 11, "baseline_prediction[4] must be 0 to 9, but got 11"),
        ("probability", np.nan, "probability[4] must be in [0, 1], but got nan"),
        ("true_probability", -0.5, "true_probability[4] must be in [0, 1], but got -0.5"),
    ],
)
def test_values_out_of_range_are_reported(
    tmp_path: Path, predictions: Predictions, column: str, value: float, message: str
) -> None:
    path = tmp_path / "p.parquet"
    values = getattr(predictions, column).copy()
    values[4] = value
    write_predictions(path, replace(predictions, **{column: values}))
    with pytest.raises(CorruptDataError) as error:
        read_predictions(path)
    assert str(error.value) == f"{path}: {message}{FIX}"


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError) as error:
        read_predictions(tmp_path / "p.parquet")
    assert str(error.value) == f"{tmp_path / 'p.parquet'} does not exist{FIX}"


def test_non_finite_logits_are_refused() -> None:
    bad = np.full((2, 10), np.inf, dtype=np.float32)
    zeros = np.zeros((2, 10), dtype=np.float32)
    labels, index = np.zeros(2, dtype=np.uint8), np.zeros(2, dtype=np.uint32)
    with pytest.raises(CorruptDataError) as error:
        predict(bad, zeros, labels=labels, index=index, provenance={})
    assert str(error.value) == "the candidate's output: logits[0, 0] must be finite, but got inf (2 such rows)"
    with pytest.raises(CorruptDataError) as error:
        predict(zeros, bad, labels=labels, index=index, provenance={})
    assert str(error.value) == "the baseline's output: logits[0, 0] must be finite, but got inf (2 such rows)"
