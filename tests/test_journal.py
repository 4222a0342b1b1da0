"""Test the journal of searches that optuna-dashboard shows: it has what the ledger has, whatever happened to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mnist_pipe import paths
from mnist_pipe.cluster import storage
from mnist_pipe.tuning.journal import Journal
from mnist_pipe.tuning.ledger import TrialRecord
from tests.support.search import RECIPE, SPACE

SPACE_WITH_ARGUMENTS = {**SPACE, "model_params": {"convnet": {"channels": [[4], [4, 8]]}}}
CONFIG = {
    "model": "mlp",
    "optimizer": "adam",
    "learning_rate": 0.01,
    "weight_decay": 1e-5,
    "batch_size": 64,
    "rotation_degrees": 2.0,
    "translation_pixels": 1.0,
}


def record(trial: int, *, status: str = "finished", **config: Any) -> TrialRecord:
    history = [{"epoch": epoch, "validation_accuracy": 0.9 + epoch / 100} for epoch in (1, 2)]
    return TrialRecord(
        trial=trial,
        status=status,
        config={**CONFIG, **config},
        history=[] if status == "failed" else history,
        ended_at=1_700_000_000.0 + trial,
        seconds=2.5,
    )


RECORDS = [
    record(1),
    record(3, status="stopped", optimizer="nesterov", learning_rate=0.4),
    record(2, status="diverged"),
    record(4, model="convnet", model_params={"channels": [4, 8]}),
    record(5, status="failed"),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def write(folder: Path, records: list[TrialRecord], *, known: int = 0, name: str = "search-1") -> None:
    """Write a search whose ledger has the first `known` records when it starts."""
    with Journal(
        name,
        storage=storage.open_uri(str(folder)),
        space=SPACE_WITH_ARGUMENTS,
        recipe=RECIPE.model_dump(),
        known=records[:known],
    ) as journal:
        for one in records:
            journal.add(one)


def read(folder: Path, name: str = "search-1") -> list[optuna.trial.FrozenTrial]:
    backend = JournalFileBackend(str(folder / paths.JOURNAL))
    return optuna.load_study(study_name=name, storage=JournalStorage(backend)).trials


def numbers(folder: Path, name: str = "search-1") -> list[int]:
    return [trial.user_attrs["trial"] for trial in read(folder, name)]


def test_a_study_has_every_trial_with_its_state_values_and_times(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    first, stopped, diverged, convnet, failed = read(tmp_path)
    assert [trial.user_attrs["trial"] for trial in read(tmp_path)] == [1, 3, 2, 4, 5]
    assert (first.state, first.value, first.params) == (TrialState.COMPLETE, 0.92, CONFIG)
    assert first.intermediate_values == {1: 0.91, 2: 0.92}
    assert first.datetime_complete is not None
    assert first.datetime_complete.timestamp() == 1_700_000_001.0
    assert first.duration is not None
    assert first.duration.total_seconds() == 2.5
    assert (stopped.state, stopped.params["learning_rate"]) == (TrialState.PRUNED, 0.4)
    assert (diverged.state, failed.state) == (TrialState.FAIL, TrialState.FAIL)
    assert convnet.params == {**CONFIG, "model": "convnet", "model_params.channels": "[4, 8]"}
    # One learning rate for all optimizers, so that pages compare the trials.
    distribution = first.distributions["learning_rate"]
    assert distribution == stopped.distributions["learning_rate"]
    assert distribution == optuna.distributions.FloatDistribution(0.0005, 0.5, log=True)


@pytest.mark.parametrize("written", range(len(RECORDS) + 1))
def test_a_resumed_search_adds_what_is_missing_and_no_trial_twice(tmp_path: Path, written: int) -> None:
    write(tmp_path, RECORDS[:written])
    write(tmp_path, RECORDS, known=min(written + 1, len(RECORDS)))  # killed between the ledger and the journal
    assert numbers(tmp_path) == [1, 3, 2, 4, 5]


@pytest.mark.parametrize("damage", ["cut", "line", "missing", "not its own"])
def test_a_damaged_journal_is_written_anew_from_the_ledger(tmp_path: Path, damage: str) -> None:
    write(tmp_path, RECORDS[:3])
    file = tmp_path / paths.JOURNAL
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-20])
        case "line":
            file.write_bytes(content.replace(b"{", b"?", 1))
        case "missing":
            file.unlink()
        case _:
            file.write_bytes(b"[1]\n")
    write(tmp_path, RECORDS, known=3)
    assert numbers(tmp_path) == [1, 3, 2, 4, 5]


def test_a_search_that_runs_again_replaces_its_study_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, RECORDS[:2], name="search-0")
    write(tmp_path, RECORDS)
    write(tmp_path, [replace(one, ended_at=one.ended_at + 100) for one in RECORDS[:2]])
    assert [trial.user_attrs["ended_at"] for trial in read(tmp_path)] == [1_700_000_101.0, 1_700_000_103.0]
    assert numbers(tmp_path, "search-0") == [1, 3]


def test_a_journal_that_cannot_be_written_ends_no_search(tmp_path: Path) -> None:
    (tmp_path / paths.JOURNAL).mkdir(parents=True)
    write(tmp_path, RECORDS)
    (tmp_path / paths.JOURNAL).rmdir()
    write(tmp_path, [*RECORDS, record(6, weight_decay=0.5)])  # outside the space
    assert numbers(tmp_path) == [1, 3, 2, 4, 5]
