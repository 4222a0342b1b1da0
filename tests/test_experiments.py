"""Test what users do with DVC beside `dvc repro`, on a small clone that was rebuilt once, with the real DVC."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mnist_pipe import paths
from mnist_pipe.registry import registration, store, versions
from tests.support import ROOT
from tests.support.checkout import copy_tree, run, set_params, stages_run

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(900)]
NAME = "digits-classifier"
EASY = ("-S", "register.max_p_value_against_champion=0.999")
"""Options with which a candidate that differs from the champion passes the gate against it."""
OUTPUTS = ("data", "models", "reports")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Git clone, rebuilt and committed, whose version 1 is the champion."""
    folder = copy_tree(tmp_path_factory.mktemp("experiments") / "main")
    set_params(folder, **{"search.num_trials": 2, "search.num_epochs": 1, "train.num_epochs": 3})
    set_params(folder, **{"search.space.model": ["convnet"], "ingest.mirrors": ["../mirror"]})
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.name", "t")
    run(folder, "git", "config", "user.email", "t@t")
    run(folder, "dvc", "repro")
    commit(folder)
    return folder


@pytest.fixture
def clone(rebuilt: Path) -> Iterator[Path]:
    """Rebuilt clone that is as committed again after the test; its registry keeps what the test registered."""
    yield rebuilt
    (rebuilt / ".dvc/config.local").unlink(missing_ok=True)
    run(rebuilt, "git", "reset", "-q", "--hard")
    run(rebuilt, "dvc", "checkout", "--force", "-q")


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "results")


def champion(folder: Path) -> int:
    found = versions.champion(NAME, root=folder)
    assert found is not None
    return found.version


def experiments(folder: Path) -> dict[str, int]:
    """Return the versions that DVC experiments made, by the experiments' names."""
    with store.open_store(folder) as client:
        found = client.search_model_versions(f"name = '{NAME}'")
    return {version.tags[registration.EXPERIMENT]: int(version.version) for version in found if version.tags.get(
        registration.EXPERIMENT
    )}  # fmt: skip


