"""The versions that names stood for, kept so that the next process need not import MLflow (1.5 s) to find them.

An entry is valid as long as the database of the project's own store is unchanged. Other stores are asked each time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.atomic import read_json, write_json
from mnist_pipe.errors import PipelineError

DatabaseState = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str
    """The id of the MLflow run that holds its files."""
    content_sha256: str
    """The digest of the digests of its files, the weights and the card."""


def recall(spec: str, *, root: Path) -> RegisteredModel | None:
    """Return the version that `spec` stands for, or None if that is not known for the database as it is now."""
    kept = _read(root)
    if kept.get("database") != database_state(root) or spec not in kept["models"]:
        return None
    return RegisteredModel(**kept["models"][spec])


def keep(spec: str, model: RegisteredModel, *, state: DatabaseState, root: Path) -> None:
    """Keep that `spec` stands for `model`, which was read from the database after it was in `state`."""
    kept = _read(root)
    models = kept["models"] if kept.get("database") == state else {}
    write_json(root / paths.RESOLVED, {"database": state, "models": {**models, spec: asdict(model)}})


def database_state(root: Path) -> DatabaseState:
    """Return what tells one content of the project's own database from another: its files' times and sizes."""
    database = root / paths.MLFLOW_DB
    files = [file for file in (database, database.with_name(f"{database.name}-wal")) if file.exists()]
    return [[file.stat().st_mtime_ns, file.stat().st_size] for file in files]


def _read(root: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(root / paths.RESOLVED)
    except PipelineError:
        return {}
    return found
