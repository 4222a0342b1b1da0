"""Registration of a model in MLflow, as champion if it passes the gates.

A version is an MLflow model of plain files, which `pyfunc` writes: code, safetensors and JSON, without pickle. It is
found by its content: registering the same content twice yields one version, and a registration that was interrupted is
completed by the next one.

The project's own store has one writer at a time, by a lock. On any other store there may be more: of the versions with
one content the first counts, because MLflow numbers versions one by one, and `succession` orders the champions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pipe import paths
from mnist_pipe.atomic import MANIFEST, digest, read_json, verify_manifest, write_json
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.parquet import read_provenance
from mnist_pipe.errors import CorruptDataError, PipelineError
from mnist_pipe.evaluation.predictions import read_predictions
from mnist_pipe.experiment import Experiment, checkout_of
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import gates, pyfunc, succession, versions
from mnist_pipe.registry.runs import (
    at_most_twice,
    files_of,
    find_runs,
    flatten,
    log_files,
    log_metrics,
    open_experiment,
)
from mnist_pipe.registry.store import check_name, is_own_store, open_store, public_uri
from mnist_pipe.registry.succession import Seat
from mnist_pipe.registry.versions import CHAMPION, CONTENT, METRICS, MODEL, PREVIOUS, RegisteredModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


EXPERIMENT, BASELINE = "dvc.experiment", "dvc.baseline"
"""Tags of a version and its run: the DVC experiments that made it, and the commit from which the last one started."""
_PREDICTIONS = "predictions"
_END_OF_FRONT_MATTER = "\n---\n"


def register(candidate: Candidate, *, root: Path, name: str, params: RegisterParams) -> Registration:
    """Register `candidate` as `name` and, if every gate passes, make it the champion.

    The old champion gets the alias `previous`. No other writer can move an alias between the decision and the move.

    Args:
        candidate: the model and what is known about it.
        root: the project's root.
        name: the registered name.
        params: the limits of the gates.

    Raises:
        InputError: `name` is not a valid name, or its champion has other classes or another shape of images.
        CorruptDataError: the candidate differs from its manifest, or the champion's files are missing or damaged.
        UnavailableError: the store does not answer.
    """
    check_name(name)
    verify_manifest(candidate.folder)
    content = digest(read_json(candidate.folder / MANIFEST))
    with open_store(root, write=True) as client:
        model = _find_content(client, name, content, root=root)
        if model is not None and is_own_store(root) and not _is_intact(client, model, root=root):
            _log_files(client, candidate, client.get_run(model.run_id), root=root)

        def judge(champion: RegisteredModel | None) -> list[gates.Gate]:
            opponent = _opponent(client, champion, root=root) if champion else None
            if opponent:
                _check_facts(Facts.of(read_json(candidate.folder / paths.CARD)), champion=opponent, name=name)
            return gates.judge(
                read_predictions(candidate.predictions), content_sha256=content, champion=opponent, params=params
            )

        promotes = candidate.experiment is None or candidate.experiment.in_workspace or params.promote == "always"
        champion = versions.aliased(client, name, CHAMPION)
        decisions = judge(champion)  # before anything is written, because the champion's files may be damaged
        if model is None:
            model = _add_version(client, candidate, name, content, root=root)
        while True:
            seat = Seat(champion=champion) if is_own_store(root) else succession.find_seat(client, name)
            if seat.champion != champion:
                champion, decisions = seat.champion, judge(seat.champion)
            _tag_gates(client, model, decisions)
            is_champion = model == champion
            promoted = promotes and not is_champion and all(gate.passed for gate in decisions)
            if not promoted or succession.succeed(client, name, seat, model):
                break
        if candidate.experiment:
            _tag_experiment(client, model, candidate.experiment)
        previous = versions.aliased(client, name, PREVIOUS)
    return Registration(
        name=name,
        version=model.version,
        alias=CHAMPION if promoted or is_champion else None,
        promoted=promoted,
        reason=gates.reason(
            decisions,
            promoted=promoted,
            is_champion=is_champion,
            experiment=candidate.experiment.name if candidate.experiment and not promotes else None,
        ),
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
        log_files(client, client.get_run(model.run_id), [(page, "report"), (plots, "report")], root=root)


def _add_version(client: MlflowClient, candidate: Candidate, name: str, content: str, *, root: Path) -> RegisteredModel:
    """Log the candidate, create its version, and return the version of its content, which may be another writer's."""
    run = _log_candidate(client, candidate, name, content, root=root)
    own = RegisteredModel(name=name, version=0, run_id=run.info.run_id, content_sha256=content)
    versions.download(own, root=root)  # raises unless the files are where everybody will look for them
    _create_version(client, name, content, run, candidate, root=root)
    model = _find_content(client, name, content, root=root)
    assert model is not None
    if model.run_id != own.run_id:
        client.delete_run(own.run_id)
    return model


