"""Test the registry on a real MLflow: one version per content, aliases move only on a pass, a kill loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_pipe import models, paths
from mnist_pipe.atomic import MANIFEST, digest, read_json, remove_leftovers, write_json, write_manifest
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.splits import write_normalized
from mnist_pipe.errors import BusyError, CorruptDataError, InputError, PipelineError, UnavailableError
from mnist_pipe.experiment import Experiment
from mnist_pipe.models import saved
from mnist_pipe.registry import registration, search_log, store, versions
from mnist_pipe.registry.runs import files_of as files_in_store
from mnist_pipe.waiting import LIMIT_SECONDS
from tests.support.data import normalized_split
from tests.support.registry import (
    BASELINE_ERRORS,
    LINEAGE,
    METRICS,
    NAME,
    PARAMS,
    TEXT,
    TRAINED,
    MakeCandidate,
    in_process,
    register,
)
from tests.support.services import answering_server, dead_server, wait_until

pytestmark = pytest.mark.mlflow


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / paths.MLFLOW_DB}")


def state(root: Path, name: str = NAME) -> tuple[int, dict[str, int]]:
    """Return the number of versions, and the version of each alias."""
    found = client(root).search_registered_models(f"name = '{name}'")
    aliases = {alias: int(version) for alias, version in found[0].aliases.items()} if found else {}
    return len(client(root).search_model_versions(f"name = '{name}'")), aliases


def runs(root: Path, experiment: str = NAME) -> list[Any]:
    found = client(root).get_experiment_by_name(experiment)
    return list(client(root).search_runs([found.experiment_id])) if found else []


def trial_runs(root: Path) -> list[Any]:
    """Return the runs of the trials of all searches, without the runs of the searches."""
    return [run for run in runs(root, "toy-search") if "trial" in run.data.tags]


def test_the_first_candidate_that_passes_is_the_champion(registry_root: Path, make_candidate: MakeCandidate) -> None:
    folder, predictions = make_candidate(1, 40)
    outcome = register(registry_root, (folder, predictions))
    gates = asdict(outcome)["gates"]
    assert [(gate["name"], gate["passed"]) for gate in gates] == [
        ("baseline", True),
        ("calibration", True),
        ("champion", True),
    ]
    assert {**asdict(outcome), "gates": gates} == {
        "name": NAME,
        "version": 1,
        "alias": "champion",
        "promoted": True,
        "reason": "Every gate passed, so the candidate is the new champion.",
        "content_sha256": digest(read_json(folder / MANIFEST)),
        "gates": gates,
        "previous": None,
        "lineage": LINEAGE,
        "tracking_uri": "sqlite:///.state/mlflow.db",
    }
    assert state(registry_root) == (1, {"champion": 1})


def test_a_run_has_files_metrics_and_params_and_its_version_the_lineage(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    folder, predictions = make_candidate(1, 40)
    outcome = register(registry_root, (folder, predictions))
    [run] = runs(registry_root)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test.accuracy": 0.75, "validation.num_rows": 1000, "train_loss": 0.25}
    curve = client(registry_root).get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 0.5), (2, 0.25)]
    assert (run.info.start_time, run.info.end_time) == tuple(int(1000 * time) for time in TRAINED)
    inputs = {
        one.tags[0].value: (one.dataset.name, one.dataset.digest, one.dataset.source)
        for one in run.inputs.dataset_inputs
    }
    assert inputs == {
        "train": ("toy-train", "aa", '{"uri": "data/normalized/train.parquet"}'),
        "validation": ("toy-validation", "bb", '{"uri": "data/normalized/validation.parquet"}'),
    }
    assert run.data.params == {
        "model": "linear",
        "recipe.optimizer": "adam",
        "recipe.learning_rate": "0.1",
        "recipe.seed": "1",
    }
    artifacts = registry_root / paths.MLFLOW_ARTIFACTS / run.info.run_id / "artifacts"
    files = {str(path.relative_to(artifacts)): path for path in artifacts.rglob("*") if path.is_file()}
    assert set(files) > {
        "metrics.json",
        "model/MLmodel",
        "model/README.md",
        "model/manifest.json",
        "model/model.json",
        "model/model.safetensors",
        "predictions/validation.parquet",
    }
    assert files["model/README.md"].read_text() == TEXT
    assert files["predictions/validation.parquet"].read_bytes() == predictions.read_bytes()
    assert json.loads(files["metrics.json"].read_bytes()) == METRICS
    version = client(registry_root).get_model_version(NAME, "1")
    assert version.description == "# A card\n\nOf a toy."
    tags = version.tags
    assert (tags["test.accuracy"], tags["validation.num_rows"]) == ("0.75", "1000")
    assert tags["content_sha256"] == outcome.content_sha256
    assert tags["lineage.git_revision"] == "abc"
    assert tags["lineage.versions.torch"] == "2"
    assert tags["gate.champion"] == "passed: There is no champion yet."


def test_the_same_content_is_registered_once(registry_root: Path, make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(1, 40)
    first, second = register(registry_root, candidate), register(registry_root, candidate)
    assert (second.version, second.alias, second.promoted) == (1, "champion", False)
    assert second.reason == "The candidate is the champion already, so nothing changes."
    assert second.content_sha256 == first.content_sha256
    assert state(registry_root) == (1, {"champion": 1})
    assert len(runs(registry_root)) == 1


def test_a_better_candidate_becomes_champion_and_the_old_one_previous(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    register(registry_root, make_candidate(1, 60))
    second = register(registry_root, make_candidate(2, 40))
    assert (second.version, second.alias, second.promoted, second.previous) == (2, "champion", True, 1)
    assert state(registry_root) == (2, {"champion": 2, "previous": 1})
    third = register(registry_root, make_candidate(3, 20))
    assert (third.version, third.previous) == (3, 2)
    assert state(registry_root) == (3, {"champion": 3, "previous": 2})


def test_a_candidate_that_is_not_better_is_registered_without_alias(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    register(registry_root, make_candidate(1, 40))
    second = register(registry_root, make_candidate(2, 38))
    assert (second.version, second.alias, second.promoted, second.previous) == (2, None, False, None)
    assert second.reason == (
        "The champion gate failed: Of 1000 rows that both held out, 2 are right with the candidate alone and 0 with "
        "the champion, version 1, alone: p = 0.25 is not below 0.05."
    )
    assert state(registry_root) == (2, {"champion": 1})


@pytest.mark.parametrize(("promote", "in_workspace"), [("workspace", False), ("workspace", True), ("always", False)])
def test_an_experiment_outside_the_workspace_moves_an_alias_only_if_params_say_so(
    registry_root: Path, make_candidate: MakeCandidate, promote: str, in_workspace: bool
) -> None:
    register(registry_root, make_candidate(1, 60))
    candidate, params = make_candidate(2, 40), PARAMS.model_copy(update={"promote": promote})
    moves = in_workspace or promote == "always"
    for name in ("a", "b"):  # which have the same candidate
        made_by = Experiment(name=name, baseline="0a1b", in_workspace=in_workspace)
        outcome = register(registry_root, candidate, params=params, experiment=made_by)
        assert (outcome.version, outcome.alias) == (2, "champion" if moves else None)
        assert ("moves no alias" in outcome.reason) is not moves
    with store.open_store(registry_root) as client:
        version = client.get_model_version(NAME, "2")
        tags = client.get_run(version.run_id).data.tags
    for tagged in (version.tags, tags):
        assert (tagged["dvc.experiment"], tagged["dvc.baseline"]) == ("a, b", "0a1b")
    applied = register(registry_root, candidate)
    assert (applied.version, applied.alias, applied.promoted) == (2, "champion", not moves)


def test_a_candidate_no_better_than_the_baseline_is_never_champion(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    outcome = register(registry_root, make_candidate(1, BASELINE_ERRORS))
    assert (outcome.version, outcome.alias, outcome.promoted) == (1, None, False)
    assert state(registry_root) == (1, {})
    assert versions.champion(NAME, root=registry_root) is None


def test_a_champion_that_fails_stricter_gates_stays_with_a_reason(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    candidate = make_candidate(1, 90)
    register(registry_root, candidate)
    strict = PARAMS.model_copy(update={"max_p_value_against_baseline": 1e-9})
    outcome = register(registry_root, candidate, params=strict)
    assert (outcome.alias, outcome.promoted) == ("champion", False)
    assert outcome.reason.startswith("The candidate is the champion already, so nothing changes. The baseline gate")


def test_a_refused_candidate_is_promoted_once_the_limits_allow_it(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    register(registry_root, make_candidate(1, 40))
    candidate = make_candidate(2, 38)
    assert not register(registry_root, candidate).promoted
    outcome = register(registry_root, candidate, params=PARAMS.model_copy(update={"max_p_value_against_champion": 0.3}))
    assert (outcome.version, outcome.promoted, outcome.previous) == (2, True, 1)


def test_names_do_not_share_versions_or_aliases(registry_root: Path, make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(1, 40)
    register(registry_root, candidate)
    other = register(registry_root, candidate, name="digits-classifier")
    assert (other.version, other.promoted) == (1, True)
    assert [model.name for model in versions.champions(root=registry_root)] == ["digits-classifier", NAME]


def test_a_name_that_is_unsafe_in_a_path_or_query_is_refused(tmp_path: Path, make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(1, 40)
    for name in ("", "../x", "a/b", "a" * 65, "-a", "a b", "a:b", "a' or '1' = '1", "a\n"):
        calls: list[Callable[[], Any]] = [
            partial(register, tmp_path, candidate, name=name),
            partial(versions.champion, name, root=tmp_path),
            partial(search_log.log_search, name, [], root=tmp_path, search_id="s"),
        ]
        for call in calls:
            with pytest.raises(InputError) as caught:
                call()
            rule = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
            assert str(caught.value) == f"registry: the name must match {rule}, but got {name!r}"
    assert not (tmp_path / paths.STATE).exists()


def test_reading_a_missing_registry_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert versions.champion(NAME, root=tmp_path) is None
    assert versions.champions(root=tmp_path) == []
    with pytest.raises(InputError) as caught:
        versions.find(f"{NAME}@champion", root=tmp_path)
    assert str(caught.value) == (
        "--model: the version must be registered, but got 'toy-classifier@champion'; nothing is registered yet; run: "
        "dvc repro"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_found_by_alias_and_by_number(registry_root: Path, make_candidate: MakeCandidate) -> None:
    register(registry_root, make_candidate(1, 60))
    register(registry_root, make_candidate(2, 40))
    found = {
        spec: versions.find(f"{NAME}{spec}", root=registry_root).version
        for spec in ("@champion", "@previous", "/1", "/2")
    }
    assert found == {"@champion": 2, "@previous": 1, "/1": 1, "/2": 2}
    assert versions.find(f"{NAME}@champion", root=registry_root) == versions.champion(NAME, root=registry_root)


@pytest.mark.parametrize(
    "damage", ["null", "[]", "7", "{", '{"models": []}', "models", "model", "run", "types", "deep"]
)
def test_what_was_kept_of_versions_in_another_shape_counts_as_none(
    registry_root: Path, make_candidate: MakeCandidate, damage: str
) -> None:
    register(registry_root, make_candidate(1, 60))
    spec, kept = f"{NAME}@champion", registry_root / paths.RESOLVED
    found = versions.find(spec, root=registry_root)
    content = read_json(kept)
    changes: dict[str, Any] = {
        "models": {"models": None},
        "model": {"models": {spec: ["x"]}},
        "run": {"models": {spec: {**content["models"][spec], "run_id": "../../elsewhere"}}},
        "types": {"models": {spec: {**content["models"][spec], "version": "1"}}},
    }
    text = "[" * 100_000 if damage == "deep" else damage
    kept.write_text(json.dumps({**content, **changes[damage]}) if damage in changes else text)
    assert versions.find(spec, root=registry_root) == found
    assert read_json(kept) == content


def test_unknown_version_lists_known_ones(registry_root: Path, make_candidate: MakeCandidate) -> None:
    register(registry_root, make_candidate(1, 40))
    known = "known: toy-classifier/1, toy-classifier@champion"
    for spec, message in {
        "toy": "the name must be NAME@ALIAS or NAME/VERSION, but got 'toy'",
        "toy/latest": "the name must be NAME@ALIAS or NAME/VERSION, but got 'toy/latest'",
        "../toy/1": "the name must be NAME@ALIAS or NAME/VERSION, but got '../toy/1'",
        "toy-classifier/9": f"the version must be registered, but got 'toy-classifier/9'; {known}",
        "toy-classifier@best": f"the version must be registered, but got 'toy-classifier@best'; {known}",
        "tyo@champion": "the version must be registered, but got 'tyo@champion'; known: toy-classifier",
    }.items():
        with pytest.raises(InputError) as caught:
            versions.find(spec, root=registry_root)
        assert str(caught.value) == f"--model: {message}"


_unpickled: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _unpickled is not None and event == "pickle.find_class":
        _unpickled.append(str(arguments))


def test_the_champion_survives_the_round_trip_without_pickle(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    global _unpickled
    folder, predictions = make_candidate(1, 40)
    sys.addaudithook(_watch)
    _unpickled = []
    try:
        register(registry_root, (folder, predictions))
        champion = versions.champion(NAME, root=registry_root)
        assert champion is not None
        model, card = saved.load_model(versions.download(champion, root=registry_root))
        seen = list(_unpickled)
        pickle.loads(pickle.dumps(Path("x")))  # the audit hook itself works
        assert _unpickled != seen
    finally:
        _unpickled = None
    assert seen == []
    original, original_card = saved.load_model(folder)
    assert card == original_card
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])


def test_a_flipped_bit_in_a_registered_model_is_detected(registry_root: Path, make_candidate: MakeCandidate) -> None:
    register(registry_root, make_candidate(1, 40))
    champion = versions.find(f"{NAME}@champion", root=registry_root)
    for file in ("model.safetensors", "model.json"):
        path = versions.download(champion, root=registry_root) / file
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(CorruptDataError, match=rf"/{file}: sha256 must be [0-9a-f]{{12}}, but got \w{{12}}; "):
            versions.download(champion, root=registry_root)
        path.write_bytes(content)


def test_a_registered_model_cannot_be_exchanged_with_its_manifest(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    outcome = register(registry_root, make_candidate(1, 40))
    champion = versions.find(f"{NAME}@champion", root=registry_root)
    folder = versions.download(champion, root=registry_root)
    shutil.copy(make_candidate(2, 40)[0] / "model.safetensors", folder)
    write_manifest(folder)
    with pytest.raises(CorruptDataError) as caught:
        versions.download(champion, root=registry_root)
    assert (
        f"/model: content_sha256 must be {outcome.content_sha256[:12]}, as registered in toy-classifier/1, but got "
        f"{digest(read_json(folder / MANIFEST))[:12]}; "
    ) in str(caught.value)


def test_a_candidate_that_differs_from_its_manifest_is_not_registered(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    folder, predictions = make_candidate(1, 40)
    (folder / "model.json").write_text("{}")
    with pytest.raises(CorruptDataError):
        register(registry_root, (folder, predictions))
    assert state(registry_root) == (0, {})


def test_a_champion_registered_by_another_program_is_refused(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    mlflow = client(registry_root)
    mlflow.create_registered_model(NAME)
    mlflow.create_model_version(NAME, "/somewhere")
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(CorruptDataError) as caught:
        register(registry_root, make_candidate(1, 40))
    assert str(caught.value) == (
        "toy-classifier/1: the tag content_sha256 is not set; give the alias to a version that `dvc repro` registered"
    )


def mlflow(folder: Path, *arguments: str, cwd: str | None = None) -> str:
    """Run MLflow's own program on the registry of a folder, in that folder or in `cwd`."""
    uri = paths.sqlite_uri(folder / paths.MLFLOW_DB) if cwd else f"sqlite:///{paths.MLFLOW_DB}"
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *arguments],
        cwd=cwd or folder, env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_BACKEND_STORE_URI": uri},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_moved_project_goes_on(registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path) -> None:
    first = make_candidate(1, 60)
    register(registry_root, first)
    moved = tmp_path / "elsewhere"
    registry_root.rename(moved)
    champion = versions.champion(NAME, root=moved)
    assert champion is not None
    assert versions.download(champion, root=moved).is_relative_to(moved)
    again = register(moved, first)  # the version at the new place, for programs that know only MLflow
    assert (again.version, again.alias) == (2, "champion")
    assert register(moved, first).version == 2
    outcome = register(moved, make_candidate(2, 40))
    assert (outcome.version, outcome.promoted, outcome.previous) == (3, True, 2)
    assert [experiment.name for experiment in client(moved).search_experiments()] == [NAME, "Default"]
    assert not registry_root.exists()


