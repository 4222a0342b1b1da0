"""The runs of the study read by optimizer and column."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from studies.common.ledger import Run
from studies.common.published import Figure, Published

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
REPORTED = ("adadelta", "sgd", "adagrad", "rmsprop", "adam")
"""In the order of the report's table, from the worst to the best."""
PHASES = ("defaults", "tuned")
"""The columns."""


def histories(done: Sequence[Run], phase: str, name: str) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """The epochs after which an optimizer was looked at, and its loss and accuracy then, means over the seeds."""
    found = [run.result for run in done if run.config["phase"] == phase and name in run.result]
    curves = {
        key: np.mean([np.array(result[name][key], dtype=np.float64) for result in found], axis=0)  # None is NaN
        for key in ("train_loss", "test_accuracy")
    }
    return np.array(found[0]["epochs"]), curves


def accuracies(done: Sequence[Run], phase: str) -> dict[str, list[float]]:
    """By optimizer the last test accuracy of each seed, in percent."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for run in sorted((run for run in done if run.config["phase"] == phase), key=lambda run: run.config["seed"]):
        for name in run.config["learning_rates"]:
            found[name].append(round(100 * run.result[name]["test_accuracy"][-1], 4))
    return {name: values for name, values in found.items() if values}


def rates(done: Sequence[Run], phase: str) -> dict[str, float]:
    """The learning rate of each optimizer."""
    found: dict[str, float] = {}
    for run in done:
        if run.config["phase"] == phase:
            found |= run.config["learning_rates"]
    return {name: found[name] for name in NAMES if name in found}


def published_figure(name: str, published: Published) -> Figure | None:
    """What the report gives for an optimizer, if it has it."""
    return published.find(SYSTEM, NAMES[name], "test_accuracy") if name in REPORTED else None


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation of accuracies in percent."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} %"
