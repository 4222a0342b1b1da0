"""Fixture of the tests that rebuild."""

from __future__ import annotations

import pytest

from tests.support.checkout import run
from tests.support.rebuild import checkout, digests


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the outputs of a rebuild in which nothing happens."""
    folder = checkout(tmp_path_factory.mktemp("undisturbed") / "main", services=False)
    run(folder, "dvc", "repro")
    return digests(folder)
