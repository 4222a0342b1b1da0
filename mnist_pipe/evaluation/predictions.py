"""The predictions of the candidate and the baseline on one split, as a Parquet file.

The paired tests and the plots read these files, so each model is run on a split only once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_pipe.data.facts import Facts
from mnist_pipe.data.parquet import read_columns, write_columns
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation.metrics import log_probabilities

SCHEMA = pa.schema(
    [
        pa.field("index", pa.uint32(), nullable=False),
        pa.field("label", pa.uint8(), nullable=False),
        pa.field("baseline_prediction", pa.uint8(), nullable=False),
        pa.field("prediction", pa.uint8(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("true_probability", pa.float32(), nullable=False),
    ]
)
_FIX = "run: dvc repro --force evaluate"


def predict(
    logits: NDArray[np.float32],
    baseline_logits: NDArray[np.float32],
    *,
    labels: NDArray[np.uint8],
    index: NDArray[np.uint32],
    provenance: dict[str, Any],
) -> Predictions:
    """Return the predictions that follow from the logits of the candidate and of the baseline.

    Args:
        logits: the candidate's logits, float32 `(N, classes)`.
        baseline_logits: the baseline's logits, float32 `(N, classes)`.
        labels: the classes, uint8 `(N,)`.
        index: the row numbers in the raw split, uint32 `(N,)`.
        provenance: the provenance of the split.

    Raises:
        CorruptDataError: a logit is not finite.
    """
    logs = log_probabilities(logits, where="the candidate's output")
    baseline = log_probabilities(baseline_logits, where="the baseline's output")
    rows = np.arange(len(labels))
    return Predictions(
        index=index,
        label=labels,
        baseline_prediction=baseline.argmax(axis=1).astype(np.uint8),
        prediction=logs.argmax(axis=1).astype(np.uint8),
        probability=np.exp(logs.max(axis=1)).astype(np.float32),
        true_probability=np.exp(logs[rows, labels]).astype(np.float32),
        provenance=provenance,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write `predictions` to `path`, whole or not at all."""
    columns = {name: getattr(predictions, name) for name in SCHEMA.names}
    write_columns(path, SCHEMA, columns, predictions.provenance)


def read_predictions(path: Path) -> Predictions:
    """Read the predictions on one split from `path`.

    Raises:
        CorruptDataError: the file is not Parquet, has another schema or no rows, fails a checksum, or has a label
            without a class or a probability outside [0, 1].
    """
    found, provenance = read_columns(path, lambda _: SCHEMA, fix=_FIX)
    last = Facts.of(provenance).num_classes - 1
    columns = {field.name: found[field.name].view(field.type.to_pandas_dtype()).reshape(-1) for field in SCHEMA}
    for name, values in columns.items():
        if name == "index":
            continue
        limit, rule = (1, "be in [0, 1]") if values.dtype == np.float32 else (last, f"be 0 to {last}")
        wrong = np.flatnonzero(~((values >= 0) & (values <= limit)))  # the negation finds NaN too
        if wrong.size:
            raise CorruptDataError.invalid(path, f"{name}[{wrong[0]}]", rule, got=values[wrong[0]], fix=_FIX)
    return Predictions(**columns, provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions on one split, in arrays `(N,)` with one entry per row in the order of the split."""

    index: NDArray[np.uint32]
    """Row numbers in the raw split."""
    label: NDArray[np.uint8]
    """True classes."""
    baseline_prediction: NDArray[np.uint8]
    """Classes that the baseline predicts."""
    prediction: NDArray[np.uint8]
    """Classes that the candidate predicts."""
    probability: NDArray[np.float32]
    """The candidate's probability of the class that it predicts."""
    true_probability: NDArray[np.float32]
    """The candidate's probability of the true class."""
    provenance: dict[str, Any]
    """Provenance of the split, with at least `dataset`."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the candidate is right, bool `(N,)`."""
        correct: NDArray[np.bool_] = self.prediction == self.label
        return correct

    @property
    def baseline_correct(self) -> NDArray[np.bool_]:
        """Whether the baseline is right, bool `(N,)`."""
        correct: NDArray[np.bool_] = self.baseline_prediction == self.label
        return correct
