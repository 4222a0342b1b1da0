"""Fixture of the tests that rebuild."""

from __future__ import annotations

import os

import pytest

from mnist_pipe import atomic, hardware, paths
from mnist_pipe.fingerprint import source_version
from tests.support import ROOT
from tests.support.checkout import SMALL, run
from tests.support.rebuild import SMALLER, checkout, digests


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, str]:
    """Digests of the outputs of a rebuild in which nothing happens; pytest's cache keeps them for the same code."""
    threads = os.environ.get("OMP_NUM_THREADS")  # with -n, that of tests/conftest.py
    facts = [source_version(), atomic.sha256(ROOT / paths.PARAMS), SMALL, SMALLER, hardware.cpu_name(), threads]
    key, cache = f"undisturbed/{atomic.digest(facts)}", request.config.cache
    found: dict[str, str] | None = cache.get(key, None) if cache else None
    if found is None:
        folder = checkout(tmp_path_factory.mktemp("undisturbed") / "main", services=False)
        run(folder, "dvc", "repro")
        found = digests(folder)
        if cache:
            cache.set(key, found)
    return found
