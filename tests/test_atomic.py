"""Test that a file is whole or absent, and that what killed writers leave is removed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_pipe import atomic
from mnist_pipe.errors import BusyError
from tests.support.services import wait_until


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    for write in (atomic.atomic_file, atomic.atomic_folder):
        if (child := os.fork()) == 0:
            with write(tmp_path / "inner" / "killed"):
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
    (tmp_path / "inner/kept.tmp").touch()
    assert len(list((tmp_path / "inner").iterdir())) == 3
    with atomic.atomic_file(tmp_path / "inner/file") as file, atomic.atomic_folder(tmp_path / "folder") as folder:
        file.write_bytes(b"new")
        atomic.remove_leftovers(tmp_path, recursive=False)
        assert len(list((tmp_path / "inner").iterdir())) == 4
        atomic.remove_leftovers(tmp_path)
        assert file.exists()
        assert folder.exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"inner", "inner/kept.tmp", "inner/file", "folder"}


HOLDER = """
import sys, time
from pathlib import Path
from mnist_pipe.atomic import locked
with locked(Path(sys.argv[1]), purpose="a test", wait=True):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.services
def test_a_wait_for_a_lock_is_announced_and_bounded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BusyError), atomic.locked(path, purpose="a test"):
            pass
        assert capfd.readouterr().err == ""
        message = f"{path}: a test is already running in process {holder.pid}; wait for it or stop it"
        with (
            pytest.raises(BusyError, match=f"^{re.escape(message)}$"),
            atomic.locked(path, purpose="a test", wait=True, limit_seconds=4),
        ):
            pass
        assert capfd.readouterr().err == f"waiting for process {holder.pid}, which holds {path}: a test\n"
        holder.kill()
        with atomic.locked(path, purpose="a test", wait=True):
            assert path.read_text() == str(os.getpid())


@pytest.mark.services
def test_a_lock_that_passes_on_is_waited_for_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER, str(path), "2"]) for _ in range(3)]
    wait_until(lambda: path.exists() and path.read_text() != "")
    with atomic.locked(path, purpose="a test", wait=True, limit_seconds=3):  # after up to 6 s
        pass
    assert [holder.wait() for holder in holders] == [0, 0, 0]
