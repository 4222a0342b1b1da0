"""Registration of a model in MLflow, as champion if it passes the gates.

A version is an MLflow model of plain files, which `pyfunc` writes: code, safetensors and JSON, without pickle. It is
found by its content: registering the same content twice yields one version, and a registration that was interrupted is
completed by the next one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pipe import paths
from mnist_pipe.atomic import MANIFEST, digest, read_json, verify_manifest
from mnist_pipe.errors import CorruptDataError, PipelineError
from mnist_pipe.evaluation.predictions import read_predictions
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import gates, pyfunc, versions
from mnist_pipe.registry.store import (
    check_name,
    find_runs,
    flatten,
    is_own_store,
    log_metrics,
    open_experiment,
    open_store,
    public_uri,
)
from mnist_pipe.registry.versions import CHAMPION, CONTENT, METRICS, MODEL, PREVIOUS, RegisteredModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


_PREDICTIONS = "predictions"
_END_OF_FRONT_MATTER = "\n---\n"


def register(candidate: Candidate, *, root: Path, name: str, params: RegisterParams) -> Registration:
    """Register `candidate` as `name` and, if every gate passes, make it the champion.

    The old champion gets the alias `previous`. One lock covers the whole function, so that no other process of this
    project moves an alias between the decision and the move.

    Args:
        candidate: the model and what is known about it.
        root: the project's root.
        name: the registered name.
        params: the limits of the gates.

    Raises:
        InputError: `name` is not a valid name.
        CorruptDataError: the candidate differs from its manifest, or the champion's files are missing or damaged.
        UnavailableError: the store does not answer.
    """
    check_name(name)
    verify_manifest(candidate.folder)
    content = digest(read_json(candidate.folder / MANIFEST))
    with open_store(root, write=True) as client:
        model = _find_content(client, name, content, root=root)
        if model is not None and is_own_store(root) and not _is_intact(client, model, root=root):
            _log_files(client, candidate, model.run_id)
        champion = versions.aliased(client, name, CHAMPION)
        decisions = gates.judge(
            read_predictions(candidate.predictions),
            content_sha256=content,
            champion=_opponent(client, champion, root=root) if champion else None,
            params=params,
        )
        if model is None:
            run = _log_candidate(client, candidate, name, content, root=root)
            model = _create_version(client, name, content, run, candidate)
        for gate in decisions:
            verdict = "passed" if gate.passed else "failed"
            client.set_model_version_tag(name, str(model.version), f"gate.{gate.name}", f"{verdict}: {gate.text}")
        is_champion = model == champion
        promoted = not is_champion and all(gate.passed for gate in decisions)
        if promoted:
            # In this order, a name that has a champion has one at every moment.
            if champion is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(champion.version))
            client.set_registered_model_alias(name, CHAMPION, str(model.version))
        previous = versions.aliased(client, name, PREVIOUS)
    return Registration(
        name=name,
        version=model.version,
        alias=CHAMPION if promoted or is_champion else None,
        promoted=promoted,
        reason=gates.reason(decisions, promoted=promoted, is_champion=is_champion),
        content_sha256=content,
        gates=decisions,
        previous=previous.version if previous else None,
        lineage=dict(candidate.lineage),
        tracking_uri=public_uri(root),
    )


def log_report(model: RegisteredModel, *, root: Path, page: Path, plots: Path) -> None:
    """Log the report and its plots to the run of a registered model.

    Raises:
        UnavailableError: the store does not answer.
    """
    with open_store(root, write=True) as client:
        client.log_artifact(model.run_id, str(page), "report")
        client.log_artifacts(model.run_id, str(plots), "report/plots")


def _log_candidate(client: MlflowClient, candidate: Candidate, name: str, content: str, *, root: Path) -> Run:
    """Return the run with the candidate's files and metrics; complete one that an interrupted process left."""
    experiment_id = open_experiment(client, name, root=root)
    runs = find_runs(client, experiment_id, f"tags.{CONTENT} = '{content}'")
    started_at, ended_at = (int(1000 * time) for time in candidate.trained) if candidate.trained else (None, None)
    run = (
        runs[0]
        if runs
        else client.create_run(experiment_id, start_time=started_at, run_name=content[:12], tags={CONTENT: content})
    )
    run_id, card = run.info.run_id, read_json(candidate.folder / paths.CARD)
    _log_files(client, candidate, run_id)
    client.log_inputs(run_id, datasets=_datasets(card))
    numbers = {key: value for key, value in flatten(candidate.metrics).items() if type(value) in (int, float)}
    curves = [({k: v for k, v in epoch.items() if k != "epoch"}, int(epoch["epoch"])) for epoch in candidate.curves]
    params = {key: card[key] for key in ("model", "model_params", "recipe")}
    log_metrics(client, run, params=params, history=[(numbers, 0), *curves])
    client.set_terminated(run_id, end_time=ended_at)
    return run


