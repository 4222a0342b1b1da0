"""Whole rebuilds of a small checkout, in which something is broken."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import psutil

from mnist_pipe import paths
from tests.support.checkout import copy_tree, environment, run, set_params

SMALLER = {"search.num_trials": 2, "search.num_epochs": 1, "train.num_epochs": 10}
"""Changes to `checkout.SMALL`: what breaks is the same in a shorter rebuild."""


def processes(folder: Path) -> dict[int, str]:
    """Return the command line of each process that belongs to the checkout: started in it, or with its name."""
    found = {}
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            belongs = str(folder) in command or process.environ().get("PWD") == str(folder)
            if belongs and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = command
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every reproducible output; the registry's and the page's contain times."""
    outputs = [path for top in ("data", "models", "reports") for path in (folder / top).rglob("*") if path.is_file()]
    skipped = {"index.html", "registration.json", ".gitignore"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in outputs
        if path.name not in skipped
    }


def versions(uri: str, folder: Path) -> int:
    """Return how many versions the registry at `uri` has of the model that the checkout has registered."""
    from mlflow import MlflowClient

    name = json.loads((folder / paths.REGISTRATION).read_text())["name"]
    return len(MlflowClient(uri).search_model_versions(f"name = '{name}'"))


def start(folder: Path, **more: str) -> subprocess.Popen[bytes]:
    with (folder / "repro.log").open("ab") as log:
        return subprocess.Popen(
            ["dvc", "repro"], cwd=folder, env={**environment(), "PWD": str(folder), **more}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def checkout(folder: Path, *, services: bool) -> Path:
    copy_tree(folder)
    set_params(folder, **SMALLER)
    run(folder, "dvc", "config", "--local", "core.no_scm", "true")
    if services:
        run(folder, "mnist-pipe", "up")
    return folder


def leftovers(folder: Path) -> list[str]:
    """Return what killed processes have left: temporary files, and records of who reads and writes what."""
    temporary = [str(path) for path in folder.rglob(".*.tmp") if ".dvc" not in path.parts]
    rwlock = folder / ".dvc/tmp/rwlock"
    records = json.loads(rwlock.read_text() or "{}") if rwlock.exists() else {}
    return temporary + [f"{kind} {path}" for kind, users in records.items() for path in users]
