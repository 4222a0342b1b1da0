"""Test that what a kill or a full disk leaves of DVC's own files is reported, and brought back by the named remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_pipe import atomic, paths
from mnist_pipe.errors import BusyError, CorruptDataError
from mnist_pipe.local import doctor, dvc_files
from pipelines import cli
from tests.support import ROOT, checkout

LOCK = (ROOT / "dvc.lock").read_bytes()
FIX = "run: mnist-pipe doctor --fix"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Project whose files are whole."""
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / paths.DVC_RWLOCKS[0]).parent.mkdir(parents=True)
    (tmp_path / paths.DVC_RWLOCKS[0]).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_whole_files_are_valid(project: Path) -> None:
    assert dvc_files.check(project) == "dvc.lock, .dvc/tmp/rwlock valid"
    assert list(dvc_files.repair(project)) == []


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 1000, len(LOCK) - 1])
def test_a_truncated_lock_is_named_with_the_remedy(project: Path, num_bytes: int) -> None:
    (project / "dvc.lock").write_bytes(LOCK[:num_bytes])
    error = dict(doctor.examine(project))["dvc's lock"]
    assert isinstance(error, CorruptDataError)
    assert str(error) == f"dvc.lock: the file must be whole, but got {num_bytes} bytes; {FIX}"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"write": []}', '{"/project/models": {"wri'])
def test_a_damaged_rwlock_is_named_and_removed(project: Path, content: str) -> None:
    (project / paths.DVC_RWLOCKS[0]).write_text(content)
    [error] = dvc_files.damaged(project)
    assert str(error) == f".dvc/tmp/rwlock: the file must be DVC's JSON, but got {len(content)} bytes; {FIX}"
    assert list(dvc_files.repair(project)) == [".dvc/tmp/rwlock: removed; DVC writes it anew"]
    assert list(dvc_files.damaged(project)) == []


def test_records_of_killed_commands_are_removed_and_others_stay(project: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = ({"pid": pid, "cmd": "dvc repro"} for pid in (ended.pid, os.getpid()))
    record = {"read": {"/a": [dead, living], "/b": [dead]}, "write": {"/c": dead, "/d": living}}
    atomic.write_json(project / paths.DVC_RWLOCKS[0], record)
    dvc_files.forget_the_dead(project)
    expected = {"read": {"/a": [living]}, "write": {"/d": living}}
    assert atomic.read_json(project / paths.DVC_RWLOCKS[0]) == expected
    atomic.write_json(project / paths.DVC_RWLOCKS[0], record)
    with atomic.locked(project / ".dvc/tmp/rwlock.lock", purpose="DVC"):  # DVC writes it
        dvc_files.forget_the_dead(project)
    assert atomic.read_json(project / paths.DVC_RWLOCKS[0]) == record
    assert list(dvc_files.repair(project)) == []
    assert atomic.read_json(project / paths.DVC_RWLOCKS[0]) == expected


def test_the_lock_comes_back_from_the_copy_that_the_last_stage_kept(project: Path) -> None:
    dvc_files.keep(project)
    (project / "dvc.lock").write_bytes(b"")
    dvc_files.keep(project)  # a damaged file does not replace the copy
    assert list(dvc_files.repair(project)) == ["dvc.lock: restored from .state/dvc/dvc.lock; run: dvc repro"]
    assert (project / "dvc.lock").read_bytes() == LOCK


def test_without_a_copy_the_lock_comes_back_from_git(project: Path) -> None:
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], check=True)
    (project / "dvc.lock").write_bytes(b"")
    assert list(dvc_files.repair(project)) == ["dvc.lock: restored from Git; run: dvc repro"]
    assert (project / "dvc.lock").read_bytes() == LOCK


def test_without_any_copy_the_lock_is_removed(project: Path) -> None:
    (project / "dvc.lock").write_bytes(b"schema: '2.0'\nstages: 1\n")
    with pytest.raises(CorruptDataError, match="be DVC's YAML"):
        dvc_files.check(project)
    [line] = dvc_files.repair(project)
    assert line == "dvc.lock: removed, as there is no copy; dvc repro runs every stage again"
    assert not (project / "dvc.lock").exists()


def test_nothing_is_repaired_while_a_stage_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_pipe.local.dvc_files.LIMIT_SECONDS", 0.3)
    (project / paths.DVC_RWLOCKS[0]).write_text("")
    with atomic.locked(project / paths.STATE / "stage.lock", purpose="a stage"), pytest.raises(BusyError):
        list(dvc_files.repair(project))
    assert (project / paths.DVC_RWLOCKS[0]).exists()


def test_the_repair_waits_for_the_end_of_a_stage_whose_dvc_was_killed(project: Path) -> None:
    (project / paths.DVC_RWLOCKS[0]).write_text("")
    with ThreadPoolExecutor() as threads:
        with atomic.locked(project / paths.STATE / "stage.lock", purpose="a stage"):
            repaired = threads.submit(lambda: list(dvc_files.repair(project)))
            with pytest.raises(TimeoutError):
                repaired.result(timeout=0.5)
        assert repaired.result(timeout=5) == [".dvc/tmp/rwlock: removed; DVC writes it anew"]


@pytest.mark.parametrize("verb", ["status", "summary"])
def test_the_commands_around_a_rebuild_name_the_remedy(
    project: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (project / "dvc.lock").write_bytes(b"")
    cli.main([verb])
    assert f"dvc.lock: the file must be whole, but got 0 bytes; {FIX}\n" in capsys.readouterr().err


@pytest.mark.services
@pytest.mark.parametrize("name", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_dvc_refuses_an_empty_file_and_works_after_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text("a: 1\n")
    stage = "from pathlib import Path; from mnist_pipe.local import dvc_files; dvc_files.keep(Path.cwd())"
    (tmp_path / "stage.py").write_text(f"{stage}; import sys; Path(sys.argv[1]).write_text('out')\n")
    one, two = ({"cmd": f"{sys.executable} stage.py {out}", "outs": [out]} for out in ("one", "two"))
    atomic.write_json(tmp_path / "dvc.yaml", {"stages": {"one": one, "two": {**two, "deps": ["one"]}}})
    run = {**checkout.environment(), "PYTHONPATH": str(ROOT)}

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=run, capture_output=True, text=True, check=False)

    call("dvc", "init", "--no-scm", "-q")
    assert call("dvc", "repro").returncode == 0
    (tmp_path / name).write_bytes(b"")
    assert call("dvc", "repro").returncode != 0
    call(sys.executable, "-m", "pipelines.cli", "doctor", "--fix")
    done = call("dvc", "repro")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "out"
    if name == "dvc.lock":
        assert "Stage 'one' didn't change, skipping" in done.stdout  # its entry was in the copy