def _log_files(client: MlflowClient, candidate: Candidate, run_id: str) -> None:
    """Log the candidate's files to its run; equal content gives equal files, so that damaged ones are replaced."""
    card = read_json(candidate.folder / paths.CARD)
    with tempfile.TemporaryDirectory() as folder:
        pyfunc.write_version(Path(folder) / MODEL, candidate.folder, card=card, text=candidate.text)
        client.log_artifacts(run_id, folder)
    client.log_artifact(run_id, str(candidate.predictions), _PREDICTIONS)
    client.log_dict(run_id, dict(candidate.metrics), METRICS)


def _is_intact(client: MlflowClient, model: RegisteredModel, *, root: Path) -> bool:
    """Return whether the files of a version are as they were registered."""
    try:
        versions.download(model, root=root)
        versions.metrics(model, root=root)
        _opponent(client, model, root=root)
    except CorruptDataError:
        return False
    return True


def _datasets(card: Mapping[str, Any]) -> list[Any]:
    """Return the splits that a model was trained and validated on, as inputs of its MLflow run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split, sha256 in card["data_sha256"].items():
        source = json.dumps({"uri": str(paths.SPLITS[split])})
        dataset = Dataset(f"{card['dataset']}-{split}", sha256[:36], "local", source)  # MLflow takes 36 characters
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    return inputs


def _create_version(client: MlflowClient, name: str, content: str, run: Run, candidate: Candidate) -> RegisteredModel:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    scores = {split: candidate.metrics[split] for split in ("validation", "test") if split in candidate.metrics}
    tags = {CONTENT: content, **flatten(scores), **flatten({"lineage": candidate.lineage})}
    return versions.read_version(
        client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{MODEL}",
            run.info.run_id,
            tags={key: str(value) for key, value in tags.items()},
            description=candidate.text.rpartition(_END_OF_FRONT_MATTER)[2].strip(),
        )
    )


def _find_content(client: MlflowClient, name: str, content: str, *, root: Path) -> RegisteredModel | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{CONTENT} = '{content}'")
    if is_own_store(root):
        # After the project's folder was moved, MLflow looks for the files of its old versions where they were.
        here = str((root / paths.MLFLOW_ARTIFACTS).resolve())
        found = [version for version in found if version.source.startswith(here)]
    return versions.read_version(min(found, key=lambda version: int(version.version))) if found else None


def check_champion(root: Path) -> None:
    """Check, before a model is trained, that the champion with which it will be compared can be read.

    Raises:
        CorruptDataError: its files are missing or damaged.
    """
    try:
        name = str(read_json(root / paths.REGISTRATION)["name"])
    except (PipelineError, LookupError, TypeError):
        return  # nothing was registered here
    if is_own_store(root) and (champion := versions.champion(name, root=root)):
        _opponent(None, champion, root=root)


def _opponent(client: MlflowClient | None, model: RegisteredModel, *, root: Path) -> gates.Champion:
    path = versions.artifact(client, model, f"{_PREDICTIONS}/validation.parquet", root=root)
    try:
        predictions = read_predictions(path)
    except CorruptDataError as error:
        # The remedy of the error itself is for the predictions of the candidate.
        cause = str(error).partition("; run: ")[0]
        raise CorruptDataError(f"{cause}; {versions.restore(model, root=root)}") from error
    return gates.Champion(version=model.version, content_sha256=model.content_sha256, predictions=predictions)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained model that is to be registered, and what is known about it."""

    folder: Path
    """Folder of its weights, card and manifest."""
    predictions: Path
    """Its `validation.parquet`: the gates judge by it, and later candidates are compared with it."""
    metrics: Mapping[str, Any]
    """Numbers, possibly nested, that are recorded and decide nothing."""
    lineage: Mapping[str, Any]
    """Where it comes from; recorded as tags of the version."""
    text: str = ""
    """Model card for people, as Markdown with front matter."""
    curves: Sequence[Mapping[str, float]] = ()
    """Metrics of each epoch of its training."""
    trained: tuple[float, float] | None = None
    """Start and end of its training, in seconds since the epoch; None if they are unknown."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The result of `register`; its fields are those of `reports/registration.json`."""

    name: str
    version: int
    alias: str | None
    """`champion` if the candidate has that alias now, else None."""
    promoted: bool
    """Whether this registration moved the alias."""
    reason: str
    """The reason for the decision, in one or more sentences."""
    content_sha256: str
    gates: list[gates.Gate]
    previous: int | None
    """The version with the alias `previous`, if there is one."""
    lineage: dict[str, Any]
    tracking_uri: str
    """The address of the store, without credentials."""
