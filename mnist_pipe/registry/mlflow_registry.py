"""The model registry, on MLflow.

A version consists of plain files (safetensors, JSON, Parquet) of an MLflow run. It is not an MLflow flavor, because the
torch flavor unpickles what it loads. A version is found by its content: registering the same content twice yields one
version, and a registration that was interrupted is completed by the next one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pipe import paths
from mnist_pipe.atomic import MANIFEST, digest, read_json, verify_manifest
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.evaluation.predictions import read_predictions
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import gates
from mnist_pipe.registry.store import (
    NAME,
    check_name,
    find_runs,
    flatten,
    is_own_store,
    log_metrics,
    open_existing_store,
    open_experiment,
    open_store,
    public_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
CLASSIFIER = "-classifier"

_SPEC = re.compile(rf"({NAME.pattern})(?:@({NAME.pattern})|/([1-9][0-9]{{0,8}}))")
_CONTENT = "content_sha256"
_MODEL = "model"  # this and the next: folders of a run's artifacts
_PREDICTIONS = "predictions"
_METRICS = "metrics.json"


def register(
    candidate: Path,
    *,
    root: Path,
    name: str,
    predictions: Path,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
    params: RegisterParams,
) -> Registration:
    """Register the model in the folder `candidate` as `name` and, if every gate passes, make it the champion.

    The old champion gets the alias `previous`. One lock covers the whole function, so that no other process of this
    project moves an alias between the decision and the move.

    Args:
        candidate: the folder of the model's weights, card and manifest.
        root: the project's root.
        name: the registered name.
        predictions: the candidate's `validation.parquet`. The gates judge by it, and it is stored, because later
            candidates are compared with it.
        metrics: numbers, possibly nested, that are recorded and decide nothing.
        lineage: recorded as tags of the version.
        params: the limits of the gates.

    Raises:
        InputError: `name` is not a valid name.
        CorruptDataError: the candidate differs from its manifest, or the champion's files are missing or damaged.
        UnavailableError: the store does not answer.
    """
    check_name(name)
    verify_manifest(candidate)
    content = digest(read_json(candidate / MANIFEST))
    with open_store(root, write=True) as client:
        champion = _aliased(client, name, CHAMPION)
        decisions = gates.judge(
            read_predictions(predictions),
            content_sha256=content,
            champion=_opponent(client, champion, root=root) if champion else None,
            params=params,
        )
        model = _find_content(client, name, content)
        if model is None:
            run = _log_candidate(client, candidate, name, content, predictions, metrics, root=root)
            model = _create_version(client, name, content, run, lineage)
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
        previous = _aliased(client, name, PREVIOUS)
    return Registration(
        name=name,
        version=model.version,
        alias=CHAMPION if promoted or is_champion else None,
        promoted=promoted,
        reason=gates.reason(decisions, promoted=promoted, is_champion=is_champion),
        content_sha256=content,
        gates=decisions,
        previous=previous.version if previous else None,
        lineage=dict(lineage),
        tracking_uri=public_uri(root),
    )


def log_search(experiment: str, trials: Sequence[Mapping[str, Any]], *, root: Path, search_id: str) -> int:
    """Log each trial as an MLflow run, with its configuration and metrics of each epoch; return how many were logged.

    A trial that was logged completely under the same `search_id` is left as it is and not counted; one whose logging
    was interrupted is completed.

    Args:
        experiment: the name of the MLflow experiment.
        trials: `{"trial": 3, "status": "stopped", "config": {..}, "history": [{"epoch": 1, "train_loss": ..}, ..]}`
            for each trial.
        root: the project's root.
        search_id: identifies the search, among others of the same experiment.

    Raises:
        InputError: `experiment` is not a valid name.
        UnavailableError: the store does not answer.
    """
    check_name(experiment)
    with open_store(root, write=True) as client:
        experiment_id = open_experiment(client, experiment, root=root)
        known = {
            run.data.tags["trial"]: run for run in find_runs(client, experiment_id, f"tags.search = '{search_id}'")
        }
        missing = [t for t in trials if str(t["trial"]) not in known or known[str(t["trial"])].info.status == "RUNNING"]
        for trial in missing:
            number = str(trial["trial"])
            tags = {"search": search_id, "trial": number, "status": str(trial["status"])}
            run = known.get(number) or client.create_run(experiment_id, run_name=f"{search_id}-{number}", tags=tags)
            history = [({k: v for k, v in epoch.items() if k != "epoch"}, epoch["epoch"]) for epoch in trial["history"]]
            log_metrics(client, run, params=trial["config"], history=history)
            finished = trial["status"] in ("finished", "stopped")
            client.set_terminated(run.info.run_id, "FINISHED" if finished else "FAILED")
    return len(missing)


def champion(name: str, *, root: Path) -> RegisteredModel | None:
    """Return the version of `name` that has the alias `champion`, or None.

    Raises:
        InputError: `name` is not a valid name.
        UnavailableError: the store does not answer.
    """
    check_name(name)
    with open_existing_store(root) as client:
        return client and _aliased(client, name, CHAMPION)


def champions(*, root: Path) -> list[RegisteredModel]:
    """Return the champion of every registered name `*-classifier` that has one.

    Raises:
        UnavailableError: the store does not answer.
    """
    with open_existing_store(root) as client:
        names = [m.name for m in client.search_registered_models() if m.name.endswith(CLASSIFIER)] if client else []
        found = [_aliased(client, name, CHAMPION) for name in names]
    return [model for model in found if model is not None]


def find(spec: str, *, root: Path) -> RegisteredModel:
    """Return the registered version that `spec`, `NAME@ALIAS` or `NAME/VERSION`, stands for.

    Raises:
        InputError: `spec` has neither form, or no such version is registered; the message lists those that are.
        UnavailableError: the store does not answer.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError.invalid("--model", "the name", "be NAME@ALIAS or NAME/VERSION", got=repr(spec))
    name, alias, number = match.groups()
    known: list[str] = []
    with open_existing_store(root) as client:
        if client:
            aliases = _aliases(client, name)
            versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
            version = versions.get(number or aliases.get(alias, ""))
            if version is not None:
                return _registered(version)
            known = [f"{name}@{alias}" for alias in aliases] + [f"{name}/{number}" for number in versions]
            known = sorted(known) or sorted(model.name for model in client.search_registered_models())
    fix = f"known: {', '.join(known)}" if known else "nothing is registered yet; run: dvc repro"
    raise InputError.invalid("--model", "the version", "be registered", got=repr(spec), fix=fix)


