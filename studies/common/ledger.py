"""A study's runs, and the ledger that remembers each as soon as it ends.

A study that was killed and runs again computes what is missing and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.storage import Storage

Config = dict[str, Any]
"""JSON-able; everything that decides a run's result."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run computes; both parts are JSON values."""

    figures: dict[str, Any]
    """What the study shows; `runs.json` keeps it."""
    intermediate: dict[str, Any] = field(default_factory=dict)
    """What `Study.conclude` needs besides, such as predictions; it is not kept when the study has ended."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended."""

    config: Config
    result: dict[str, Any]
    """Its `Result.figures`."""
    intermediate: dict[str, Any] = field(default_factory=dict)
    """Its `Result.intermediate`; empty where the run was read from `runs.json`."""
    seconds: float = 0.0
    """Wall-clock time, without the wait for a CPU."""
    address: str = ""
    """The node that computed it."""
    processor_seconds: float = 0.0
    """CPU time: less than `seconds` where other processes used the machine too."""


def ledger_of(name: str, *, storage: Storage) -> Ledger[Run]:
    """The finished runs of the study whose run has that name."""
    return Ledger(storage=storage, folder=f"studies/{name}", entry=Run)
