"""The registered versions: finding the one that a name stands for, and its files.

What was found is kept, so that the next process need not import MLflow (1.5 s) to find it again. An entry is valid as
long as the database of the project's own store is unchanged. Other stores are asked each time.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pipe import paths
from mnist_pipe.atomic import MANIFEST, digest, read_json, verify_manifest, write_json
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError
from mnist_pipe.registry.runs import files_of
from mnist_pipe.registry.store import NAME, check_name, is_own_store, open_existing_store, open_store, register_again

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
CLASSIFIER = "-classifier"
CONTENT = "content_sha256"
"""Tag of a version and of its run: the digest of weights and card."""
MODEL = "model"
"""Folder of a version among the artifacts of its run."""
METRICS = "metrics.json"
"""File with its metrics, beside that folder."""
DatabaseState = list[list[int]]

_SPEC = re.compile(rf"({NAME.pattern})(?:@({NAME.pattern})|/([1-9][0-9]{{0,8}}))")


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

    def read(client: MlflowClient) -> RegisteredModel | None:
        known_aliases = aliases(client, name)
        found = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
        known.extend([f"{name}@{alias}" for alias in known_aliases] + [f"{name}/{number}" for number in found])
        if not known:
            known.extend(model.name for model in client.search_registered_models())
        version = found.get(number or known_aliases.get(alias, ""))
        return version and read_version(version)

    model = _remembered(spec, read, root=root)
    if model is None:
        fix = f"known: {', '.join(sorted(known))}" if known else f"nothing is registered yet; {register_again(root)}"
        raise InputError.invalid("--model", "the version", "be registered", got=repr(spec), fix=fix)
    return model


def champion(name: str, *, root: Path) -> RegisteredModel | None:
    """Return the version of `name` that has the alias `champion`, or None.

    Raises:
        InputError: `name` is not a valid name.
        UnavailableError: the store does not answer.
    """
    check_name(name)
    return _remembered(f"{name}@{CHAMPION}", lambda client: aliased(client, name, CHAMPION), root=root)


def champions(*, root: Path) -> list[RegisteredModel]:
    """Return the champion of every registered name `*-classifier` that has one.

    Raises:
        UnavailableError: the store does not answer.
    """
    with open_existing_store(root) as client:
        names = [m.name for m in client.search_registered_models() if m.name.endswith(CLASSIFIER)] if client else []
        found = [aliased(client, name, CHAMPION) for name in names]
    return [model for model in found if model is not None]


def download(model: RegisteredModel, *, root: Path) -> Path:
    """Return the local folder of the model's weights and card, checked against its manifest and registered digest.

    Raises:
        CorruptDataError: a file is missing or has other bytes.
        UnavailableError: the store does not answer.
    """
    try:
        return _download(model, root=root)
    except CorruptDataError as error:
        raise CorruptDataError(f"{error}; {restore(model, root=root)}") from error


def restore(model: RegisteredModel, *, root: Path) -> str:
    """Return how the damaged files of a version are replaced; those of the last candidate are in `models/`."""
    copies = root / paths.MLFLOW_ARTIFACTS / "downloads" / model.content_sha256
    if not is_own_store(root):
        return f"run: rm -r {copies}"  # the next call downloads them again
    try:
        last = read_json(root / paths.REGISTRATION)
        is_last = [last["name"], last["version"]] == [model.name, model.version]
    except (PipelineError, LookupError, TypeError):
        is_last = False
    if is_last:
        return register_again(root)
    spec = f"{model.name}/{model.version}"
    return f"restore that file from a copy, or give the alias of {spec} to another version on MLflow's page"


def _download(model: RegisteredModel, *, root: Path) -> Path:
    with nullcontext() if is_own_store(root) else open_store(root) as client:
        folder = artifact(client, model, f"{MODEL}/{MANIFEST}", root=root).parent
        manifest = read_json(folder / MANIFEST)
        found = digest(manifest)
        if found != model.content_sha256:
            rule = f"be {model.content_sha256[:12]}, as registered in {model.name}/{model.version}"
            raise CorruptDataError.invalid(folder, CONTENT, rule, got=found[:12])
        for file in manifest:
            artifact(client, model, f"{MODEL}/{file}", root=root)
    verify_manifest(folder)
    return folder


def metrics(model: RegisteredModel, *, root: Path) -> dict[str, Any]:
    """Return the metrics that were registered with the version, by split.

    Raises:
        CorruptDataError: their file is missing or damaged.
        UnavailableError: the store does not answer.
    """
    with nullcontext() if is_own_store(root) else open_store(root) as client:
        return dict(read_json(artifact(client, model, METRICS, root=root)))


def artifact(client: MlflowClient | None, model: RegisteredModel, path: str, *, root: Path) -> Path:
    """Return the path of a local copy of one file of the model's run; download it by `client` if necessary."""
    if not all(NAME.fullmatch(part) for part in path.split("/")):
        raise CorruptDataError.invalid(MANIFEST, "a file", f"match {NAME.pattern}", got=repr(path))
    artifacts = root / paths.MLFLOW_ARTIFACTS
    copy = artifacts / "downloads" / model.content_sha256 / path
    if client is None or is_own_store(root):
        artifact_uri = None
    elif copy.exists():
        return copy
    else:
        artifact_uri = client.get_run(model.run_id).info.artifact_uri
    place = files_of(model.run_id, artifact_uri=artifact_uri, root=root)
    if place is not None:
        return place / path
    assert client is not None
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=artifacts) as folder:
        Path(client.download_artifacts(model.run_id, path, folder)).replace(copy)
    return copy