def download(model: RegisteredModel, *, root: Path) -> Path:
    """Return the local folder of the model's weights and card, checked against its manifest and registered digest.

    Raises:
        CorruptDataError: a file is missing or has other bytes.
        UnavailableError: the store does not answer.
    """
    with open_store(root) as client:
        folder = _artifact(client, model, f"{_MODEL}/{MANIFEST}", root=root).parent
        manifest = read_json(folder / MANIFEST)
        found = digest(manifest)
        if found != model.content_sha256:
            rule = f"be {model.content_sha256[:12]}, as registered in {model.name}/{model.version}"
            raise CorruptDataError.invalid(folder, _CONTENT, rule, got=found[:12])
        for file in manifest:
            _artifact(client, model, f"{_MODEL}/{file}", root=root)
    verify_manifest(folder)
    return folder


def metrics(model: RegisteredModel, *, root: Path) -> dict[str, Any]:
    """Return the metrics that were registered with the version, by split.

    Raises:
        CorruptDataError: their file is missing or damaged.
        UnavailableError: the store does not answer.
    """
    with open_store(root) as client:
        return dict(read_json(_artifact(client, model, _METRICS, root=root)))


def _log_candidate(
    client: MlflowClient,
    candidate: Path,
    name: str,
    content: str,
    predictions: Path,
    metrics: Mapping[str, Any],
    *,
    root: Path,
) -> Run:
    """Return the run with the candidate's files and metrics; complete one that an interrupted process left."""
    experiment_id = open_experiment(client, name, root=root)
    runs = find_runs(client, experiment_id, f"tags.{_CONTENT} = '{content}'")
    run = runs[0] if runs else client.create_run(experiment_id, run_name=content[:12], tags={_CONTENT: content})
    run_id = run.info.run_id
    for file in (*read_json(candidate / MANIFEST), MANIFEST):
        client.log_artifact(run_id, str(candidate / file), _MODEL)
    client.log_artifact(run_id, str(predictions), _PREDICTIONS)
    client.log_dict(run_id, dict(metrics), _METRICS)
    card = read_json(candidate / paths.CARD)
    numbers = {key: value for key, value in flatten(metrics).items() if type(value) in (int, float)}
    log_metrics(client, run, params={k: card[k] for k in ("model", "model_params", "recipe")}, history=[(numbers, 0)])
    client.set_terminated(run_id)
    return run


def _create_version(
    client: MlflowClient, name: str, content: str, run: Run, lineage: Mapping[str, Any]
) -> RegisteredModel:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {_CONTENT: content, **{f"lineage.{key}": str(value) for key, value in flatten(lineage).items()}}
    source = f"{run.info.artifact_uri}/{_MODEL}"
    return _registered(client.create_model_version(name, source, run.info.run_id, tags=tags))


def _find_content(client: MlflowClient, name: str, content: str) -> RegisteredModel | None:
    versions = client.search_model_versions(f"name = '{name}' and tags.{_CONTENT} = '{content}'")
    return _registered(min(versions, key=lambda version: int(version.version))) if versions else None


def _opponent(client: MlflowClient, model: RegisteredModel, *, root: Path) -> gates.Champion:
    path = _artifact(client, model, f"{_PREDICTIONS}/validation.parquet", root=root)
    return gates.Champion(
        version=model.version, content_sha256=model.content_sha256, predictions=read_predictions(path)
    )


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    models = client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}


def _aliased(client: MlflowClient, name: str, alias: str) -> RegisteredModel | None:
    version = _aliases(client, name).get(alias)
    return None if version is None else _registered(client.get_model_version(name, version))


def _registered(version: ModelVersion) -> RegisteredModel:
    content = version.tags.get(_CONTENT)
    if content is None:
        where = f"{version.name}/{version.version}"
        fix = "give the alias to a version that `dvc repro` registered"
        raise CorruptDataError.missing(f"the tag {_CONTENT}", state="is not set", where=where, fix=fix)
    return RegisteredModel(
        name=version.name, version=int(version.version), run_id=version.run_id, content_sha256=content
    )


def _artifact(client: MlflowClient, model: RegisteredModel, path: str, *, root: Path) -> Path:
    """Return the path of a local copy of one file of the model's run; download it if necessary."""
    if not all(NAME.fullmatch(part) for part in path.split("/")):
        raise CorruptDataError.invalid(MANIFEST, "a file", f"match {NAME.pattern}", got=repr(path))
    artifacts = root / paths.MLFLOW_ARTIFACTS
    if is_own_store(root):  # not by MLflow's absolute path: the project's folder may have moved
        return artifacts / model.run_id / "artifacts" / path
    copy = artifacts / "downloads" / model.content_sha256 / path
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=artifacts) as folder:
            Path(client.download_artifacts(model.run_id, path, folder)).replace(copy)
    return copy


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str
    """The id of the MLflow run that holds its files."""
    content_sha256: str
    """The digest of the digests of its files, the weights and the card."""


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
