"""Test the lineage of a model in a clean checkout, in a modified one, and in a tree without git."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mnist_pipe import lineage
from mnist_pipe.errors import UnavailableError
from tests.support import ROOT

CARD = {"dataset": "mnist", "data_sha256": {"train": "aa", "validation": "bb"}}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(folder)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Project with its params and a source file, as in an unpacked archive."""
    root = tmp_path / "project"
    (root / "reports").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    (root / "code.py").write_text("x = 1\n")
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    (root / "reports" / "data.json").write_text("{}\n")
    return root


@pytest.fixture
def checkout(tree: Path) -> Path:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "All")
    return tree


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert lineage.source_revision(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("file", ["code.py", "params.yaml", "new.py"])
def test_a_changed_or_new_file_makes_it_dirty(checkout: Path, file: str) -> None:
    with (checkout / file).open("a") as stream:
        stream.write("# changed\n")
    assert lineage.source_revision(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


def test_what_a_run_itself_writes_does_not_make_it_dirty(checkout: Path) -> None:
    (checkout / "dvc.lock").write_text("stages: {}\n")
    (checkout / "reports" / "data.json").write_text("{}")
    (checkout / "reports" / "new.json").write_text("{}")
    assert lineage.source_revision(checkout)[1] is False


def test_a_tree_without_git_has_no_revision(tree: Path) -> None:
    assert lineage.source_revision(tree) == ("not a git checkout", None)


def test_a_tree_inside_another_repository_has_no_revision(tree: Path) -> None:
    git(tree.parent, "init", "--quiet")
    git(tree.parent, "commit", "--quiet", "--allow-empty", "-m", "Theirs")
    assert lineage.source_revision(tree) == ("not a git checkout", None)


def test_a_machine_without_git_gives_no_revision(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lineage.source_revision(checkout) == ("not a git checkout (git is not installed)", None)


def test_the_variables_of_a_git_hook_are_ignored(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert lineage.source_revision(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


def test_reading_the_revision_does_not_write_to_the_repository(checkout: Path) -> None:
    index = checkout / ".git" / "index"
    (checkout / "code.py").touch()  # a plain `git status` would now refresh the index
    before = index.stat().st_mtime_ns
    lineage.source_revision(checkout)
    assert index.stat().st_mtime_ns == before


def test_the_lineage_is_complete(checkout: Path) -> None:
    found = lineage.collect(checkout, card=CARD, provenance={"source_sha256": "cc"})
    assert found["dataset"] == "mnist"
    assert found["source_sha256"] == "cc"
    assert found["data_sha256"] == CARD["data_sha256"]
    assert found["git_revision"] == git(checkout, "rev-parse", "HEAD")
    assert found["git_dirty"] is False
    assert found["versions"]["python"] == platform.python_version()
    assert torch.__version__.startswith(found["versions"]["torch"].split("+")[0])
    assert {"dvc", "mlflow", "mnist_pipe", "numpy", "prefect", "ray", "torch"} <= set(found["versions"])


def test_the_params_hash_ignores_comments(tree: Path) -> None:
    def params_hash() -> str:
        return str(lineage.collect(tree, card=CARD, provenance={})["params_sha256"])

    path = tree / "params.yaml"
    original = params_hash()
    path.write_text("# a remark\n" + path.read_text())
    assert params_hash() == original
    path.write_text(path.read_text().replace("timeout_seconds: 8", "timeout_seconds: 9"))
    assert params_hash() != original


def test_a_git_that_hangs_is_an_error_and_not_a_missing_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(lineage, "LIMIT_SECONDS", 0.5)
    with pytest.raises(UnavailableError, match=r"git does not answer: nothing in 0\.5 s; end what holds"):
        lineage.source_revision(tmp_path)
