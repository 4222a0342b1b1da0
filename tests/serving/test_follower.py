"""Test which version serves while the alias moves, the registry fails and files are damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_pipe import paths
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.serving.follower import Follower
from tests.support.registry import NAME
from tests.support.serving import damage, promote

ALIAS = f"{NAME}@champion"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
Follow = Callable[[str], Follower]


@pytest.fixture
def follow(registry_root: Path) -> Follow:
    return lambda spec: Follower(
        spec, root=registry_root, log=logging.getLogger("tests.follower")
    )  # not Ray's, which may not propagate


def test_the_new_champion_serves_after_a_check(registry_root: Path, follow: Follow) -> None:
    promote(registry_root, 1, errors=60)
    follower = follow(ALIAS)
    assert (follower.served.model.version, follower.served.accuracy) == (1, 0.75)
    folder, _ = promote(registry_root, 2, errors=20)
    assert follower.served.model.version == 1
    follower.check()
    assert (follower.served.model.version, follower.problem) == (2, "")
    expected = Classifier.load(folder).probabilities(IMAGES)
    np.testing.assert_array_equal(follower.served.classifier.probabilities(IMAGES), expected)


def test_a_pinned_version_stays(registry_root: Path, follow: Follow) -> None:
    promote(registry_root, 1, errors=60)
    follower = follow(f"{NAME}/1")
    promote(registry_root, 2, errors=20)
    follower.check()
    assert follower.served.model.version == 1


def test_a_damaged_version_does_not_serve_and_is_reported_once(
    registry_root: Path, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    promote(registry_root, 1, errors=60)
    follower = follow(ALIAS)
    promote(registry_root, 2, errors=20)
    damage(registry_root, version=2)
    for _ in range(3):
        follower.check()
    assert follower.served.model.version == 1
    assert follower.problem.startswith(f"{NAME}/2 does not serve: ")
    assert "model.safetensors" in follower.problem
    assert [record.message for record in caplog.records] == [follower.problem]
    promote(registry_root, 3, errors=1)
    follower.check()
    assert (follower.served.model.version, follower.problem) == (3, "")


def test_a_replica_that_starts_while_the_champion_is_damaged_serves_the_version_before(
    registry_root: Path, follow: Follow
) -> None:
    promote(registry_root, 1, errors=60)
    promote(registry_root, 2, errors=20)
    damage(registry_root, version=2)
    follower = follow(ALIAS)
    assert follower.served.model.version == 1
    assert follower.problem.startswith(f"{NAME}/2 does not serve: ")
    with pytest.raises(CorruptDataError):
        follow(f"{NAME}/2")


def test_a_registry_that_fails_stops_nothing(
    registry_root: Path, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    promote(registry_root, 1, errors=60)
    follower = follow(ALIAS)
    database = registry_root / paths.MLFLOW_DB
    content = database.read_bytes()
    database.write_bytes(b"no database" * 1000)
    follower.check()
    follower.check()
    assert follower.served.model.version == 1
    assert "must be SQLite" in follower.problem
    assert len(caplog.records) == 1
    database.write_bytes(content)
    follower.check()
    assert follower.problem == ""


def test_an_unknown_version_is_refused(registry_root: Path, follow: Follow) -> None:
    promote(registry_root, 1, errors=60)
    with pytest.raises(InputError, match=f"known: {NAME}/1, {ALIAS}"):
        follow(f"{NAME}/7")