def test_a_run_names_no_path_of_its_checkout(registry_root: Path, make_candidate: MakeCandidate) -> None:
    shutil.rmtree(registry_root / paths.STATE)
    register(registry_root, make_candidate(1, 60))
    search_log.log_search("toy-search", [trial(0)], root=registry_root, search_id="search-1")
    for experiment in client(registry_root).search_experiments():
        assert experiment.artifact_location.startswith("/proc/self/cwd/.state/mlflow")
    [run] = runs(registry_root)
    assert run.info.artifact_uri == f"/proc/self/cwd/.state/mlflow/{run.info.run_id}/artifacts"


@pytest.mark.services
def test_deleting_runs_in_a_copy_deletes_no_file_of_the_original(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 60))
    copy = tmp_path / "copy"
    shutil.copytree(registry_root, copy)
    before = files_of(registry_root)
    [run] = runs(copy)
    client(copy).delete_run(run.info.run_id)
    mlflow(copy, "gc")
    assert runs(copy) == []
    assert not (copy / paths.MLFLOW_ARTIFACTS / run.info.run_id / "artifacts").exists()
    assert files_of(registry_root) == before
    champion = versions.find(f"{NAME}@champion", root=registry_root)
    saved.load_model(versions.download(champion, root=registry_root))


@pytest.mark.services
@pytest.mark.parametrize("change", ["copy", "move", "mount"])
def test_mlflow_itself_finds_a_version_from_any_folder_in_a_copied_moved_or_linked_checkout(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path, change: str
) -> None:
    candidate = make_candidate(1, 60)
    register(registry_root, candidate)
    place = tmp_path / "100 %41 #1?x=2"
    if change == "copy":
        shutil.copytree(registry_root, place)
        shutil.rmtree(registry_root)
    elif change == "move":
        registry_root.rename(place)
    else:
        place.symlink_to(registry_root)
    if change != "mount":
        register(place, candidate)
    mlflow(place, "artifacts", "download", "-u", f"models:/{NAME}@champion", "-d", str(tmp_path / "found"), cwd="/")
    weights = "model.safetensors"
    assert (tmp_path / "found" / weights).read_bytes() == (candidate[0] / weights).read_bytes()


