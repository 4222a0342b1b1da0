"""The runs of a study, and the ledger that records each run as soon as it ends.

A study that was killed and is started again computes only the runs that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.storage import Storage

Config = dict[str, Any]
"""Configuration of a run: JSON values that together decide the run's result."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run; both parts are JSON values."""

    metrics: dict[str, Any]
    """Results that the study shows; `runs.json` keeps them."""
    intermediate: dict[str, Any] = field(default_factory=dict)
    """Further results that `Study.conclude` needs, such as predictions; they are dropped when the study has ended."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its configuration, its result, and where and how long it ran."""

    config: Config
    result: dict[str, Any]
    """The `Result.metrics` that the run returned."""
    intermediate: dict[str, Any] = field(default_factory=dict)
    """The `Result.intermediate` that the run returned; empty if the run was read from `runs.json`."""
    seconds: float = 0.0
    """Wall-clock time, in seconds, without the wait for a CPU."""
    address: str = ""
    """IP address of the node that computed the run."""
    processor_seconds: float = 0.0
    """CPU time, in seconds: less than `seconds` if other processes used the machine too."""


def ledger_of(name: str, *, storage: Storage) -> Ledger[Run]:
    """Return the ledger of the finished runs of the study run called `name`."""
    return Ledger(storage=storage, folder=f"studies/{name}", entry=Run)
