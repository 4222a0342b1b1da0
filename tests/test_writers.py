"""Test that any number of writers may register at once: one version a content, one champion, and no gate is skipped.

Each writer is a process with a checkout of its own, so that no lock of a checkout orders them.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnist_pipe import paths
from mnist_pipe.atomic import MANIFEST, digest, read_json
from mnist_pipe.models import saved
from mnist_pipe.registry import succession, versions
from tests.support import mlflow
from tests.support.registry import NAME, Candidate, MakeCandidate, in_process, register

pytestmark = [pytest.mark.mlflow, pytest.mark.services]
BETTER_BY = 5
"""Errors that a candidate must have less than the champion: with four, exact McNemar gives p = 0.0625."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an MLflow server, which MLFLOW_TRACKING_URI names."""
    with ExitStack() as stack:
        is_sqlite = request.param == "sqlite"
        store = f"sqlite:///{tmp_path / 'server.db'}" if is_sqlite else stack.enter_context(mlflow.postgres())
        url = stack.enter_context(mlflow.server(tmp_path, store=store))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield url


def client(url: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(url)


def content(candidate: Candidate) -> str:
    return digest(read_json(candidate[0] / MANIFEST))


@contextmanager
def watched(url: str) -> Iterator[list[str | None]]:
    """Yield a list that gets each new value of the alias `champion` while the block runs."""
    seen: list[str | None] = []
    end, reader = threading.Event(), client(url)

    def watch() -> None:
        while not end.is_set():
            found = versions.aliases(reader, NAME).get("champion")
            if found != (seen[-1] if seen else None):
                seen.append(found)
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def check(url: str, candidates: Sequence[Candidate], errors: Sequence[int], seen: Sequence[str | None]) -> None:
    """Check what must hold after every candidate has been registered, and while they were."""
    found = client(url).search_model_versions(f"name = '{NAME}'")
    by_content = {version.tags["content_sha256"]: int(version.version) for version in found}
    assert len(found) == len(by_content) == len(candidates)
    wrong = {by_content[content(one)]: number for one, number in zip(candidates, errors, strict=True)}
    assert None not in seen
    champions = [int(number) for number in seen if number is not None]
    for before, after in itertools.pairwise(champions):
        assert wrong[before] - wrong[after] >= BETTER_BY, f"{after} became champion without a comparison with {before}"
    assert wrong[champions[-1]] - min(errors) < BETTER_BY
    champion = versions.champion(NAME, root=Path.cwd())
    assert champion is not None
    assert champion.version == champions[-1]
    seat = succession.find_seat(client(url), NAME)
    assert (seat.champion, seat.claim) == (champion, "successor.1")


def run_all(writers: Sequence[Any], *, seconds: float, kills: int = 0) -> list[int]:
    """Wait for writers that work at once, after killing some of them, and return the exit codes of the others."""
    chosen = random.Random(1)
    victims = chosen.sample(list(writers), kills)
    for victim in victims:
        time.sleep(chosen.uniform(0, 1.5))
        victim.kill()
    deadline = time.monotonic() + seconds
    for writer in writers:
        writer.join(max(0, deadline - time.monotonic()))
    return [writer.exitcode for writer in writers if writer not in victims]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    (folder / paths.MLFLOW_ARTIFACTS).mkdir(parents=True)
    monkeypatch.chdir(folder)


def start(folder: Path, candidate: Candidate, number: int) -> Any:
    root = folder / f"checkout-{number}"
    (root / paths.MLFLOW_ARTIFACTS).mkdir(parents=True)
    return in_process(partial(register, root, candidate))


@pytest.mark.long
def test_writers_in_eight_checkouts_share_a_server(address: str, make_candidate: MakeCandidate, tmp_path: Path) -> None:
    errors = [60, 40, 20]
    candidates = [make_candidate(seed, number) for seed, number in enumerate(errors)]
    with watched(address) as seen:
        writers = [start(tmp_path, candidates[number % 3], number) for number in range(8)]
        assert run_all(writers, seconds=280) == [0] * 8
    check(address, candidates, errors, seen)
    champion = versions.champion(NAME, root=Path.cwd())
    assert champion is not None
    saved.load_model(versions.download(champion, root=Path.cwd()))


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_64_writers_of_which_some_are_killed_register_each_content_once(
    address: str, make_candidate: MakeCandidate, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    errors = [90 - 5 * number for number in range(16)]
    candidates = [make_candidate(seed, number) for seed, number in enumerate(errors)]
    order = [number % 16 for number in range(64)]
    random.Random(0).shuffle(order)
    with watched(address) as seen:
        writers = [start(tmp_path, candidates[which], number) for number, which in enumerate(order)]
        assert set(run_all(writers, seconds=2000, kills=16)) == {0}
        for number, candidate in enumerate(candidates):  # as the next `dvc repro` of the killed ones
            register(tmp_path / f"checkout-{number}", candidate)
    check(address, candidates, errors, seen)
    record_property("counted", f"64 writers of 16 contents, 16 of them killed, {len(seen)} champions in turn")
