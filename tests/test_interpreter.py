"""Test that a stage runs with the project's Python, whichever is first on PATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.checkout import copy_tree


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs with a Python that has no packages."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin"


def run(project: Path, bare: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{bare}:/usr/bin:/bin", "HOME": str(project.parent)}
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.services
def test_dvc_of_an_environment_that_is_not_activated_runs_its_stages(tmp_path: Path, bare: Path) -> None:
    project = copy_tree(tmp_path / "main")
    (project / ".venv").symlink_to(Path(sys.prefix))
    run(project, bare, ".venv/bin/dvc", "config", "--local", "core.no_scm", "true")
    done = run(project, bare, ".venv/bin/dvc", "repro", "ingest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "data/raw/train.parquet").exists()


@pytest.mark.parametrize(("module", "argument"), [("pipelines", "ingest"), ("studies", "cnn")])
def test_a_python_without_the_packages_is_named_in_one_line(
    tmp_path: Path, bare: Path, module: str, argument: str
) -> None:
    project = copy_tree(tmp_path / "main")
    done = run(project, bare, "python", "-m", module, argument)
    assert done.returncode == 3, done.stderr
    assert done.stderr == (
        f"{bare}/python: psutil is not installed; run: make .venv/.run, or put the Python of the project's environment "
        "first on PATH\n"
    )


def make(folder: Path, *arguments: str, programs: Path) -> subprocess.CompletedProcess[str]:
    """Run make with the project's Makefile in an empty folder, with `programs` before those of the system."""
    command = ["make", "-f", str(ROOT / "Makefile"), *arguments, f"{folder}/.venv/.run", f"VENV={folder}/.venv"]
    variables = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Folder with a Python 3.12 that works, and a 3.13 that does not, as pyenv leaves them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for version, works in (("3.11", True), ("3.12", True), ("3.13", False)):
        program = folder / f"python{version}"
        program.write_text(f"#!/bin/sh\nexit {0 if works else 127}\n")
        program.chmod(0o755)
    return folder


def test_make_takes_the_newest_python_that_works(tmp_path: Path, programs: Path) -> None:
    done = make(tmp_path, "--dry-run", programs=programs)
    assert 'python="python3.12"' in done.stdout, done.stderr


@pytest.mark.parametrize(("given", "got"), [("PYTHON=", "none"), ("PYTHON=python3.0", "python3.0")])
def test_make_names_the_command_that_brings_a_missing_python(
    tmp_path: Path, programs: Path, given: str, got: str
) -> None:
    done = make(tmp_path, given, programs=programs)
    assert done.returncode == 2
    line = done.stderr.splitlines()[0]
    assert line.startswith(
        f"make: Python must be 3.11 or newer, with venv, but got {got}; run: apt-get install python3-venv"
    )
    for command in ("brew install python@3.13", "uv python install 3.13"):
        assert command in line
    assert len(line) <= 300
    assert not (tmp_path / ".venv").exists()
