"""The runs of the study arranged by optimizer and column."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from studies.common.ledger import Run
from studies.common.published import Published, PublishedResult
from studies.optimizers.runs import REPORTED

SYSTEM = "LeNet-5 (average pooling; ReLU dense layers; 32x32 input)"
NAMES = {
    "adadelta": "Adadelta",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "momentum": "SGD with momentum",
    "nadam": "Nadam",
    "adamax": "Adamax",
    "amsgrad": "AMSGrad",
    "adamw": "AdamW",
    "muon": "Muon",
}
"""Displayed name of each optimizer."""
CONTROL_LABELS = {
    "rectified": "ReLU convolutions",
    "first epoch": "ReLU convolutions, one epoch",
    "slower": "rate of the others",
    "other start": "torch's first weights",
}
"""What each control changes, as the table and the figures name it."""
PHASES = ("defaults", "tuned")
"""Columns of the study's table."""


def histories(done: Sequence[Run], phase: str, name: str) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Return the epochs after which an optimizer was evaluated, int64 `(E,)`, and its loss and accuracy there.

    These are `train_loss` and `test_accuracy`, float64 `(seeds, E)` each, NaN if a value is missing.
    """
    found = [run.result for run in done if run.config["phase"] == phase and name in run.result]
    curves = {
        key: np.array([result[name][key] for result in found], dtype=np.float64)  # None is NaN
        for key in ("train_loss", "test_accuracy")
    }
    return np.array(found[0]["epochs"]), curves


def accuracies(done: Sequence[Run], phase: str) -> dict[str, list[float]]:
    """Return the last test accuracy of each seed, in percent, by optimizer."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for run in sorted((run for run in done if run.config["phase"] == phase), key=lambda run: run.config["seed"]):
        for name in run.config["learning_rates"]:
            found[name].append(round(100 * run.result[name]["test_accuracy"][-1], 4))
    return {name: values for name, values in found.items() if values}


def rates(done: Sequence[Run], phase: str) -> dict[str, float]:
    """Return the learning rate of each optimizer in the column `phase`."""
    found: dict[str, float] = {}
    for run in done:
        if run.config["phase"] == phase:
            found |= run.config["learning_rates"]
    return {name: found[name] for name in NAMES if name in found}


def published_result(name: str, published: Published) -> PublishedResult | None:
    """Return what the report gives for an optimizer, or None if it has no such row."""
    return published.find(SYSTEM, NAMES[name], "test_accuracy") if name in REPORTED else None


def shown(values: Sequence[float]) -> str:
    """Return the mean and standard deviation of accuracies in percent, as text."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} %"
