"""The registered model that a user means, ready to classify."""

from __future__ import annotations

import json
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.errors import InputError, UnavailableError
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.registry import versions
from mnist_pipe.registry.versions import RegisteredModel


def load(spec: str | None = None, *, root: Path) -> Classifier:
    """Load the registered version that `spec` stands for, as `find` does, after checking its files.

    Raises:
        InputError: there is no such version, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    found = find(spec, root=root)
    folder = versions.download(found, root=root)
    return Classifier.load(folder, name=f"{found.name}/{found.version}", content_sha256=found.content_sha256)


def find(spec: str | None = None, *, root: Path) -> RegisteredModel:
    """Return the registered version that `spec`, `NAME@ALIAS` or `NAME/VERSION`, stands for.

    None stands for the champion of the name in `reports/registration.json` or, without that file, the only champion.

    Raises:
        InputError: there is no such version, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
    """
    if spec:
        return versions.find(spec, root=root)
    try:
        name = str(json.loads((root / paths.REGISTRATION).read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        of, champions = "", versions.champions(root=root)
    else:
        of, champion = f" of {name}", versions.champion(name, root=root)
        champions = [champion] if champion else []
    if len(champions) > 1:
        known = ", ".join(f"{model.name}@{versions.CHAMPION}" for model in champions)
        raise InputError.missing(
            "--model", state="is not set, but several champions are registered", fix=f"choose one of {known}"
        )
    if not champions:
        raise UnavailableError.missing(f"no champion{of}", state="is registered yet", fix="run: dvc repro")
    return champions[0]