def aliased(client: MlflowClient, name: str, alias: str) -> RegisteredModel | None:
    """Return the version of `name` that has `alias`, or None."""
    version = aliases(client, name).get(alias)
    return None if version is None else read_version(client.get_model_version(name, version))


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the number of the version that has each alias of `name`."""
    models = client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}


def read_version(version: ModelVersion) -> RegisteredModel:
    """Return MLflow's `version` as `RegisteredModel`.

    Raises:
        CorruptDataError: it has no digest, because it was not registered here.
    """
    content = version.tags.get(CONTENT)
    if content is None:
        where = f"{version.name}/{version.version}"
        fix = "give the alias to a version that `dvc repro` registered"
        raise CorruptDataError.missing(f"the tag {CONTENT}", state="is not set", where=where, fix=fix)
    return RegisteredModel(
        name=version.name, version=int(version.version), run_id=version.run_id, content_sha256=content
    )


def _remembered(
    spec: str, read: Callable[[MlflowClient], RegisteredModel | None], *, root: Path
) -> RegisteredModel | None:
    """Return the version that `spec` stands for: without MLflow if it is known, else as `read` finds it."""
    if not is_own_store(root):
        with open_store(root) as client:
            return read(client)
    if known := _recall(spec, root=root):
        return known
    state = _database_state(root)
    with open_existing_store(root) as client:
        model = client and read(client)
    if model:
        _keep(spec, model, state=state, root=root)
    return model


def _recall(spec: str, *, root: Path) -> RegisteredModel | None:
    """Return the version that `spec` stands for, or None if that is not known for the database as it is now."""
    kept = _read_kept(root)
    found = kept["models"].get(spec) if kept.get("database") == _database_state(root) else None
    try:
        model = RegisteredModel(**(found or {}))
    except TypeError:  # not known, or kept by another version of this project
        return None
    texts = (model.name, model.run_id, model.content_sha256)
    is_valid = type(model.version) is int and all(isinstance(text, str) and NAME.fullmatch(text) for text in texts)
    return model if is_valid else None


def _keep(spec: str, model: RegisteredModel, *, state: DatabaseState, root: Path) -> None:
    """Keep that `spec` stands for `model`, which was read from the database after it was in `state`."""
    kept = _read_kept(root)
    models = kept["models"] if kept.get("database") == state else {}
    write_json(root / paths.RESOLVED, {"database": state, "models": {**models, spec: asdict(model)}})


def _database_state(root: Path) -> DatabaseState:
    """Return what tells one content of the project's own database from another: its files' times and sizes."""
    database = root / paths.MLFLOW_DB
    files = [file for file in (database, database.with_name(f"{database.name}-wal")) if file.exists()]
    return [[file.stat().st_mtime_ns, file.stat().st_size] for file in files]


def _read_kept(root: Path) -> dict[str, Any]:
    try:
        found = read_json(root / paths.RESOLVED)
    except PipelineError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("models"), dict) else {}


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str
    """The id of the MLflow run that holds its files."""
    content_sha256: str
    """The digest of the digests of its files, the weights and the card."""
