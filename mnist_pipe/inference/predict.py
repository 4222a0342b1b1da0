"""Classification of image files with a registered model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnist_pipe import paths
from mnist_pipe.data.images import load_image
from mnist_pipe.errors import InputError, PipelineError, UnavailableError
from mnist_pipe.evaluation.metrics import log_probabilities
from mnist_pipe.registry import mlflow_registry
from mnist_pipe.training.checkpoint import load_model
from mnist_pipe.training.loop import logits


def classify(pictures: Sequence[Path], *, root: Path, model: str | None = None) -> list[Prediction | PipelineError]:
    """Return the prediction for each picture, in order; for a picture that cannot be read, the exception.

    Args:
        pictures: PNG or JPEG files.
        root: the project's root.
        model: `NAME@ALIAS` or `NAME/VERSION`; None is the champion of the data set that was registered last.

    Raises:
        InputError: there is no such model, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    network, card = load_model(mlflow_registry.download(registered(model, root=root), root=root))
    results: list[Prediction | PipelineError] = []
    for path in pictures:
        try:
            image = (load_image(path) - np.float32(card["mean"])) / np.float32(card["std"])
        except InputError as error:
            results.append(error)
            continue
        probabilities = np.exp(log_probabilities(logits(network, image[np.newaxis]), where=path))[0]
        digit = int(probabilities.argmax())
        results.append(
            Prediction(
                path=path, digit=digit, probability=float(probabilities[digit]), probabilities=probabilities.tolist()
            )
        )
    return results


def registered(model: str | None, *, root: Path) -> mlflow_registry.RegisteredModel:
    """Return the registered version that `model`, `NAME@ALIAS` or `NAME/VERSION`, stands for.

    None stands for the champion of the name in `reports/registration.json` or, without that file, the only champion.

    Raises:
        InputError: there is no such version, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
    """
    if model:
        return mlflow_registry.find(model, root=root)
    try:
        name = str(json.loads((root / paths.REGISTRATION).read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        of, champions = "", mlflow_registry.champions(root=root)
    else:
        of, champion = f" of {name}", mlflow_registry.champion(name, root=root)
        champions = [champion] if champion else []
    if len(champions) > 1:
        known = ", ".join(f"{model.name}@{mlflow_registry.CHAMPION}" for model in champions)
        raise InputError.missing(
            "--model", state="is not set, but several champions are registered", fix=f"choose one of {known}"
        )
    if not champions:
        raise UnavailableError.missing(f"no champion{of}", state="is registered yet", fix="run: dvc repro")
    return champions[0]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The model's prediction for one picture."""

    path: Path
    digit: int
    """The most probable digit."""
    probability: float
    """The probability of `digit`."""
    probabilities: list[float]
    """The probabilities of the digits 0 to 9, which sum to 1."""
