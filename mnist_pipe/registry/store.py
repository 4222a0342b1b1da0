"""The MLflow store behind the registry: SQLite under `.state/`, unless MLFLOW_TRACKING_URI names another one."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mnist_pipe import paths, telemetry
from mnist_pipe.atomic import atomic_file, locked
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError, one_line, public_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The pattern of every registered name, experiment name and file name of a model: they reach paths and queries."""
_MAX_ENTITIES = 900  # MLflow accepts at most 1000 in one call


@contextmanager
def open_store(root: Path, *, write: bool = False) -> Iterator[MlflowClient]:
    """Yield a client of the store.

    With `write`, hold a lock against this project's other writers, and create the project's own store if there is none.

    Raises:
        CorruptDataError: the project's own store is damaged.
        UnavailableError: the store does not answer.
    """
    os.environ.update(telemetry.OFF)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # errors are raised, so nothing needs to be logged
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    database, uri = _database(root), _tracking_uri(root)
    try:
        with locked(database.with_suffix(".lock"), purpose="the registry", wait=True) if write else nullcontext():
            if is_own_store(root):
                if write and not database.exists():
                    # Whole or absent: MLflow cannot complete a schema whose creation was interrupted.
                    with atomic_file(database) as temporary:
                        # As a URI, because MLflow writes this place between apostrophes into its SQL, and its default
                        # is in the working directory, whose name may have one.
                        SqlAlchemyStore(f"sqlite:///{temporary}", (root / paths.MLFLOW_ARTIFACTS).resolve().as_uri())
                _check_database(database)
            yield MlflowClient(uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        got = one_line(str(error).replace(uri, public_uri(root)))[:300]
        # Not `from error`: the cause would show the address with its credentials in every traceback.
        raise UnavailableError.unreachable("the registry", where=public_uri(root), cause=got) from None


@contextmanager
def open_existing_store(root: Path) -> Iterator[MlflowClient | None]:
    """Yield a client for reading, or None if there is no store yet, because reading must not create one.

    Raises:
        CorruptDataError: the project's own store is damaged.
        UnavailableError: the store does not answer.
    """
    if is_own_store(root) and not _database(root).exists():
        yield None
    else:
        with open_store(root) as client:
            yield client


def prepare(root: Path) -> None:
    """Create the project's own store if there is none yet, whole or not at all.

    Raises:
        CorruptDataError: the project's own store is damaged.
        UnavailableError: the store does not answer.
    """
    with open_store(root, write=True):
        pass


def is_own_store(root: Path) -> bool:
    """Return whether the store is the project's own under `.state/`."""
    return _tracking_uri(root) == _own_uri(root)


def public_uri(root: Path) -> str:
    """Return the store's address for printing: the project's own relative to `root`, others without credentials."""
    return f"sqlite:///{paths.MLFLOW_DB}" if is_own_store(root) else public_url(_tracking_uri(root))


def check_name(name: str) -> None:
    """Check that `name` matches `NAME`, so that it is safe in a path or a query.

    Raises:
        InputError: it does not match.
    """
    if NAME.fullmatch(name) is None:
        raise InputError.invalid("registry", "the name", f"match {NAME.pattern}", got=repr(name))


def open_experiment(client: MlflowClient, name: str, *, root: Path) -> str:
    """Return the id of the experiment `name`; create it if there is none, with its artifacts under `.state/`."""
    location = str((root / paths.MLFLOW_ARTIFACTS).resolve())
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.artifact_location != location and is_own_store(root):
        # The project's folder was moved. MLflow stores absolute paths and would still write to the old place.
        client.rename_experiment(experiment.experiment_id, f"{name} until moved from {experiment.artifact_location}")
        experiment = None
    if experiment is not None:
        return str(experiment.experiment_id)
    is_server = _tracking_uri(root).startswith("http")  # a server decides itself where it stores artifacts
    return str(client.create_experiment(name, artifact_location=None if is_server else location))


def find_runs(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    """Return all runs of the experiment that meet `condition`, from all pages of MLflow's result."""
    # `mlflow.search_runs` reads all pages itself, but it takes the store from a global, the environment variable.
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def log_metrics(
    client: MlflowClient, run: Run, *, params: Mapping[str, Any], history: Sequence[tuple[Mapping[str, float], int]]
) -> None:
    """Log parameters and metrics to a run, in as few calls as MLflow allows; a repeated call changes nothing.

    Args:
        client: the client of the store.
        run: the run that they are logged to.
        params: parameters, possibly nested, whose keys are joined by dots.
        history: pairs of metrics and their epoch.
    """
    from mlflow.entities import Metric, Param

    # Of all timestamps, only the run's start is the same in a repeated call; MLflow stores equal metrics once.
    start = run.info.start_time
    entities: list[Any] = [Param(key, str(value)) for key, value in flatten(params).items()]
    entities += [Metric(key, value, start, epoch) for metrics, epoch in history for key, value in metrics.items()]
    for first in range(0, len(entities), _MAX_ENTITIES):
        part = entities[first : first + _MAX_ENTITIES]
        client.log_batch(
            run.info.run_id,
            params=[entity for entity in part if isinstance(entity, Param)],
            metrics=[entity for entity in part if isinstance(entity, Metric)],
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one dict, whose keys are joined by dots and start with `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _database(root: Path) -> Path:
    return (root / paths.MLFLOW_DB).resolve()


def _own_uri(root: Path) -> str:
    return f"sqlite:///{_database(root)}"


def _tracking_uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(root)


def _check_database(database: Path) -> None:
    """Raise an error unless the file is readable SQLite; MLflow itself would retry for minutes."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        raise UnavailableError.invalid(database, "the registry", "be readable", got=str(error)) from error
    except sqlite3.DatabaseError as error:
        fix = "move it away and run: dvc repro --force register"
        raise CorruptDataError.invalid(database, "the registry", "be SQLite", got=str(error), fix=fix) from error
