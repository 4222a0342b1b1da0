"""Test the deployment `rebuild`, as a schedule or a button runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.cluster.bed import Bed, wait_for
from tests.cluster.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_rebuild_reproduces_a_fresh_checkout_and_pushes_a_branch(bed: Bed, project: Project, tmp_path: Path) -> None:
    repository = tmp_path / "repository.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", project.folder, repository], check=True)
    deployment = bed.prefect("deployments/name/rebuild/cpu")["id"]
    body = {"parameters": {"repository": str(repository)}, "state": {"type": "SCHEDULED"}}
    run = bed.prefect(f"deployments/{deployment}/create_flow_run", body=body)["id"]
    wait_for(lambda: bed.prefect(f"flow_runs/{run}")["state"]["type"] in FINAL, "the rebuild", timeout=900, every=2)
    state = bed.prefect(f"flow_runs/{run}")["state"]
    assert state["type"] == "COMPLETED", state["message"]

    branches = git(repository, "branch", "--list", "rebuild/*").split()
    assert len(branches) == 1
    rebuilt = tmp_path / "rebuilt"
    subprocess.run(["git", "clone", "--quiet", "--branch", branches[0], repository, rebuilt], check=True)
    assert len(YAML(typ="safe").load(rebuilt / "dvc.lock")["stages"]) == 8
    assert set(git(rebuilt, "show", "--name-only", "--format=").split()) >= {"dvc.lock", "reports/data.json"}

    endpoint = bed.client_env["AWS_ENDPOINT_URL"]
    for command in (
        ["dvc", "remote", "add", "--local", "-d", "storage", f"{bed.storage}/dvc"],
        ["dvc", "remote", "modify", "--local", "storage", "endpointurl", endpoint],
        ["dvc", "pull", "--quiet", "--allow-missing"],
    ):
        done = bed.run("client", command, cwd=rebuilt)
        assert done.returncode == 0, done.stderr
    assert (rebuilt / "models/candidate/model.safetensors").exists()


FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
