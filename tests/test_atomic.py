"""Test that a file is whole or absent, and that what killed writers leave is removed."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_pipe import atomic


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
        atomic.remove_leftovers(tmp_path)
        assert file.exists()
        assert folder.exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"inner", "inner/kept.tmp", "inner/file", "folder"}
