"""Test bed and checkouts that the cluster's tests share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.bed import Bed, missing
from tests.cluster.project import Project, make


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """Running cluster; a test that breaks something repairs it."""
    if lack := missing():
        pytest.skip(lack)
    started = time.monotonic()
    with Bed.start() as running:
        print(f"the bed was up after {time.monotonic() - started:.0f} s")
        yield running


@pytest.fixture(scope="session")
def project(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Checkout on the client, with its deployments on the server."""
    deployed = bed.script("deployments")
    assert deployed.returncode == 0, deployed.stderr
    return make(bed, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def rebuilt(project: Project) -> str:
    """Output of `dvc repro` on the client."""
    started = time.monotonic()
    done = project.run("dvc", "repro", timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    print(f"dvc repro on the cluster took {time.monotonic() - started:.0f} s")
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(rebuilt: str, project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Copy of the rebuilt checkout, which the tests of one module may change."""
    assert rebuilt
    return project.copy(tmp_path_factory.mktemp("copy") / "main")
