"""Create a small copy of the project, and run a user's commands in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from tests.support import ROOT

SMALL: dict[str, Any] = {
    "ingest.dataset": "digits",
    "baseline.num_epochs": 3,
    "search.num_trials": 4,
    "search.num_epochs": 2,
    "search.train_rows": 500,
    "search.space.model": ["convnet", "mlp"],
    "search.space.batch_size": [32, 64],
    "train.num_epochs": 15,
}
HARDEST = "-w e?%41#&;:@='\"ü手 50% $HOME `id` \\n "
"""A folder's name with every character that means something to a shell, a URL or SQL."""
GENERATED = {
    *(".git", ".venv", ".state", "data", "models", "dvc.lock", "reports"),
    *(f"{project}.dvc/{name}" for project in ("", "studies/") for name in ("cache", "tmp", "config.local")),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
}


def environment() -> dict[str, str]:
    """Return this process's environment, with the virtual environment first in PATH and without other services."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_", "DVC_", "MNIST_PIPE_"))
    }
    # dvc runs a stage through $SHELL; dash, unlike bash, remains as a process between the two.
    return {**inherited, "PATH": path, "PYTHONPATH": ".", "SHELL": "/bin/sh"}


def run(folder: Path, *command: str, code: int = 0) -> str:
    """Run a command, check that it exits with `code`, and return its output."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def set_params(folder: Path, **changes: object) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        section = params
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    yaml.dump(params, folder / "params.yaml")


def copy_tree(folder: Path) -> Path:
    """Copy the project's files without anything generated, as in an unpacked archive."""

    def ignored(parent: str, names: list[str]) -> set[str]:
        here = Path(parent).relative_to(ROOT)
        return {name for name in names if str(here / name) in GENERATED or name == "__pycache__"}

    shutil.copytree(ROOT, folder, ignore=ignored)
    set_params(folder, **SMALL)
    return folder


def kill_all(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()  # first: a dvc whose stage dies writes its lock file, and a kill meanwhile would truncate it
    for child in family:
        child.kill()
