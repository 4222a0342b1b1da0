"""Networks trained by the recipe `best`, one per seed, and their averages.

The main pipeline chose the recipe on the validation split. Each network trains on all 60,000 rows for a fixed number of
epochs, is judged by its last weights, and belongs to the ensemble whatever its score: nothing here is chosen, on the
test split or any other.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnist_pipe.data.splits import NUM_CLASSES
from mnist_pipe.evaluation.metrics import wilson_interval
from mnist_pipe.models import forward
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.params.schema import Epochs, Section
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.fitting import Splits, device, fit, pixels, whole
from studies.common.ledger import Config, Result, Run

_CONFIDENCE = 0.95
_MOST_SUBSETS = 100


class Params(Section):
    """The section `frontier` of `studies/params.yaml`."""

    num_networks: Annotated[int, Field(ge=3, le=100)]
    """Number of networks, one per seed: as many as the machine trains in the hour."""
    ensemble_size: Annotated[int, Field(ge=2, le=50)]
    """Networks of a small ensemble; the networks are split into as many of these as possible."""
    channels: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=4)]
    """Channels of each block of the convnet."""
    num_epochs: Epochs


def plan(params: Params) -> list[Config]:
    """Return one configuration for each seed."""
    return [
        {
            "channels": params.channels,
            "num_epochs": params.num_epochs,
            "ensemble_size": params.ensemble_size,
            "seed": seed,
        }
        for seed in range(params.num_networks)
    ]


def recipe_of(config: Config) -> Recipe:
    """Return the recipe `best` of `params.yaml`, with the study's channels and epochs."""
    return Recipe(
        model="convnet",
        model_params={"channels": config["channels"], "convolutions": 2},
        optimizer="muon",
        learning_rate=0.03,
        weight_decay=1e-5,
        batch_size=128,
        num_epochs=config["num_epochs"],
        schedule="triangle",
        label_smoothing=0.05,
        rotation_degrees=10,
        translation_pixels=1.5,
        seed=config["seed"],
    )


def run(config: Config, splits: Splits) -> Result:
    """Train one network; return its test accuracy with one view of each image and with five (`ShiftAveraged`)."""
    training, test = whole(splits), splits["test"]
    watched = splits["validation"].first(1000)  # rows that it is trained on: they choose nothing
    model, history = fit(recipe_of(config), training=training, watched=watched)
    background = to_device(test, device=device()).background
    one = forward.logits(model, test.images)
    five = forward.logits(ShiftAveraged(model, background=background), test.images)
    metrics = {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_accuracy": round(history[-1]["train_accuracy"], 6),
        "one_look_accuracy": float((one.argmax(1) == test.labels).mean()),
        "test_accuracy": float((five.argmax(1) == test.labels).mean()),
    }
    return Result(metrics=metrics, intermediate={"log_probabilities": packed(five)})


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return the accuracies of averaged log-probabilities: small ensembles without a common member, and all networks.

    `by_size` is the mean accuracy over subsets of each size, `mistakes` what the whole ensemble takes for another
    digit.
    """
    labels = splits["test"].labels
    logs = np.stack([unpacked(run.intermediate["log_probabilities"]) for run in done])
    size = done[0].config["ensemble_size"]
    groups = [logs[start : start + size] for start in range(0, len(logs) - size + 1, size)]
    average = logs.mean(0)
    predictions = average.argmax(1)
    probabilities = np.exp(average - np.logaddexp.reduce(average, axis=1, keepdims=True))
    wrong = np.flatnonzero(predictions != labels)
    ink = np.rint(255 * pixels(splits["test"])).astype(np.uint8)
    num_correct = len(labels) - len(wrong)
    return {
        "ensembles": [accuracy(group, labels) for group in groups],
        "whole_ensemble": num_correct / len(labels),
        "interval": list(wilson_interval(num_correct, num_rows=len(labels), confidence=_CONFIDENCE)),
        "by_size": [_mean_accuracy(logs, number, labels) for number in range(1, len(logs) + 1)],
        "mistakes": [
            {
                "row": int(row),
                "label": int(labels[row]),
                "prediction": int(predictions[row]),
                "probability": round(float(probabilities[row].max()), 4),
                "pixels": base64.b64encode(ink[row].tobytes()).decode(),
            }
            for row in wrong
        ],
        "wrong_of_all": int((logs.argmax(2) != labels).all(0).sum()),
        "num_rows": len(labels),
    }


def accuracy(logs: NDArray[np.floating[Any]], labels: NDArray[np.uint8]) -> float:
    """Return the accuracy of the mean over `(networks, N, 10)` log-probabilities, given labels, uint8 `(N,)`."""
    return float((logs.mean(0).argmax(1) == labels).mean())


def packed(logs: NDArray[np.float32]) -> str:
    """Return log-probabilities, float32 `(N, 10)`, as text, in half precision."""
    return base64.b64encode(logs.astype(np.float16).tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """Return the log-probabilities, float32 `(N, 10)`, that `packed` turned into `text`, to half precision."""
    return np.frombuffer(base64.b64decode(text), np.float16).reshape(-1, NUM_CLASSES).astype(np.float32)


def _mean_accuracy(logs: NDArray[np.float32], size: int, labels: NDArray[np.uint8]) -> float:
    """Return the mean accuracy over the subsets of `size` networks, or over `_MOST_SUBSETS` of them, evenly spaced.

    `logs` are float32 `(networks, N, 10)`, `labels` uint8 `(N,)`.
    """
    subsets = list(combinations(range(len(logs)), size))
    chosen = [subsets[int(i)] for i in np.unique(np.linspace(0, len(subsets) - 1, _MOST_SUBSETS).astype(int))]
    return round(float(np.mean([accuracy(logs[list(subset)], labels) for subset in chosen])), 6)
