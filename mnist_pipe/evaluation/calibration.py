"""Calibration by temperature scaling, fitted on held-out rows (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from mnist_pipe.evaluation.metrics import log_probabilities

_RANGE = (0.05, 20.0)  # rows that are all right would lead to 0, rows that are all wrong to infinity


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.uint8]) -> float:
    """Return the temperature, 0.05 to 20, by which dividing the logits minimises the negative log-likelihood.

    Args:
        logits: floating point `(N, classes)`, of rows that the model was not trained on.
        labels: the true classes, uint8 `(N,)`.

    Raises:
        CorruptDataError: a logit is not finite.
    """
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        return float(-log_probabilities(scaled, where="logits")[rows, labels].mean())

    low, high = (math.log(bound) for bound in _RANGE)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-5}).x)
