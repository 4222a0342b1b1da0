"""The bed that the cluster's tests share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.bed import Bed, missing
from tests.cluster.project import Project, make


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """A running cluster. A test that breaks something mends it again."""
    if lack := missing():
        pytest.skip(lack)
    started = time.monotonic()
    with Bed.start() as running:
        print(f"the bed was up after {time.monotonic() - started:.0f} s")
        yield running


@pytest.fixture(scope="session")
def project(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A checkout on the client, and its deployments on the server."""
    deployed = bed.script("deployments")
    assert deployed.returncode == 0, deployed.stderr
    return make(bed, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def rebuilt(project: Project) -> str:
    """What `dvc repro` printed on the client."""
    started = time.monotonic()
    done = project.run("dvc", "repro", timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    print(f"dvc repro on the cluster took {time.monotonic() - started:.0f} s")
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(rebuilt: str, project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the rebuilt checkout, for the tests of a module to change as they like."""
    assert rebuilt
    return project.copy(tmp_path_factory.mktemp("copy") / "main")