def _log_candidate(client: MlflowClient, candidate: Candidate, name: str, content: str, *, root: Path) -> Run:
    """Return the run with the candidate's files and metrics; complete one that an interrupted process left.

    On a shared store only a finished run is taken, because another writer may be logging to the others.
    """
    experiment_id = open_experiment(client, name, root=root)
    finished = "" if is_own_store(root) else " and attributes.status = 'FINISHED'"
    runs = find_runs(client, experiment_id, f"tags.{CONTENT} = '{content}'{finished}")
    if runs and finished:
        return runs[0]
    started_at, ended_at = (int(1000 * time) for time in candidate.trained) if candidate.trained else (None, None)
    run = (
        runs[0]
        if runs
        else client.create_run(experiment_id, start_time=started_at, run_name=content[:12], tags={CONTENT: content})
    )
    run_id, card = run.info.run_id, read_json(candidate.folder / paths.CARD)
    _log_files(client, candidate, run, root=root)
    at_most_twice(lambda: client.log_inputs(run_id, datasets=_datasets(card)))
    numbers = {key: value for key, value in flatten(candidate.metrics).items() if type(value) in (int, float)}
    curves = [({k: v for k, v in epoch.items() if k != "epoch"}, int(epoch["epoch"])) for epoch in candidate.curves]
    params = {key: card[key] for key in ("model", "model_params", "recipe")}
    log_metrics(client, run, params=params, history=[(numbers, 0), *curves])
    client.set_terminated(run_id, end_time=ended_at)
    return run


def _log_files(client: MlflowClient, candidate: Candidate, run: Run, *, root: Path) -> None:
    """Log the candidate's files to its run; equal content gives equal files, so that damaged ones are replaced."""
    card = read_json(candidate.folder / paths.CARD)
    with tempfile.TemporaryDirectory() as temporary:
        model, metrics = Path(temporary) / MODEL, Path(temporary) / METRICS
        pyfunc.write_version(model, candidate.folder, card=card, text=candidate.text)
        write_json(metrics, candidate.metrics)
        log_files(client, run, [(model, ""), (metrics, ""), (candidate.predictions, _PREDICTIONS)], root=root)


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


def _create_version(
    client: MlflowClient, name: str, content: str, run: Run, candidate: Candidate, *, root: Path
) -> None:
    at_most_twice(lambda: client.search_registered_models(f"name = '{name}'") or client.create_registered_model(name))
    scores = {split: candidate.metrics[split] for split in ("validation", "test") if split in candidate.metrics}
    tags = {CONTENT: content, **flatten(scores), **flatten({"lineage": candidate.lineage})}
    client.create_model_version(
        name,
        _source(run, root=root),
        run.info.run_id,
        tags={key: str(value) for key, value in tags.items()},
        description=candidate.text.rpartition(_END_OF_FRONT_MATTER)[2].strip(),
        await_creation_for=0,  # it is complete at once, because its files were written before
    )


