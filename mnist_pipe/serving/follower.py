"""The model that a replica serves, which follows an alias of the registry."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_pipe.errors import CorruptDataError, PipelineError, message_and_code
from mnist_pipe.inference import registered
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.registry import versions
from mnist_pipe.registry.versions import RegisteredModel

_PROBES = (1, 32)  # sizes of the batches that a model computes before it serves, which also warms torch up


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that has answered a probe."""

    classifier: Classifier
    model: RegisteredModel
    accuracy: float | None
    """Accuracy on the test split, in [0, 1], as it was registered; None if none was."""

    def describe(self) -> dict[str, Any]:
        """Return the model as `GET /model` shows it."""
        return {
            "name": self.model.name,
            "version": self.model.version,
            "content_sha256": self.model.content_sha256,
            "accuracy": self.accuracy,
            "dataset": self.classifier.card.get("dataset"),
            "labels": self.classifier.labels,
            "shape": list(self.classifier.facts.array_shape),
            "resize": self.classifier.facts.resize,
        }


class Follower:
    """The served model; `check` replaces it when the alias has moved to a version that works."""

    def __init__(self, spec: str, *, root: Path, log: logging.Logger) -> None:
        """Load the model that `spec` stands for, or, if its files are damaged, the version before it.

        Args:
            spec: `NAME@ALIAS`, which is followed, or `NAME/VERSION`, which is not.
            root: the folder of the registry and its downloads.
            log: where changes and refusals are logged.

        Raises:
            InputError: there is no such version.
            UnavailableError: the registry does not answer.
            CorruptDataError: the files of both versions are damaged.
        """
        self._spec, self._root, self._log = spec, root, log
        self._follows = "@" in spec
        self._refused: RegisteredModel | None = None
        self._silent = False
        self.problem = ""
        """Why the version that the alias names does not serve, or why it is unknown; empty if it serves."""
        found = registered.find(spec, root=root)
        try:
            self.served = _load(found, root=root)
        except CorruptDataError as error:
            if not self._follows:
                raise
            self._refuse(found, error)
            name = spec.partition("@")[0]
            self.served = _load(registered.find(f"{name}@{versions.PREVIOUS}", root=root), root=root)

    def check(self) -> None:
        """Serve the version that the alias names now, unless it does not load or does not answer a probe."""
        if not self._follows:
            return
        try:
            found = registered.find(self._spec, root=self._root)
        except PipelineError as error:
            if not self._silent:
                self._log.warning("%s; version %s goes on serving", error, self.served.model.version)
            self._silent, self.problem = True, str(error)
            return
        self._silent = False
        if found == self.served.model:
            self._refused, self.problem = None, ""
        elif found != self._refused:
            try:
                self.served = _load(found, root=self._root)
            except Exception as error:  # whatever is wrong with a new version, the old one goes on serving
                self._refuse(found, error)
            else:
                self._refused, self.problem = None, ""
                self._log.warning("%s/%s serves now", found.name, found.version)

    def _refuse(self, found: RegisteredModel, error: Exception) -> None:
        message, _ = message_and_code(error)
        self._refused, self.problem = found, f"{found.name}/{found.version} does not serve: {message}"
        self._log.error("%s", self.problem)


def _load(found: RegisteredModel, *, root: Path) -> Served:
    """Load a version and probe it.

    Raises:
        CorruptDataError: its files are damaged, or it does not answer as a classifier does.
        UnavailableError: the registry does not answer.
    """
    classifier = registered.load(f"{found.name}/{found.version}", root=root)
    random, image = np.random.default_rng(0), classifier.facts.array_shape
    for size in _PROBES:
        classifier.probabilities(random.integers(0, 256, (size, *image), dtype=np.uint8))
    labels, shape = len(classifier.labels), classifier.probabilities(np.zeros((1, *image), np.uint8)).shape
    if shape != (1, labels):
        rule = f"answer one image with {labels} probabilities"
        raise CorruptDataError.invalid(f"{found.name}/{found.version}", "the model", rule, got=shape)
    classifier.saliency(np.zeros(image, np.uint8))
    return Served(classifier=classifier, model=found, accuracy=_accuracy(found, root=root))


def _accuracy(found: RegisteredModel, *, root: Path) -> float | None:
    try:
        return float(versions.metrics(found, root=root)["test"]["accuracy"])
    except (CorruptDataError, LookupError, TypeError, ValueError):  # no reason not to serve
        return None
