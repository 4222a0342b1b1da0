"""Test the ledger of an interrupted job: it reads what was recorded, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist_pipe import atomic
from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.storage import open_uri


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Entry with a field that earlier versions did not have."""

    number: int
    history: list[float]
    address: str = ""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger[Trial]:
    return Ledger(storage=open_uri(str(tmp_path)), folder="trials/a-search", entry=Trial)


def test_entries_are_read_in_the_order_of_their_names(ledger: Ledger[Trial]) -> None:
    assert ledger.read() == []
    trials = [Trial(number=number, history=[0.5, 0.25], address="here") for number in range(3)]
    for trial in reversed(trials):
        ledger.record(trial, name=f"{trial.number:05}")
    assert ledger.read() == trials


def test_an_entry_replaces_one_of_the_same_name(ledger: Ledger[Trial]) -> None:
    for number in (1, 2):
        ledger.record(Trial(number=number, history=[]), name="same")
    assert [trial.number for trial in ledger.read()] == [2]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"null", b"[1, 2]", b"{}", b'{"number": 1, "history": [], "unknown": 1}']
)
def test_a_file_that_is_no_entry_is_ignored(ledger: Ledger[Trial], content: bytes) -> None:
    ledger.storage.write(f"{ledger.folder}/00000.json", content)
    ledger.record(Trial(number=1, history=[]), name="00001")
    assert [trial.number for trial in ledger.read()] == [1]


def test_what_a_killed_writer_left_is_no_entry_and_is_removed(ledger: Ledger[Trial]) -> None:
    ledger.record(Trial(number=1, history=[]), name="1")
    folder = Path(ledger.storage.path(ledger.folder))
    code = (
        "import os, sys; from pyarrow import fs; from mnist_pipe.cluster.storage import open_uri\n"
        "with open_uri(sys.argv[1])._writing(sys.argv[2]) as stream:\n"
        "    stream.write(open(sys.argv[3], 'rb').read()); stream.flush(); os._exit(9)\n"
    )
    key = f"{ledger.folder}/2.json"
    done = subprocess.run([sys.executable, "-c", code, ledger.storage.uri, key, str(folder / "1.json")], check=False)
    assert done.returncode == 9
    assert len(list(folder.iterdir())) == 2
    assert [trial.number for trial in ledger.read()] == [1]
    atomic.remove_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == ["1.json"]
    ledger.remove()
    assert not folder.exists()


def test_an_entry_of_an_earlier_version_gets_the_defaults(ledger: Ledger[Trial]) -> None:
    values = {"number": 1, "history": [0.5]}
    ledger.storage.write_json(f"{ledger.folder}/1.json", {**values, "sha256": atomic.digest(values)})
    assert ledger.read() == [Trial(number=1, history=[0.5])]


def test_a_changed_entry_is_ignored(ledger: Ledger[Trial]) -> None:
    ledger.record(Trial(number=1, history=[0.5]), name="1")
    key = f"{ledger.folder}/1.json"
    ledger.storage.write(key, (ledger.storage.read(key) or b"").replace(b"0.5", b"0.7"))
    assert ledger.read() == []


def test_removing_a_ledger_leaves_the_others(ledger: Ledger[Trial]) -> None:
    other = Ledger(storage=ledger.storage, folder="trials/another", entry=Trial)
    for each in (ledger, other):
        each.record(Trial(number=1, history=[]), name="1")
    ledger.remove()
    ledger.remove()
    assert ledger.read() == []
    assert len(other.read()) == 1
