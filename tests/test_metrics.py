"""Test every metric against scikit-learn, torch or a count by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation import metrics


@pytest.fixture
def logits() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 3, (400, 10)).astype(np.float32)


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 10, 400).astype(np.uint8)


def metrics_of(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> metrics.Metrics:
    return metrics.compute_metrics(logits, labels, confidence=0.95, num_bins=15)


def test_log_probabilities_agree_with_torch(logits: NDArray[np.float32]) -> None:
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    np.testing.assert_allclose(metrics.log_probabilities(logits, where="x"), expected, rtol=1e-12)


def test_the_largest_logits_do_not_overflow() -> None:
    huge = np.full((1, 10), -np.finfo(np.float32).max, dtype=np.float32)
    huge[0, 3] = np.finfo(np.float32).max
    logs = metrics.log_probabilities(huge, where="x")
    assert logs[0, 3] == 0
    assert np.isfinite(logs).all()


def test_likelihood_and_accuracy_agree_with_scikit_learn(
    logits: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    found = metrics_of(logits, labels)
    probabilities = np.exp(metrics.log_probabilities(logits, where="x"))
    assert found.nll == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=range(10)), rel=1e-9)
    assert found.accuracy == sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1))
    assert (found.num_rows, found.num_correct) == (
        400,
        sklearn.metrics.accuracy_score(labels, logits.argmax(1), normalize=False),
    )


@pytest.mark.parametrize("sizes", [(40, 40, 40), (100, 5, 15), (60, 60, 0)], ids=["equal", "unequal", "absent"])
def test_metrics_that_count_classes_the_same_agree_with_scikit_learn(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint8), sizes)
    logits = np.random.default_rng(5).normal(0, 1, (len(labels), 3)) + np.eye(3)[labels]
    if sizes[2] == 0:
        logits[:, 2] = -9  # scikit-learn would count a class that is predicted and has no rows, and so do we
    found = metrics_of(logits.astype(np.float32), labels)
    predictions = logits.argmax(axis=1)
    assert found.balanced_accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predictions))
    assert found.macro_f1 == pytest.approx(sklearn.metrics.f1_score(labels, predictions, average="macro"))


def test_a_model_that_knows_only_the_large_class_has_a_poor_balanced_accuracy() -> None:
    logits = np.tile(np.array([1, 0], dtype=np.float32), (21, 1))
    found = metrics_of(logits, np.array([0] * 20 + [1], dtype=np.uint8))
    assert found.accuracy == 20 / 21
    assert found.balanced_accuracy == 0.5
    assert found.macro_f1 == pytest.approx(40 / 41 / 2)


def test_brier_score_agrees_with_a_calculation_by_hand() -> None:
    # Equal logits give each class 1/10: 9 squares of 0.1 and one of 0.9. A certain and right row adds nothing.
    sure = np.where(np.arange(10) == 4, 1000, 0)
    found = metrics_of(np.array([np.zeros(10), sure], dtype=np.float32), np.array([7, 4], dtype=np.uint8))
    assert found.brier == pytest.approx((9 * 0.01 + 0.81) / 2)


def test_metrics_of_three_rows_agree_with_a_calculation_by_hand() -> None:
    even = math.log(9)  # this logit and nine zeros give a probability of 1/2
    rows = [np.where(np.arange(10) == top, even, 0) for top in (0, 1, 2)]
    found = metrics_of(np.array(rows, dtype=np.float64), np.array([0, 1, 9], dtype=np.uint8))
    assert (found.num_rows, found.num_correct, found.accuracy) == (3, 2, 2 / 3)
    assert found.nll == pytest.approx((2 * math.log(2) + math.log(18)) / 3)
    assert found.calibration_error == pytest.approx(2 / 3 - 1 / 2)


def test_a_label_is_predicted_by_the_first_of_equal_logits() -> None:
    assert metrics_of(np.zeros((1, 10), dtype=np.float32), np.array([0], dtype=np.uint8)).num_correct == 1


@given(rows=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(rows: int, share: float, confidence: float) -> None:
    right = round(share * rows)
    oracle = binomtest(right, rows).proportion_ci(confidence_level=confidence, method="wilson")
    low, high = metrics.wilson_interval(right, num_rows=rows, confidence=confidence)
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert 0 <= low <= right / rows <= high <= 1


def test_calibration_error_agrees_with_the_published_code() -> None:
    """Compare with the loop of Guo et al.: https://github.com/gpleiss/temperature_scaling, class ECELoss."""
    random = np.random.default_rng(3)
    confidences = random.uniform(0.1, 1, 2000)
    correct = random.uniform(size=2000) < confidences**2
    expected = 0.0
    boundaries = torch.linspace(0, 1, 16, dtype=torch.float64)
    given_confidences, accuracies = torch.from_numpy(confidences), torch.from_numpy(correct)
    for lower, upper in pairwise(boundaries.tolist()):
        in_bin = given_confidences.gt(lower) & given_confidences.le(upper)
        if in_bin.any():
            gap = (given_confidences[in_bin].mean() - accuracies[in_bin].double().mean()).abs()
            expected += float(gap * in_bin.double().mean())
    assert metrics.calibration_bins(confidences, correct, num_bins=15).error == pytest.approx(expected, rel=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    bins = metrics.calibration_bins(np.array([0.0, 0.25, 0.5, 0.51, 1.0]), np.ones(5, dtype=bool), num_bins=4)
    assert bins.counts.tolist() == [2, 1, 1, 1]


def test_a_model_that_is_always_right_and_certain_is_calibrated() -> None:
    assert metrics.calibration_bins(np.ones(7), np.ones(7, dtype=bool), num_bins=15).error == 0


def test_confusion_matrix_agrees_with_scikit_learn(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    predictions = logits.argmax(axis=1).astype(np.uint8)
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(10))
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions), expected)


def test_per_class_metrics_agree_with_scikit_learn(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    predictions = logits.argmax(axis=1).astype(np.uint8)
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(10), zero_division=np.nan
    )
    found = metrics.compute_class_metrics(metrics.confusion_matrix(labels, predictions))
    for label, (one, row) in enumerate(zip(found, np.array(expected).T, strict=True)):
        assert one.label == label
        assert (one.precision, one.recall, one.f1, one.num_rows) == pytest.approx(tuple(row))


def test_an_absent_class_has_no_metrics() -> None:
    labels = np.array([0, 0, 1], dtype=np.uint8)
    found = metrics.compute_class_metrics(metrics.confusion_matrix(labels, np.array([0, 2, 0], dtype=np.uint8)))
    assert (found[0].precision, found[0].recall, found[0].f1) == (0.5, 0.5, 0.5)
    assert (found[1].precision, found[1].recall, found[1].f1) == (None, 0.0, 0.0)
    assert (found[2].precision, found[2].recall, found[2].f1) == (0.0, None, 0.0)
    assert (found[3].precision, found[3].recall, found[3].f1) == (None, None, None)


def test_non_finite_logits_are_refused(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    logits[17, 3] = np.nan
    with pytest.raises(CorruptDataError) as error:
        metrics.compute_metrics(logits, labels, confidence=0.95, num_bins=15, where="models/candidate")
    assert str(error.value) == "models/candidate: logits[17, 3] must be finite, but got nan"
    logits[20, [1, 2]] = np.inf
    with pytest.raises(CorruptDataError) as error:
        metrics.log_probabilities(logits, where="models/candidate")
    assert str(error.value) == "models/candidate: logits[17, 3] must be finite, but got nan (2 such rows)"