def _find_content(client: MlflowClient, name: str, content: str, *, root: Path) -> RegisteredModel | None:
    """Return the first version with this content, and delete later ones, which writers added at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.search_model_versions(f"name = '{name}' and tags.{CONTENT} = '{content}'")
    if is_own_store(root):
        found = [version for version in found if _is_here(client, version, root=root)]
    first, *later = sorted(found, key=lambda version: int(version.version)) or [None]
    aliased = versions.aliases(client, name).values() if later else ()
    for version in later:
        if str(version.version) not in aliased:
            with suppress(MlflowException):  # its writer has deleted it
                client.delete_model_version(name, version.version)
    return first and versions.read_version(first)


def _is_here(client: MlflowClient, version: ModelVersion, *, root: Path) -> bool:
    """Return whether a version names its files here, and not those of the original of a copied or moved checkout."""
    run = client.get_run(version.run_id)  # version 0.1 recorded absolute paths for the run's files too
    return bool(run.info.artifact_uri.startswith(paths.MLFLOW_ROOT)) and version.source == _source(run, root=root)


def _source(run: Run, *, root: Path) -> str:
    """Return where MLflow finds the model of a run: on disk an absolute path, so that any program can load it.

    MLflow never deletes what a version names, so that `mlflow gc` in a copy of a checkout leaves it alone.
    """
    place = files_of(run.info.run_id, artifact_uri=run.info.artifact_uri, root=root)
    if place is None:
        return f"{run.info.artifact_uri}/{MODEL}"
    uri = (place / MODEL).as_uri()  # in a plain path, MLflow takes a ? for the start of a query
    return str(place / MODEL) if uri == f"file://{place / MODEL}" else uri


def _tag_gates(client: MlflowClient, model: RegisteredModel, decisions: Sequence[gates.Gate]) -> None:
    for gate in decisions:
        verdict = "passed" if gate.passed else "failed"
        key, value = f"gate.{gate.name}", f"{verdict}: {gate.text}"
        at_most_twice(partial(client.set_model_version_tag, model.name, str(model.version), key, value))


def _tag_experiment(client: MlflowClient, model: RegisteredModel, experiment: Experiment) -> None:
    """Add the experiment to those that made the version, as tags of the version and of its run.

    Experiments that differ in later stages only have the same candidate, and so the same version.
    """
    known = client.get_run(model.run_id).data.tags.get(EXPERIMENT, "")
    names = ", ".join(dict.fromkeys([*filter(None, known.split(", ")), experiment.name]))
    for key, value in ((EXPERIMENT, names), (BASELINE, experiment.baseline)):
        at_most_twice(partial(client.set_tag, model.run_id, key, value))
        at_most_twice(partial(client.set_model_version_tag, model.name, str(model.version), key, value))


def check_champion(root: Path) -> None:
    """Check, before a model is trained, that the champion with which it will be compared can be read and compared.

    Raises:
        InputError: it has other classes or another shape of images than the training split.
        CorruptDataError: its files are missing or damaged.
    """
    try:
        name = str(read_json(checkout_of(root) / paths.REGISTRATION)["name"])
    except (PipelineError, LookupError, TypeError):
        return  # nothing was registered here
    if not is_own_store(root):
        return
    if champion := versions.champion(name, root=root):
        _opponent(None, champion, root=root)
    try:
        provenance = read_provenance(root / paths.TRAINING_SPLITS["train"])
    except PipelineError:
        return  # the stage says what is wrong with its input
    if champion := versions.champion(f"{provenance['dataset']}{versions.CLASSIFIER}", root=root):
        _check_facts(Facts.of(provenance), champion=_opponent(None, champion, root=root), name=champion.name)


def _check_facts(facts: Facts, *, champion: gates.Champion, name: str) -> None:
    """Check that a champion has the classes and the shape of images of the data that a candidate is made of.

    Two data sets never share a name: their models cannot be compared, and whoever uses the alias expects its classes.

    Raises:
        InputError: it has others.
    """
    other, fix = Facts.of(champion.predictions.provenance), "give these data a name of their own with ingest.name"
    facts.check_same(other, where=f"{name}@{CHAMPION}", whose="the data's", fix=fix)


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
    experiment: Experiment | None = None
    """The DVC experiment that made it, if one did."""


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
