"""Classification of image files with a registered model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnist_pipe.data.images import load_image
from mnist_pipe.errors import InputError, PipelineError
from mnist_pipe.inference import registered


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
    classifier = registered.load(model, root=root)
    results: list[Prediction | PipelineError] = []
    for path in pictures:
        try:
            image = np.rint(255 * load_image(path)).astype(np.uint8)
        except InputError as error:
            results.append(error)
            continue
        found = classifier.predict(image[np.newaxis])
        results.append(
            Prediction(
                path=path,
                digit=int(found.classes[0]),
                probability=float(found.probability[0]),
                probabilities=found.probabilities[0].tolist(),
            )
        )
    return results


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
