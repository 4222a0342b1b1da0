"""Test that the project works in a folder of any name, or says at once that it cannot."""

from __future__ import annotations

import getpass
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mnist_pipe import atomic, fingerprint, paths
from mnist_pipe.cluster import handoff, storage
from mnist_pipe.data.download import PublishedFile, fetch_published
from mnist_pipe.errors import UnavailableError
from mnist_pipe.inference import predict
from mnist_pipe.local import doctor, services
from mnist_pipe.registry import store
from tests.support import ROOT
from tests.support.checkout import HARDEST
from tests.support.registry import register, write_candidate
from tests.support.services import clean_variables, new_root, run

__all__ = ["clean_variables"]  # fixture

USABLE = st.text(
    st.sampled_from("ab.-_?%41 #&;:@='\"!$*()[]{}<>|\\^`~+,éü手\N{NO-BREAK SPACE}"), min_size=1, max_size=60
).filter(lambda name: name.strip(".") != "")
OF_A_USER = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture(scope="module")
def database(empty_database: Path) -> Path:
    return empty_database


@given(name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30))
@example(name="a\nb")
@example(name="a?b%41")
def test_a_path_is_refused_exactly_if_it_has_a_control_character(name: str) -> None:
    root = Path("/projects") / name
    if not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        assert doctor.check_path(root) == str(root)
        return
    with pytest.raises(UnavailableError, match="rename or move the folder") as caught:
        doctor.check_path(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two\nlines", "a\x1b[2J", "latin-\udce9"])
def test_doctor_names_a_folder_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    error = dict(doctor.examine(root))["folder"]
    assert isinstance(error, UnavailableError)
    assert "the folder's path must hold only characters that can be printed" in str(error)
    assert str(error).isprintable()


@pytest.mark.long
@pytest.mark.mlflow
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=USABLE)
@example(name=HARDEST)
@example(name="x" * 200)
def test_a_model_is_registered_and_predicts_in_a_folder_of_any_name(database: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        real = Path(folder) / name / "checkout"
        (real / paths.STATE).mkdir(parents=True)
        root = Path(folder) / "link"
        root.symlink_to(real)
        shutil.copy(database, root / paths.MLFLOW_DB)
        before = sorted(path.name for path in Path(folder).iterdir())
        assert register(root, write_candidate(root / "candidates", 1, 10)).promoted
        picture = root / "seven.png"
        Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(picture)
        [reading] = predict.classify([picture], root=root)
        assert isinstance(reading, predict.Reading), reading
        assert sorted(path.name for path in Path(folder).iterdir()) == before  # nothing beside the checkout


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=USABLE)
@example(name=HARDEST)
@example(name="x" * 200)
def test_files_are_found_and_exchanged_in_folders_of_any_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        place = Path(folder) / name / "runs"
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"bytes")
        published = PublishedFile(num_bytes=5, sha256=atomic.sha256(place / "file"))
        target, mirrors = place / "new" / "file", [str(place)]
        found = fetch_published(
            target, published, mirrors=mirrors, unreachable={}, timeout_seconds=1, log=lambda _: None
        )
        assert found == place / "file"
        shared = storage.open_uri(str(place))
        shared.check()
        assert shared.put(place / "file") == published.sha256
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        request = {"stage": "a", "inputs": {"in": published.sha256}, "outputs": ["out"], "dirty": None, "revision": ""}
        shared.write_json("runs/a/request.json", {**request, "code": fingerprint.source_version()})
        with handoff.worker_workspace(f"{shared.uri}/runs/a/0"):
            Path("out").write_bytes(Path("in").read_bytes())
        assert shared.read_json("runs/a/0/outputs.json") == {"out": published.sha256}


@pytest.mark.parametrize("folder", ["/tmp/" + "x" * 75, "/tmp/a b#c", "/tmp/手"])
def test_ray_does_not_use_a_temporary_folder_that_its_sockets_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    assert services.ray_environment(tmp_path)["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("TMPDIR", "/scratch/job-1")
    assert "RAY_TMPDIR" not in services.ray_environment(tmp_path)


def test_a_temporary_folder_that_is_not_there_or_too_long_for_ray_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match=r"TMPDIR: the folder .* does not exist; create it or unset"):
        doctor.check_temporary_folder()
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 75)
    with pytest.raises(UnavailableError, match="RAY_TMPDIR: the path must have at most 43 bytes"):
        doctor.check_temporary_folder()


@pytest.mark.ray
@pytest.mark.long
def test_ray_starts_with_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80) / HARDEST
    folder.mkdir(parents=True)
    code = (
        "import os; from pathlib import Path; from mnist_pipe.local import services\n"
        "os.environ.update(services.ray_environment(Path.cwd()))\n"
        "from mnist_pipe.cluster.ray_session import connected\n"
        "with connected('a') as found: print(found.num_cpus)\n"
    )
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


def become_nobody(root: Path, home: str | None, outcome: Connection) -> None:
    """Run in a process of its own: give up the user's name and home, and send which ones the project finds then."""
    for name in OF_A_USER:
        os.environ.pop(name, None)
    if home is not None:
        os.environ["HOME"] = home
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
    os.environ.update(services.home(root))
    (Path.home() / "file").touch()
    outcome.send((str(Path.home()), getpass.getuser()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without an entry")
@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc"])
def test_a_user_without_home_and_name_gets_them(home: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        processes = multiprocessing.get_context("fork")  # the user may not read this virtual environment
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=become_nobody, args=(Path(folder), home, theirs))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert ours.recv() == (f"{folder}/{paths.STATE}/home", "mnist-pipe")


@pytest.mark.long
@pytest.mark.mlflow
def test_a_registry_is_created_while_the_working_directory_has_a_hard_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / HARDEST
    root.mkdir()
    monkeypatch.chdir(root)
    store.prepare(root)
    assert [path.name for path in tmp_path.iterdir()] == [HARDEST]
    assert [path.name for path in root.iterdir()] == [str(paths.STATE)]


@pytest.mark.ray
@pytest.mark.services
def test_the_services_start_with_a_long_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, root = tmp_path / ("x" * 80), tmp_path / HARDEST
    folder.mkdir()
    root.mkdir()
    new_root(root)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        run(root, "up")
        assert {state for state, _ in services.status(root).values()} == {services.State.RUNNING}
    finally:
        run(root, "down")
