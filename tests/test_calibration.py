"""Test temperature scaling against models that are calibrated by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnist_pipe import models
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation import metrics
from mnist_pipe.evaluation.calibration import fit_temperature
from mnist_pipe.models import forward, saved

Sample = tuple[NDArray[np.float64], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def calibrated() -> Sample:
    """Logits, and labels drawn from their softmax, so that temperature 1 is the right one."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20_000, 10))
    probabilities = np.exp(metrics.log_probabilities(logits, where="test"))
    labels = (probabilities.cumsum(1) < random.random((20_000, 1))).sum(1).clip(max=9).astype(np.uint8)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_the_temperature_of_a_distorted_model_is_found(calibrated: Sample, temperature: float) -> None:
    logits, labels = calibrated
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_smaller_loss(calibrated: Sample) -> None:
    logits, labels = calibrated

    def nll(temperature: float) -> float:
        return metrics.compute_metrics(logits / temperature, labels, confidence=0.95, num_bins=15).nll

    best = fit_temperature(logits, labels)
    assert all(nll(best) <= nll(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize(("right", "bound"), [(True, 0.05), (False, 20)])
def test_rows_that_are_all_right_or_all_wrong_end_at_a_bound(right: bool, bound: float) -> None:
    labels = np.arange(10, dtype=np.uint8)
    logits = np.eye(10) if right else -np.eye(10)
    assert fit_temperature(logits, labels) == pytest.approx(bound, rel=1e-3)


def test_a_logit_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CorruptDataError, match="must be finite"):
        fit_temperature(np.full((1, 10), np.nan), np.zeros(1, dtype=np.uint8))


@pytest.mark.parametrize("shifts", [False, True])
def test_the_card_calibrates_the_model_and_changes_no_ranking(tmp_path: Path, shifts: bool) -> None:
    model = models.build("linear")
    torch.nn.init.normal_(model.get_parameter("output.weight"))
    card = {"model": "linear", "model_params": {}, "mean": 0.1, "std": 0.3, "test_time_augmentation": shifts}
    saved.save_model(tmp_path / "plain", model, card=card)
    saved.save_model(tmp_path / "scaled", model, card={**card, "temperature": 0.25})
    images = np.random.default_rng(0).normal(size=(50, 28, 28)).astype(np.float32)
    plain, scaled = (forward.logits(saved.load_model(tmp_path / name)[0], images) for name in ("plain", "scaled"))
    np.testing.assert_array_equal(scaled, 4 * plain)


def test_coverage_is_counted_by_hand() -> None:
    confidences, correct = np.array([0.3, 0.6, 0.9, 1.0]), np.array([False, False, True, True])
    found = metrics.compute_coverage(confidences, correct, thresholds=[0.0, 0.6, 0.95, 1.1])
    assert [(one.coverage, one.accuracy) for one in found] == [(1, 0.5), (0.75, 2 / 3), (0.25, 1), (0, None)]