@pytest.mark.parametrize("name", ["a#b", "a b;c&d", "ü\u2028", "x" * 200])
def test_files_are_in_the_folder_whatever_its_name(
    tmp_path: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch, name: str, empty_database: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "here" / name
    (root / paths.STATE).mkdir(parents=True)
    shutil.copy(empty_database, root / paths.MLFLOW_DB)
    assert register(root, make_candidate(1, 60)).promoted
    saved.load_model(versions.download(versions.find(f"{NAME}@champion", root=root), root=root))
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


def test_a_champion_without_files_is_not_reported(
    registry_root: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_pipe.registry.registration.log_files", lambda *_, **__: None)
    with pytest.raises(CorruptDataError):
        register(registry_root, make_candidate(1, 60))
    assert state(registry_root) == (0, {})


def test_a_registry_with_absolute_paths_gets_versions_without(
    registry_root: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(1, 60)
    with monkeypatch.context() as patch:  # as version 0.1 did
        patch.setattr(paths, "MLFLOW_ROOT", str(registry_root / paths.MLFLOW_ARTIFACTS))
        register(registry_root, candidate)
    champion = versions.champion(NAME, root=registry_root)
    assert champion is not None
    versions.download(champion, root=registry_root)
    outcome = register(registry_root, candidate)
    assert (outcome.version, outcome.alias, outcome.previous) == (2, "champion", 1)
    source = client(registry_root).get_model_version_by_alias(NAME, "champion").source
    assert source == f"{registry_root}/.state/mlflow/{runs(registry_root)[0].info.run_id}/artifacts/model"
    assert register(registry_root, candidate).version == 2


def test_another_tracking_store_is_used_and_its_files_are_copied_once(
    registry_root: Path,
    make_candidate: MakeCandidate,
    empty_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(empty_database, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    register(registry_root, make_candidate(1, 60))
    outcome = register(
        registry_root, make_candidate(2, 40)
    )  # compared with the first model's predictions, which were therefore downloaded
    assert (outcome.version, outcome.promoted, outcome.previous) == (2, True, 1)
    champion = versions.champion(NAME, root=registry_root)
    assert champion is not None
    folder = versions.download(champion, root=registry_root)
    assert folder == registry_root / paths.MLFLOW_ARTIFACTS / "downloads" / outcome.content_sha256 / "model"
    assert versions.download(champion, root=registry_root) == folder
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert versions.champion(NAME, root=registry_root) is None


def test_a_checkout_that_uses_the_store_of_another_one_writes_its_files_there(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry_root, make_candidate(1, 60))
    other = tmp_path / "other"
    (other / paths.MLFLOW_ARTIFACTS).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registry_root / paths.MLFLOW_DB}")
        patch.chdir(other)  # where MLflow itself would put them
        outcome = register(other, make_candidate(2, 40))
        assert (outcome.version, outcome.promoted, outcome.previous) == (2, True, 1)
    assert not list((other / paths.MLFLOW_ARTIFACTS).rglob("model.safetensors"))
    champion = versions.champion(NAME, root=registry_root)
    assert champion is not None
    assert champion.version == 2
    saved.load_model(versions.download(champion, root=registry_root))


def test_a_server_that_shows_a_checkouts_own_store_takes_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@127.0.0.1:5000")
    place = f"{paths.MLFLOW_ROOT}/abc/artifacts"
    with pytest.raises(UnavailableError) as caught:
        files_in_store("abc", artifact_uri=place, root=tmp_path)
    assert str(caught.value) == (
        f"http://127.0.0.1:5000: the MLflow server must store artifacts itself, but got {place}; start the server with "
        "--artifacts-destination, for a database of its own"
    )
    assert files_in_store("abc", artifact_uri="mlflow-artifacts:/1/abc/artifacts", root=tmp_path) is None


@pytest.mark.services
def test_eight_checkouts_share_a_database(
    tmp_path: Path, make_candidate: MakeCandidate, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "shared 100 %.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", paths.sqlite_uri(database))
    candidates = [make_candidate(seed, errors) for seed, errors in enumerate((60, 40))]
    roots = [tmp_path / str(number) for number in range(8)]
    for root in roots:
        (root / paths.MLFLOW_ARTIFACTS).mkdir(parents=True)
    processes = [in_process(partial(register, root, candidates[n % 2])) for n, root in enumerate(roots)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    champion = versions.champion(NAME, root=roots[0])
    assert champion is not None
    assert champion.content_sha256 == digest(read_json(candidates[1][0] / MANIFEST))
    with store.open_store(roots[0]) as reader:
        found = reader.search_model_versions(f"name = '{NAME}'")
    assert sorted(version.tags["content_sha256"] for version in found) == sorted(
        digest(read_json(folder / MANIFEST)) for folder, _ in candidates
    )
    saved.load_model(versions.download(champion, root=roots[0]))
    assert (tmp_path / "shared 100 %.lock").is_file()


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("https://user:secret@example.org:5000/x?token=secret#secret", "https://example.org:5000/x"),
        ("postgresql://user:secret@db/mlflow?password=secret", "postgresql://db/mlflow"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_messages_contain_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, public: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.public_uri(tmp_path) == public


SILENT_STORES = ["http://user:secret@127.0.0.1:9", "file:///nowhere", "ftp://user:secret@host/x"]


@pytest.mark.parametrize("uri", [pytest.param(SILENT_STORES[0], marks=pytest.mark.services), *SILENT_STORES[1:]])
def test_an_unreachable_store_is_one_line_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UnavailableError) as caught:
        versions.champion(NAME, root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"MLFLOW_TRACKING_URI: the registry {store.public_uri(tmp_path)} does not answer: ")
    assert message.endswith("; start that server or unset the variable")
    assert "\n" not in message
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.timing
@pytest.mark.parametrize("uri", SILENT_STORES)
def test_an_unreachable_store_is_reported_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        versions.champion(NAME, root=tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.long
@pytest.mark.services
@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_silent_store_is_named_after_3_s_and_given_up_within_20(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scheme: str
) -> None:
    with dead_server(silent=True) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:hidden@127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=f"^MLFLOW_TRACKING_URI: the registry .*127.0.0.1:{port} "):
            store.check(tmp_path)
        assert time.monotonic() - started < LIMIT_SECONDS
    assert capfd.readouterr().err == f"waiting for the registry, {scheme}://127.0.0.1:{port}\n"


@pytest.mark.long
@pytest.mark.services
def test_a_silent_store_holds_a_search_up_once_and_not_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_server(silent=True) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        with search_log.SearchLog("toy-search", root=tmp_path, search_id="search-1") as log:
            for number in range(5):
                log.add(trial(number))
        assert time.monotonic() - started < LIMIT_SECONDS


def test_a_database_that_cannot_be_opened_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/folder.db")
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="unable to open database file"):
        store.check(tmp_path)
    assert time.monotonic() - started < LIMIT_SECONDS


@pytest.mark.long
def test_a_database_that_another_program_holds_is_busy(registry_root: Path) -> None:
    with closing(sqlite3.connect(registry_root / paths.MLFLOW_DB)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for call in (partial(store.check, registry_root), partial(store.prepare, registry_root)):
            with pytest.raises(BusyError, match=r"mlflow\.db: the registry is locked by another program; end that"):
                call()
        other.rollback()
    store.check(registry_root)


def test_a_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+nosuchdriver://127.0.0.1/x")
    with pytest.raises(UnavailableError, match=r"^MLFLOW_TRACKING_URI: the registry mysql\+nosuchdriver://.*driver"):
        store.check(tmp_path)


def test_a_folders_name_is_no_part_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "a?b=c#d%3Fe @f"
    store.prepare(root)
    store.check(root)
    assert sorted(path.name for path in (root / paths.STATE).iterdir()) == ["mlflow.db", "mlflow.lock"]
    assert list(tmp_path.iterdir()) == [root]  # nothing beside it
    assert store.public_uri(root) == "sqlite:///.state/mlflow.db"
    with store.open_store(root) as client:
        assert [experiment.name for experiment in client.search_experiments()] == ["Default"]


REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("place", ["url", "variable", "token", "file", "nowhere"])
def test_refused_credentials_are_named_by_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    expected = {"url": "the user and password in MLFLOW_TRACKING_URI", "variable": names, "nowhere": f"{names}, which "}
    expected |= {"token": "MLFLOW_TRACKING_TOKEN", "file": "~/.mlflow/credentials"}
    if place == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    elif place == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hidden")
    elif place == "file":
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow/credentials").write_text("[mlflow]\nmlflow_tracking_username = me\n")
    with answering_server(REFUSED) as port:
        user = "me:hidden@" if place == "url" else ""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}127.0.0.1:{port}")
        with pytest.raises(UnavailableError) as caught:
            store.check(tmp_path)
    start = f"http://127.0.0.1:{port}: the credentials were refused; correct {expected[place]}"
    assert str(caught.value).startswith(start)


def test_versions_are_never_kept_apart_from_their_runs(registry_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:hidden@elsewhere:5000")
    with pytest.raises(InputError) as caught:
        store.prepare(registry_root)
    assert str(caught.value) == (
        "MLFLOW_REGISTRY_URI: the address must be that of MLFLOW_TRACKING_URI, because a version needs its run, "
        "but got http://elsewhere:5000; unset it"
    )


def test_an_experiment_that_was_deleted_in_mlflows_page_is_restored(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    search_log.log_search("toy-search", [trial(0)], root=registry_root, search_id="search-1")
    register(registry_root, make_candidate(1, 40))
    for name in ("toy-search", NAME):
        client(registry_root).delete_experiment(client(registry_root).get_experiment_by_name(name).experiment_id)
    search_log.log_search("toy-search", [trial(1)], root=registry_root, search_id="search-2")
    assert register(registry_root, make_candidate(2, 20)).promoted
    assert {run.info.lifecycle_stage for name in ("toy-search", NAME) for run in runs(registry_root, name)} == {
        "active"
    }


@pytest.mark.parametrize("file", ["model/model.safetensors", "metrics.json", "predictions/validation.parquet"])
def test_registering_again_replaces_damaged_files(
    registry_root: Path, make_candidate: MakeCandidate, file: str
) -> None:
    candidate = make_candidate(1, 40)
    outcome = register(registry_root, candidate)
    write_json(registry_root / paths.REGISTRATION, asdict(outcome))
    model = versions.find(f"{NAME}@champion", root=registry_root)
    path = registry_root / paths.MLFLOW_ARTIFACTS / model.run_id / "artifacts" / file
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    if file.startswith("model/"):
        with pytest.raises(CorruptDataError, match=r"; run: rm reports/registration.json && dvc repro$"):
            versions.download(model, root=registry_root)
    again = register(registry_root, candidate)
    assert (again.version, again.alias) == (1, "champion")
    assert path.read_bytes() == whole


def test_an_unreadable_champion_is_known_before_a_training(registry_root: Path, make_candidate: MakeCandidate) -> None:
    registration.check_champion(registry_root)  # there is none yet
    write_json(registry_root / paths.REGISTRATION, asdict(register(registry_root, make_candidate(1, 60))))
    registration.check_champion(registry_root)
    champion = versions.find(f"{NAME}@champion", root=registry_root)
    file = registry_root / paths.MLFLOW_ARTIFACTS / champion.run_id / "artifacts/predictions/validation.parquet"
    file.unlink()
    remedy = "rm reports/registration.json && dvc repro"
    with pytest.raises(CorruptDataError, match=f"^{file} does not exist; run: {remedy}$"):
        registration.check_champion(registry_root)
    with pytest.raises(CorruptDataError, match=f"^{file} does not exist; run: {remedy}$"):
        register(registry_root, make_candidate(2, 40))
    outcome = {"name": NAME, "version": 9}
    write_json(registry_root / paths.REGISTRATION, outcome)
    with pytest.raises(CorruptDataError, match=r"; restore that file from a copy, or give the alias of toy-"):
        registration.check_champion(registry_root)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            {"labels": ("cat", "dog")},
            "the classes must be 2 as the data's, but got 10",
        ),
        ({"shape": (3, 28, 28)}, "the images must be 3x28x28 as the data's, but got 1x28x28"),
    ],
)
def test_a_candidate_of_other_classes_or_another_shape_than_the_champion_is_refused(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path, changes: dict[str, Any], rule: str
) -> None:
    """Two unrelated data sets of one name would fight for its alias; it is said before the training, too."""
    outcome = register(registry_root, make_candidate(1, 60))
    write_json(registry_root / paths.REGISTRATION, asdict(outcome))
    facts = Facts(**changes)
    model, card = models.build("linear", facts=facts), read_json(make_candidate(2, 40)[0] / paths.CARD)
    moments = {"mean": [0.1] * 3, "std": [0.3] * 3} if facts.shape[0] == 3 else {}
    saved.save_model(tmp_path / "other", model, card={**card, **facts.to_dict(), **moments})
    message = f"{NAME}@champion: {rule}; give these data a name of their own with ingest.name"
    with pytest.raises(InputError) as caught:
        register(registry_root, (tmp_path / "other", make_candidate(2, 40)[1]))
    assert str(caught.value) == message
    assert state(registry_root) == (1, {"champion": 1})

    provenance = {"dataset": "toy", "mean": 0.1, "std": 0.3, "shape": list(facts.array_shape), **facts.to_provenance()}
    split = normalized_split(np.zeros((10, *facts.array_shape), np.float32))
    write_normalized(registry_root / paths.TRAINING_SPLITS["train"], replace(split, provenance=provenance))
    with pytest.raises(InputError) as caught:
        registration.check_champion(registry_root)
    assert str(caught.value) == message


def damage(root: Path) -> Path:
    """Overwrite the registry's database, and return its path."""
    database = (root / paths.MLFLOW_DB).resolve()
    database.write_bytes(b"this is not a database" * 100)
    return database


def test_a_damaged_database_is_reported(registry_root: Path, make_candidate: MakeCandidate) -> None:
    database = damage(registry_root)
    for call in (
        lambda: versions.champion(NAME, root=registry_root),
        lambda: register(registry_root, make_candidate(1, 40)),
    ):
        with pytest.raises(CorruptDataError) as caught:
            call()
        assert str(caught.value) == (
            f"{database}: the registry must be SQLite, but got file is not a database; run: mv .state/mlflow.db "
            ".state/mlflow.db.damaged && rm -f reports/registration.json && dvc repro"
        )


@pytest.mark.parametrize("kind", ["an empty file", "another database"])
def test_a_database_that_is_none_of_mlflow_is_no_empty_registry(
    registry_root: Path, make_candidate: MakeCandidate, kind: str
) -> None:
    database = (registry_root / paths.MLFLOW_DB).resolve()
    database.write_bytes(b"")
    if kind == "another database":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE notes (text)")
    before = database.read_bytes()
    for call in (
        lambda: versions.champion(NAME, root=registry_root),
        lambda: versions.champions(root=registry_root),
        lambda: versions.find(f"{NAME}@champion", root=registry_root),
        lambda: store.prepare(registry_root),
        lambda: register(registry_root, make_candidate(1, 40)),
    ):
        with pytest.raises(CorruptDataError) as caught:
            call()
        assert str(caught.value) == (
            f"{database}: the registry must be a database of MLflow, but got {kind}; run: mv .state/mlflow.db "
            ".state/mlflow.db.damaged && rm -f reports/registration.json && dvc repro"
        )
    assert database.read_bytes() == before
    database.unlink()
    assert register(registry_root, make_candidate(1, 40)).promoted


@pytest.mark.timing
def test_a_damaged_database_is_reported_at_once(registry_root: Path, make_candidate: MakeCandidate) -> None:
    damage(registry_root)
    candidate = make_candidate(1, 40)
    started = time.monotonic()
    with pytest.raises(CorruptDataError):
        versions.champion(NAME, root=registry_root)
    with pytest.raises(CorruptDataError):
        register(registry_root, candidate)
    assert time.monotonic() - started < 5


def kill_at(root: Path, candidate: tuple[Path, Path], method: str, call: int) -> None:
    """Register, and end by SIGKILL just before call number `call` of MLflow's `method`."""
    from mlflow import MlflowClient

    original, calls = getattr(MlflowClient, method), 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(MlflowClient, method, counted)
    register(root, candidate)


@pytest.mark.services
@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("log_inputs", 1),
        ("log_batch", 1),
        ("set_terminated", 1),
        ("create_model_version", 1),
        ("set_model_version_tag", 1),  # the version exists, but the alias does not
        ("set_registered_model_alias", 1),
        ("set_registered_model_alias", 2),  # `previous` is moved, but `champion` is not
    ],
)
def test_a_killed_registration_is_completed_by_the_next(
    registry_root: Path, make_candidate: MakeCandidate, method: str, call: int
) -> None:
    first, second = make_candidate(1, 60), make_candidate(2, 40)
    setup = in_process(lambda: register(registry_root, first))
    setup.join()
    killed = in_process(lambda: kill_at(registry_root, second, method, call))
    killed.join()
    assert (setup.exitcode, killed.exitcode) == (0, -signal.SIGKILL)
    assert state(registry_root)[1]["champion"] == 1
    outcome = register(registry_root, second)
    assert (outcome.version, outcome.promoted, outcome.previous) == (2, True, 1)
    assert state(registry_root) == (2, {"champion": 2, "previous": 1})
    assert [run.info.status for run in runs(registry_root)] == ["FINISHED", "FINISHED"]
    saved.load_model(versions.download(versions.find(f"{NAME}@champion", root=registry_root), root=registry_root))


@pytest.mark.services
def test_a_kill_during_database_creation_leaves_no_database(
    tmp_path: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    candidate = make_candidate(1, 40)

    def work() -> None:
        from sqlalchemy import Engine, event

        tables = []

        @event.listens_for(Engine, "after_cursor_execute")
        def kill(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            tables.extend(["CREATE TABLE"] if "CREATE TABLE" in statement else [])
            if len(tables) >= 10 and statement.startswith("UPDATE"):  # within a transaction, which has a journal
                os.kill(os.getpid(), signal.SIGKILL)

        register(tmp_path, candidate)

    killed = in_process(work)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    left = {path.suffix for path in (tmp_path / paths.STATE).glob(".mlflow.db.*")}
    assert left == {".tmp", ".tmp-journal"}, "killed before it was begun"
    assert not (tmp_path / paths.MLFLOW_DB).exists()
    assert register(tmp_path, candidate).promoted
    remove_leftovers(tmp_path / paths.STATE, recursive=False)
    assert not list((tmp_path / paths.STATE).glob(".mlflow.db.*"))


@pytest.mark.services
def test_eight_concurrent_registrations_make_one_version(
    tmp_path: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    candidate = make_candidate(1, 40)
    processes = [in_process(lambda: register(tmp_path, candidate)) for _ in range(8)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert state(tmp_path) == (1, {"champion": 1})
    assert len(runs(tmp_path)) == 1


@pytest.mark.services
def test_the_best_of_concurrent_candidates_ends_as_champion(registry_root: Path, make_candidate: MakeCandidate) -> None:
    candidates = [make_candidate(seed, errors) for seed, errors in enumerate((60, 45, 30, 15))]
    processes = [in_process(partial(register, registry_root, c)) for c in candidates]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    number, aliases = state(registry_root)
    assert number == 4
    best = client(registry_root).get_model_version(NAME, str(aliases["champion"]))
    assert best.tags["content_sha256"] == digest(read_json(candidates[3][0] / MANIFEST))


def trial(number: int, status: str = "finished", epochs: int = 3, **figures: float) -> dict[str, Any]:
    config = {
        "model": "convnet",
        "optimizer": "nesterov",
        "learning_rate": 0.1,
        "weight_decay": 1e-5,
        "batch_size": 128,
    }
    config |= {"rotation_degrees": 3.5, "translation_pixels": 1.0}
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "validation_loss": 2 / epoch, "validation_accuracy": 0.9, **figures}
        for epoch in range(1, epochs + 1)
    ]
    times = {"ended_at": 1_700_000_100.5, "seconds": 2.25}
    return {"trial": number, "status": status, "config": config, "history": history, **times}


def test_a_search_is_logged_as_one_run_per_trial_with_every_epoch(registry_root: Path) -> None:
    trials = [trial(0), trial(1, "stopped", 1), trial(2, "diverged", 2, train_loss=float("nan")), trial(3, "failed", 0)]
    assert search_log.log_search("toy-search", trials, root=registry_root, search_id="search-1") == 4
    found = {int(run.data.tags["trial"]): run for run in trial_runs(registry_root)}
    assert [found[n].info.status for n in range(4)] == ["FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert [found[n].data.tags["status"] for n in range(4)] == ["finished", "stopped", "diverged", "failed"]
    assert found[0].data.params == {key: str(value) for key, value in trials[0]["config"].items()}
    assert found[0].info.run_name == "search-1-0"
    history = client(registry_root).get_metric_history(found[0].info.run_id, "validation_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2), (2, 1), (3, pytest.approx(2 / 3))]
    assert len(client(registry_root).get_metric_history(found[2].info.run_id, "train_loss")) == 2


def test_a_search_is_a_finished_run_and_its_trials_are_nested_under_it(registry_root: Path) -> None:
    search_log.log_search("toy-search", [trial(0), trial(1, "failed", 0)], root=registry_root, search_id="search-1")
    [parent] = [run for run in runs(registry_root, "toy-search") if "trial" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("search-1", "FINISHED")
    assert parent.data.metrics == {"num_trials": 2, "best_validation_accuracy": 0.9}
    assert {run.data.tags["mlflow.parentRunId"] for run in trial_runs(registry_root)} == {parent.info.run_id}


def test_a_trial_has_its_own_start_and_end(registry_root: Path) -> None:
    search_log.log_search("toy-search", [trial(0)], root=registry_root, search_id="search-1")
    [run] = trial_runs(registry_root)
    assert (run.info.start_time, run.info.end_time) == (1_700_000_098_250, 1_700_000_100_500)


def test_the_trials_of_a_running_search_appear_one_by_one(registry_root: Path) -> None:
    trials = [trial(0), trial(1)]
    with search_log.SearchLog("toy-search", root=registry_root, search_id="search-1") as log:
        log.add(trials[0])
        wait_until(lambda: len(trial_runs(registry_root)) == 1, seconds=30)
        [parent] = [run for run in runs(registry_root, "toy-search") if "trial" not in run.data.tags]
        assert parent.info.status == "RUNNING"
        log.add(trials[1])
    assert [run.info.status for run in trial_runs(registry_root)] == ["FINISHED"] * 2
    assert search_log.log_search("toy-search", trials, root=registry_root, search_id="search-1") == 0


def test_a_store_that_does_not_answer_does_not_stop_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / paths.STATE).mkdir()
    (tmp_path / paths.MLFLOW_DB).write_text("not a database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with search_log.SearchLog("toy-search", root=tmp_path, search_id="search-1") as log:
        log.add(trial(0))
    with pytest.raises(CorruptDataError, match="must be SQLite"):
        search_log.log_search("toy-search", [trial(0)], root=tmp_path, search_id="search-1")


def test_logging_a_search_twice_adds_nothing(registry_root: Path) -> None:
    trials = [trial(0), trial(1)]
    assert search_log.log_search("toy-search", trials, root=registry_root, search_id="search-1") == 2
    assert search_log.log_search("toy-search", [*trials, trial(2)], root=registry_root, search_id="search-1") == 1
    assert search_log.log_search("toy-search", trials, root=registry_root, search_id="search-2") == 2
    assert len(trial_runs(registry_root)) == 5


@pytest.mark.services
@pytest.mark.parametrize(("method", "call"), [("log_batch", 2), ("set_terminated", 2)])
def test_an_interrupted_log_of_a_search_is_completed(registry_root: Path, method: str, call: int) -> None:
    trials = [trial(n) for n in range(4)]

    def work() -> None:
        from mlflow import MlflowClient

        original, calls = getattr(MlflowClient, method), []

        def counted(*arguments: Any, **keywords: Any) -> Any:
            calls.append(0)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(MlflowClient, method, counted)
        search_log.log_search("toy-search", trials, root=registry_root, search_id="search-1")

    killed = in_process(work)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    search_log.log_search("toy-search", trials, root=registry_root, search_id="search-1")
    found = trial_runs(registry_root)
    assert sorted(run.data.tags["trial"] for run in found) == ["0", "1", "2", "3"]
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        assert len(client(registry_root).get_metric_history(run.info.run_id, "train_loss")) == 3


def test_a_search_of_700_epochs_is_logged_completely(registry_root: Path) -> None:
    search_log.log_search("toy-search", [trial(0, epochs=700)], root=registry_root, search_id="s")
    [run] = trial_runs(registry_root)
    assert len(client(registry_root).get_metric_history(run.info.run_id, "train_loss")) == 700


def test_a_search_of_24_trials_is_logged_in_seconds(registry_root: Path) -> None:
    versions.champion(NAME, root=registry_root)  # pays for the import and the first connection
    started = time.process_time()  # CPU time, so that other load on this machine does not count
    search_log.log_search("toy-search", [trial(n) for n in range(24)], root=registry_root, search_id="search-1")
    assert time.process_time() - started < 2  # 0.4 s measured


@pytest.mark.services
def test_a_registration_prints_nothing_and_mlflow_sends_no_telemetry(
    tmp_path: Path, make_candidate: MakeCandidate
) -> None:
    folder, predictions = make_candidate(1, 40)
    script = f"""
import os, sys
from pathlib import Path
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from mnist_pipe.registry import registration as registry
from mnist_pipe.params.schema import RegisterParams
assert not {{"mlflow", "torch"}} & set(sys.modules), "imported before it is needed"
assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ, "an effect at import"
params = RegisterParams(max_p_value_against_baseline=.01, max_p_value_against_champion=.05, max_calibration_error=.1)
candidate = registry.Candidate(folder=Path({str(folder)!r}), predictions=Path({str(predictions)!r}), metrics={{}},
                               lineage={{}})
outcome = registry.register(candidate, root=Path({str(tmp_path)!r}), name="x", params=params)
assert outcome.promoted
assert calls == [], "telemetry"
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False
"""
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}  # MLflow sends nothing from CI or pytest
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    # On a busy machine the tables of a new registry may take more than 3 s, of which a notice tells.
    told = [line for line in done.stderr.splitlines() if not line.startswith("waiting for the registry")]
    assert (done.returncode, done.stdout, told) == (0, "", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".state", "candidates"]


def test_a_card_is_at_the_known_path(tmp_path: Path) -> None:
    saved.save_model(tmp_path, models.build("linear"), card={"model": "linear", "model_params": {}})
    assert read_json(tmp_path / paths.CARD)["model"] == "linear"
    assert issubclass(CorruptDataError, PipelineError)
