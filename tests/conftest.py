"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

from mnist_pipe import telemetry
from mnist_pipe.data.splits import RawSplit
from tests.support import ROOT
from tests.support.data import random_split

if TYPE_CHECKING:
    from mnist_pipe.cluster.ray_session import Cluster

pytest_plugins = ["tests.support.registry"]

# pytest-xdist runs a process for each CPU; with as many threads in each, they would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    assert "torch" not in sys.modules  # torch reads the variable only on import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# As in `services.environment`: every Ray listens on loopback only. Ray reads the first variable on import.
for name, value in {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **telemetry.OFF}.items():
    os.environ.setdefault(name, value)

# No deadline, as the machine is shared; the same examples each time, so that a failure can be reproduced.
settings.register_profile("mnist-pipe", deadline=None, derandomize=True, database=None)
settings.load_profile("mnist-pipe")


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection; pytest runs five full collections when it ends."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch, so that a failure can be reproduced."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def raw_splits() -> dict[str, RawSplit]:
    """Train split of 500 and test split of 100 random images, each with every class."""
    random = np.random.default_rng(7)
    return {name: random_split(rows, random) for name, rows in (("train", 500), ("test", 100))}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread, as in a Ray worker with one CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist_mirror() -> Path:
    """Folder of the four published MNIST files."""
    folder = ROOT.parent / "shared" / "mnist"
    if not folder.is_dir():
        pytest.skip("no mirror directory ../shared/mnist: the published files are not at hand")
    return folder


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Temporary Prefect server and database for the tests that run flows."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Local Ray that all tests of a module share."""
    from mnist_pipe.cluster.ray_session import connected

    with connected("a-test") as available:
        yield available
