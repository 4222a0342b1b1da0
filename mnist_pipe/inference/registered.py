"""The registered model that a user means, ready to classify."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.errors import InputError, UnavailableError
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.registry import store, versions
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
    registration = _registration(root)
    if registration is None:
        of, champions = "", versions.champions(root=root)
    else:
        of, champion = f" of {registration['name']}", versions.champion(registration["name"], root=root)
        champions = [champion] if champion else []
    if len(champions) > 1:
        known = ", ".join(f"{model.name}@{versions.CHAMPION}" for model in champions)
        raise InputError.missing(
            "--model", state="is not set, but several champions are registered", fix=f"choose one of {known}"
        )
    if not champions:
        fix = _remedy(registration, root=root)
        raise UnavailableError.missing(f"no champion{of}", state="is registered yet", fix=fix)
    return champions[0]


def _registration(root: Path) -> dict[str, Any] | None:
    """Return the content of `reports/registration.json`, or None if it is missing or incomplete."""
    try:
        content = json.loads((root / paths.REGISTRATION).read_bytes())
        return {**content, "name": str(content["name"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _remedy(registration: dict[str, Any] | None, *, root: Path) -> str:
    """Return how to get a champion; a candidate that failed a gate would fail it again."""
    if registration and registration.get("alias", versions.CHAMPION) is None:
        spec = f"{registration['name']}/{registration.get('version')}"
        with suppress(InputError):
            versions.find(spec, root=root)
            return f"the last candidate failed a gate; name it with --model {spec}"
    return store.register_again(root)
