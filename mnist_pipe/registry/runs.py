"""The experiments and runs of the MLflow store: their creation, files and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_pipe import paths
from mnist_pipe.atomic import write_bytes
from mnist_pipe.errors import UnavailableError
from mnist_pipe.registry.store import is_own_store, public_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")
_MAX_ENTITIES = 900  # MLflow accepts at most 1000 in one call


def open_experiment(client: MlflowClient, name: str, *, root: Path) -> str:
    """Return the id of the experiment `name`; create it if there is none, with its artifacts beside the database."""
    database = sqlite_file(root)
    # As a URI, because MLflow takes a `%` in a path for an escape. A server decides itself where it stores artifacts.
    location = database.with_suffix("").as_uri() if database else None
    if is_own_store(root):
        location, experiment = paths.MLFLOW_ROOT, client.get_experiment_by_name(name)
        if experiment is not None and experiment.artifact_location != location:
            # Version 0.1 recorded absolute paths. In a copy or a moved folder they are those of another checkout.
            client.rename_experiment(
                experiment.experiment_id, f"{name} until moved from {experiment.artifact_location}"
            )

    def find_or_create() -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage == "deleted":  # in MLflow's page, which keeps the name: no other can have it
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    return at_most_twice(find_or_create)


def at_most_twice(call: Callable[[], T]) -> T:
    """Return the result of `call`, which is repeated once if MLflow refuses it.

    MLflow looks for a row and inserts it if there is none, which fails if another writer inserts it meanwhile.
    """
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if isinstance(error.__context__, OSError):  # a server that does not answer would be waited for twice
            raise
        return call()


def log_files(client: MlflowClient, run: Run, files: Iterable[tuple[Path, str]], *, root: Path) -> None:
    """Write files, and folders with all that is in them, to a run, each file whole or not at all.

    Args:
        client: the client of the store.
        run: the run.
        files: pairs of a file or folder, and the folder of the run that it is put into, by its own name.
        root: the project's root.

    Raises:
        UnavailableError: the run's files are those of another folder's own store, which an MLflow server shows.
    """
    place = files_of(run.info.run_id, artifact_uri=run.info.artifact_uri, root=root)
    for source, folder in files:
        if place is None and source.is_dir():
            client.log_artifacts(run.info.run_id, str(source), f"{folder}/{source.name}" if folder else source.name)
        elif place is None:
            client.log_artifact(run.info.run_id, str(source), folder or None)
        else:
            below = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
            for path in below:
                write_bytes(place / folder / path.relative_to(source.parent), path.read_bytes())


def files_of(run_id: str, *, artifact_uri: str | None, root: Path) -> Path | None:
    """Return the folder of a run's files if they are beside the store's database; None if MLflow must fetch them.

    Args:
        run_id: the id of the run.
        artifact_uri: where MLflow has them; need not be known for the project's own store.
        root: the project's root.

    Raises:
        UnavailableError: they are those of another folder's own store, which an MLflow server shows.
    """
    if not is_own_store(root) and not (artifact_uri or "").startswith(paths.MLFLOW_ROOT):
        return None
    database = sqlite_file(root)
    if database is None:
        rule, fix = "store artifacts itself", "start the server with --artifacts-destination, for a database of its own"
        raise UnavailableError.invalid(public_uri(root), "the MLflow server", rule, got=artifact_uri, fix=fix)
    return database.with_suffix("") / run_id / "artifacts"


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
