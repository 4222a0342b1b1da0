"""Metrics of a model's logits: accuracy, likelihood, calibration and per-class metrics, with numpy and scipy only.

Every metric is a sum divided once by a count: a mean of batch means would give a short last batch too much weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, ndtri  # scipy.stats would take half a second longer to import

from mnist_pipe.data.facts import MNIST
from mnist_pipe.errors import CorruptDataError


def log_probabilities(logits: NDArray[np.floating[Any]], *, where: object) -> NDArray[np.float64]:
    """Return the logarithm of the softmax, float64 `(N, classes)`, of logits, floating point `(N, classes)`.

    It does not overflow for the largest finite logit.

    Raises:
        CorruptDataError: a logit is not finite; the message names `where` and the first such row.
    """
    wrong = np.argwhere(~np.isfinite(logits))
    if wrong.size:
        row, column = wrong[0]
        rows = len(np.unique(wrong[:, 0]))
        more = f" ({rows} such rows)" if rows > 1 else ""
        raise CorruptDataError.invalid(
            where, f"logits[{row}, {column}]", "be finite", got=f"{logits[row, column]}{more}"
        )
    result: NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=1)
    return result


def wilson_interval(num_correct: int, *, num_rows: int, confidence: float) -> tuple[float, float]:
    """Return the bounds of the score interval of the proportion `num_correct / num_rows` (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] near 100 %.
    """
    z, rate = float(ndtri((1 + confidence) / 2)), num_correct / num_rows
    centre = rate + z * z / (2 * num_rows)
    spread = z * math.sqrt((rate * (1 - rate) + z * z / (4 * num_rows)) / num_rows)
    low, high = ((centre + side * spread) / (1 + z * z / num_rows) for side in (-1, 1))
    # Rounding must not move a bound past the rate or out of [0, 1].
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))


def calibration_bins(
    confidences: NDArray[np.floating[Any]], correct: NDArray[np.bool_], *, num_bins: int
) -> CalibrationBins:
    """Count the rows by the probability of their predicted class, in bins (k/n, (k+1)/n] (Guo et al. 2017).

    Args:
        confidences: the probability of the predicted class, floating point `(N,)`, 0 to 1.
        correct: whether the prediction is right, bool `(N,)`.
        num_bins: the number n of bins.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.digitize(confidences, edges, right=True) - 1, 0, num_bins - 1)
    return CalibrationBins(
        edges=edges,
        counts=np.bincount(bins, minlength=num_bins),
        num_correct=np.bincount(bins, weights=correct, minlength=num_bins).astype(np.int64),
        confidence_sums=np.bincount(bins, weights=confidences, minlength=num_bins).astype(np.float64),
    )


def compute_coverage(
    confidences: NDArray[np.floating[Any]], correct: NDArray[np.bool_], *, thresholds: Sequence[float]
) -> list[Coverage]:
    """Return, for each threshold, how many rows a model answers that abstains below it, and how well.

    Args:
        confidences: the probability of the predicted class, floating point `(N,)`, 0 to 1.
        correct: whether the prediction is right, bool `(N,)`.
        thresholds: the smallest confidences at which the model answers, 0 to 1.
    """
    found = []
    for threshold in thresholds:
        answered = confidences >= threshold
        accuracy = float(correct[answered].mean()) if answered.any() else None
        found.append(Coverage(min_confidence=threshold, coverage=float(answered.mean()), accuracy=accuracy))
    return found


def confusion_matrix(
    labels: NDArray[np.uint8], predictions: NDArray[np.uint8], *, num_classes: int = MNIST.num_classes
) -> NDArray[np.int64]:
    """Return the counts of actual (row) and predicted (column) classes, int64 `(num_classes, num_classes)`.

    `labels` and `predictions` are uint8 `(N,)`.
    """
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_class_metrics(matrix: NDArray[np.int64], *, names: Sequence[str] = MNIST.labels) -> list[ClassMetrics]:
    """Return precision, recall and F1 of each class, None if the divisor is 0.

    Args:
        matrix: counts of actual (row) and predicted (column) classes, int64 `(classes, classes)`.
        names: the names of the classes.
    """

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    found = []
    for label, name in enumerate(names):
        hits, actual, predicted = (int(n) for n in (matrix[label, label], matrix[label].sum(), matrix[:, label].sum()))
        found.append(
            ClassMetrics(
                label=label,
                name=name,
                num_rows=actual,
                num_correct=hits,
                precision=ratio(hits, predicted),
                recall=ratio(hits, actual),
                f1=ratio(2 * hits, actual + predicted),
            )
        )
    return found


