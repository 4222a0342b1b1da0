"""Test that a stage runs with the project's Python, whichever is first on PATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
