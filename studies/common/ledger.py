"""Independent runs of one function, and the ledger that remembers each as soon as it ends.

The ledger is one JSON file for each finished run, in the storage, under a digest of the run's configuration. A study
that was killed and runs again computes what is missing and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.storage import Storage

Config = dict[str, Any]
"""JSON-able; everything that decides a run's result."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended."""

    config: Config
    result: dict[str, Any]
    seconds: float
    """That it took, without its wait for a processor."""
    address: str
    """Of the machine that computed it."""
    processor_seconds: float = 0.0
    """Of them, those in which its processor worked for it and not for others."""


def record(run: Run, *, storage: Storage, name: str) -> None:
    """Enter `run` in the ledger `name`."""
    storage.write_json(f"{ledger_key(name)}/{digest(run.config)}.json", asdict(run))


def read_ledger(storage: Storage, name: str) -> dict[str, Run]:
    """The finished runs of an interrupted study, by the digest of their configuration."""
    entries = [storage.read_json(f"{ledger_key(name)}/{file}") for file in storage.names(ledger_key(name))]
    return {digest(entry["config"]): Run(**entry) for entry in entries}


def ledger_key(name: str) -> str:
    """The folder of the ledger of `name` in the storage."""
    return f"studies/{name}"
