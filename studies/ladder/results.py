"""The runs of the study arranged by model: the steps between models, their metrics and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES
from studies.common.ledger import Run
from studies.ladder.runs import is_moved, num_parameters

SIDES = (14, 28, 56, 112, 224)
"""Side lengths, in pixels, of the images for which each model's parameters are counted."""


def values_of(runs: Sequence[Run], metric: str) -> list[float]:
    """Return a metric of one model's runs, one value per seed."""
    return [one.result[metric] for one in runs]


def templates_of(done: Sequence[Run]) -> tuple[list[int], NDArray[np.float64]]:
    """Return the numbers of templates a class, and the accuracy of the nearest one, float64 `(seeds, numbers)`."""
    found = [one for one in done if one.config["task"] == "prototypes"]
    return found[0].config["numbers"], np.array([one.result["accuracy"] for one in found])


def steps_of(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the comparison of each rung with the next larger one.

    A model trained on moved images is compared with the same model trained without them.
    """
    plain = [name for name, runs in classifiers.items() if not is_moved(runs[0].config)]
    steps = [pair(conclusions, lower=lower, upper=upper) for lower, upper in pairwise(plain)]
    for name, runs in classifiers.items():
        twins = [other for other in plain if architecture(classifiers[other]) == architecture(runs)]
        steps += [pair(conclusions, lower=twin, upper=name) for twin in twins if twin != name]
    return steps


def pair(conclusions: Mapping[str, Any], *, lower: str, upper: str) -> Mapping[str, Any]:
    """Return the comparison of the models `lower` and `upper`."""
    found: Mapping[str, Any] = next(
        step for step in conclusions["steps"] if (step["lower"], step["upper"]) == (lower, upper)
    )
    return found


def kinds_of(classifiers: Mapping[str, Sequence[Run]]) -> list[tuple[str, list[float], str, str]]:
    """Return (key of the result, amounts, title, unit) of the two ways in which the test images are moved."""
    config = next(iter(classifiers.values()))[0].config
    return [
        ("shifted", config["shifts"], "test images shifted", "pixels"),
        ("turned", config["rotations"], "test images turned", "degrees"),
    ]


def size_of(runs: Sequence[Run], *, side: int, pooled: bool = False) -> int:
    """Return the number of parameters of the runs' model for images of side x side pixels; see `num_parameters`."""
    model, model_params = architecture(runs)
    return num_parameters(model, model_params, side=side, pooled=pooled)


def architecture(runs: Sequence[Run]) -> tuple[str, dict[str, Any]]:
    """Return the name of the runs' model and its constructor arguments."""
    recipe = runs[0].config["recipe"]
    return recipe["model"], recipe["model_params"]


def is_linear(runs: Sequence[Run]) -> bool:
    """Return whether the runs are those of the linear model."""
    return architecture(runs)[0] == "linear"


def weights_in_colour() -> int:
    """Return the number of parameters of a linear model of ten classes for the largest images with three channels."""
    return (3 * SIDES[-1] ** 2 + 1) * NUM_CLASSES