def compute_metrics(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.uint8],
    *,
    confidence: float,
    num_bins: int,
    where: object = "logits",
) -> Metrics:
    """Compute all metrics of one model on one split.

    Args:
        logits: floating point `(N, classes)`.
        labels: uint8 `(N,)`.
        confidence: the confidence of the interval of the accuracy, 0 to 1.
        num_bins: the number of bins of the calibration error.
        where: the source of the logits, for the message.

    Raises:
        CorruptDataError: a logit is not finite.
    """
    logs = log_probabilities(logits, where=where)
    predictions = logs.argmax(axis=1)
    correct = predictions == labels
    num_rows, num_correct = len(labels), int(correct.sum())
    target = np.eye(logits.shape[1])[labels]
    matrix = confusion_matrix(labels, predictions.astype(np.uint8), num_classes=logits.shape[1])
    hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    bins = calibration_bins(np.exp(logs.max(axis=1)), correct, num_bins=num_bins)
    return Metrics(
        num_rows=num_rows,
        num_correct=num_correct,
        accuracy=num_correct / num_rows,
        interval=wilson_interval(num_correct, num_rows=num_rows, confidence=confidence),
        nll=float(-logs[np.arange(num_rows), labels].sum() / num_rows),
        calibration_error=bins.error,
        brier=float(((np.exp(logs) - target) ** 2).sum() / num_rows),
        balanced_accuracy=float((hits / actual.clip(1))[actual > 0].mean()),
        macro_f1=float((2 * hits / (actual + predicted).clip(1))[actual + predicted > 0].mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of one model on one split."""

    num_rows: int
    num_correct: int
    accuracy: float
    """Share of rows predicted right, num_correct / num_rows."""
    interval: tuple[float, float]
    """Lower and upper bound of the Wilson interval of the accuracy."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    calibration_error: float
    """Expected calibration error, 0 to 1."""
    brier: float
    """Mean squared distance between the probabilities and the one-hot truth, 0 to 2 (Brier 1950)."""
    balanced_accuracy: float
    """Mean recall over the classes that have rows: each class counts the same, whatever its size."""
    macro_f1: float
    """Mean F1 over the classes that have rows or are predicted; 0 for a class of which nothing is right."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """The metrics of one class on one split."""

    label: int
    name: str
    num_rows: int
    """Number of rows of the class."""
    num_correct: int
    """Number of these rows that are predicted right."""
    precision: float | None
    """Share of the rows predicted as the class that are of it; None if no row is predicted as it."""
    recall: float | None
    """Share of the rows of the class that are predicted as it; None if the class has no rows."""
    f1: float | None
    """Harmonic mean of precision and recall; None if the class is neither present nor predicted."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The result of a model that abstains below a confidence."""

    min_confidence: float
    """Smallest probability of the predicted class at which the model answers, 0 to 1."""
    coverage: float
    """Share of rows that it answers, 0 to 1."""
    accuracy: float | None
    """Share of the answered rows that are predicted right; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBins:
    """The data of a reliability diagram, with one entry per bin."""

    edges: NDArray[np.float64]
    """Edges of the bins, `(bins + 1,)`, 0 to 1."""
    counts: NDArray[np.int64]
    """Number of rows in each bin, `(bins,)`."""
    num_correct: NDArray[np.int64]
    """Number of rows in each bin that are predicted right, `(bins,)`."""
    confidence_sums: NDArray[np.float64]
    """Sum over each bin of the probability of the predicted class, `(bins,)`."""

    @property
    def error(self) -> float:
        """Expected calibration error: the sum over bins of |correct - confidence| / rows (Guo et al. 2017, eq. 3)."""
        return float(np.abs(self.num_correct - self.confidence_sums).sum() / self.counts.sum())