def lock(folder: Path) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return stages


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each output that DVC keeps."""
    files = [path for top in OUTPUTS for path in (folder / top).rglob("*") if path.is_file()]
    skipped = ("registration.json", ".gitignore")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in skipped}


def test_an_experiment_outside_the_workspace_moves_no_alias_until_it_is_applied(clone: Path) -> None:
    before = champion(clone)
    output = run(clone, "dvc", "exp", "run", "--temp", "-n", "longer", "-S", "train.num_epochs=12", *EASY)
    assert stages_run(output) == ["train", "evaluate", "register", "report"]
    assert "gate champion passed: Of 287 rows that both held out" in output
    assert f"the champion, version {before}, alone" in output
    assert "moves no alias. To make it the champion: dvc exp apply longer, then dvc repro." in output
    made = experiments(clone)["longer"]
    assert (made > before, champion(clone)) == (True, before)
    assert not (clone / ".state/runs").exists() or not list((clone / ".state/runs").iterdir())
    assert json.loads((clone / paths.REGISTRATION).read_text())["version"] == before

    run(clone, "dvc", "exp", "apply", "longer")
    assert stages_run(run(clone, "dvc", "repro")) == ["register", "report"]
    assert champion(clone) == made
    registered = json.loads((clone / paths.REGISTRATION).read_text())
    assert (registered["version"], registered["alias"], registered["previous"]) == (made, "champion", before)

    run(clone, "dvc", "exp", "branch", "longer", "a-branch")
    assert "num_epochs: 12" in run(clone, "git", "show", "a-branch:params.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "idx"])
def test_a_temporary_experiment_reads_the_mirrors_and_files_of_the_workspace(
    clone: Path, mnist_mirror: Path, dataset: str
) -> None:
    """The mirror is a path relative to the workspace, and the files in `inputs/` are not in Git."""
    (clone.parent / "mirror").unlink(missing_ok=True)
    (clone.parent / "mirror").symlink_to(mnist_mirror)
    name, changes = dataset, ["-S", f"ingest.dataset={dataset}"]
    if dataset == "idx":
        for file in mnist_mirror.glob("*-ubyte.gz"):
            shutil.copy(file, clone / "inputs")
        name, changes = "mine", [*changes, "-S", "ingest.name=mine"]
    output = run(clone, "dvc", "exp", "run", "--temp", "-n", dataset, *changes, "ingest")
    assert f"{name}: 60,000 training and 10,000 test images" in output
    run(clone, "git", "clean", "-qfX", "inputs")
    run(clone, "dvc", "exp", "apply", dataset)
    [inputs] = [dep for dep in lock(clone)["ingest"]["deps"] if dep["path"] == "inputs"]
    assert inputs["nfiles"] == {"mnist": 1, "idx": 5}[dataset]  # what was read, and README.md


@pytest.mark.slow
def test_two_queued_experiments_end_and_each_says_for_whom_it_waits(clone: Path) -> None:
    before = champion(clone)
    for number in (2, 3):
        run(clone, "dvc", "exp", "run", "--queue", "-n", f"queued-{number}", "-S", f"train.seed={number}")
    run(clone, "dvc", "queue", "start", "-j", "2")
    deadline = time.monotonic() + 600
    while any(state in (status := run(clone, "dvc", "queue", "status")) for state in ("Queued", "Running")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status.count("Success") == 2, status
    run(clone, "dvc", "queue", "stop")
    logs = "".join(run(clone, "dvc", "queue", "logs", f"queued-{number}") for number in (2, 3))
    assert "which holds .state/stage.lock: a stage" in logs
    assert "of experiment queued-" in logs
    assert {"queued-2", "queued-3"} <= experiments(clone).keys()
    assert champion(clone) == before


def test_metrics_and_experiments_fit_a_terminal(clone: Path) -> None:
    lines = run(clone, "dvc", "metrics", "show").splitlines()
    assert "reports/metrics.json" in lines[1]
    assert max(map(len, lines)) <= 160
    assert len(json.loads((clone / paths.METRICS).read_text())) <= 15
    assert "studies" not in run(clone, "dvc", "exp", "show", "--csv")
    [narrow] = re.findall(r"`(dvc exp show --drop .*?)`", (ROOT / "docs/dvc.md").read_text())
    [columns, *_] = csv.reader(run(clone, *shlex.split(narrow), "--csv").splitlines())
    assert "test.accuracy" in columns
    assert len(columns) <= 60
    assert "studies" not in run(clone, "dvc", "dag") + run(clone, "dvc", "status")


def test_outputs_are_pushed_pulled_and_fetched_by_name(clone: Path, tmp_path: Path) -> None:
    run(clone, "dvc", "remote", "add", "--local", "-d", "storage", str(tmp_path / "remote"))
    run(clone, "dvc", "push")
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(clone), str(other))
    run(other, "dvc", "remote", "add", "--local", "-d", "storage", str(tmp_path / "remote"))
    run(other, "dvc", "pull", "--allow-missing")
    assert contents(other) == contents(clone)
    assert stages_run(run(other, "dvc", "repro", "evaluate")) == []
    run(other, "git", "tag", "-a", "-m", "the first", "mnist-classifier@v1.0.0")
    run(other, "dvc", "artifacts", "get", ".", "mnist-classifier", "-o", "fetched")
    assert (other / "fetched/model.json").read_bytes() == (clone / "models/candidate/model.json").read_bytes()


def test_outputs_survive_checkout_and_gc(clone: Path) -> None:
    before = contents(clone)
    for top in ("data", "models"):
        shutil.rmtree(clone / top)
    run(clone, "dvc", "checkout")
    run(clone, "dvc", "gc", "--workspace", "--force")
    assert contents(clone) == before
    assert stages_run(run(clone, "dvc", "repro", "evaluate")) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "reflink", "elsewhere"])
def test_a_stage_replaces_outputs_that_are_links_into_the_cache(clone: Path, kind: str) -> None:
    """`elsewhere` is a cache on another file system, with symbolic links."""
    before, cache = contents(clone), Path("/dev/shm") / f"mnist-pipe-{os.getpid()}"
    settings = [f"cache.dir {cache}"] if kind == "elsewhere" else []
    if kind == "elsewhere":
        shutil.copytree(clone / ".dvc/cache", cache)
    try:
        for setting in (*settings, f"cache.type {'symlink' if kind == 'elsewhere' else f'{kind},copy'}"):
            run(clone, "dvc", "config", "--local", *setting.split(maxsplit=1))
        run(clone, "dvc", "checkout", "--relink")
        card = clone / "models/baseline/model.json"
        assert (card.is_symlink(), card.stat().st_nlink > 1) == (kind in ("symlink", "elsewhere"), kind == "hardlink")
        stages = ("dvc", "repro", "--force", "--single-item")
        for stage in ("normalize", "baseline"):
            assert stages_run(run(clone, *stages, stage)) == [stage]
        assert contents(clone) == before
    finally:
        (clone / ".dvc/config.local").unlink()
        run(clone, "dvc", "checkout", "--relink", "--force")
        shutil.rmtree(cache, ignore_errors=True)


@pytest.mark.slow
def test_a_worktree_has_a_state_of_its_own_and_a_subfolder_is_as_good_as_the_root(clone: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run(clone, "git", "worktree", "add", "-q", str(tree))
    run(tree, "dvc", "cache", "dir", "--local", str(clone / ".dvc/cache"))
    run(tree, "dvc", "checkout", "--allow-missing")
    stage = "../dvc.yaml:baseline"
    output = run(tree / "reports", "dvc", "repro", "--force", "--single-item", stage)
    assert stages_run(output) == [stage]
    assert (tree / "models/baseline/model.json").read_bytes() == (clone / "models/baseline/model.json").read_bytes()
    assert not (tree / paths.STATE).is_symlink()
    assert not (tree / paths.MLFLOW_DB).exists()  # it is another checkout
    assert run(tree / "studies", "mnist-pipe", "status", code=3) == run(tree, "mnist-pipe", "status", code=3)
    run(clone, "git", "worktree", "remove", "--force", str(tree))
