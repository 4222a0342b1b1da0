"""The library behind `dvc repro`: data, models, training, evaluation and registry. Importing it has no side effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_pipe.inference.classifier import Classifier


def load(spec: str | None = None, *, root: Path | None = None) -> Classifier:
    """Load a registered model.

    `mnist_pipe.load("mnist-classifier@champion").predict(images)` classifies grey images, uint8 `(N, 28, 28)`.

    Args:
        spec: `NAME@ALIAS` or `NAME/VERSION`; None is the champion of the data set that was registered last.
        root: the project's root; None is the project of the current folder.

    Raises:
        InputError: there is no such model, several champions are registered, or the folder is in no project.
        UnavailableError: there is no champion yet, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    from mnist_pipe import paths
    from mnist_pipe.inference import registered

    return registered.load(spec, root=root or paths.find_root(Path.cwd()))
