"""Ledger of a search: the trials that have ended, as one JSON file each in the storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.tuning.trial import METRIC


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """Return the trial with the highest validation accuracy; ties go to the lower validation loss, then the earlier."""
    return max(records, key=rank)


def rank(record: TrialRecord) -> tuple[float, float, int]:
    """Return the sort key by which the best trial is the largest."""
    loss = record.history[-1]["validation_loss"] if record.score >= 0 else 0.0
    return record.score, -loss, -record.trial


def ledger_of(name: str, *, storage: Storage) -> Ledger[TrialRecord]:
    """Return the ledger of the trials of the search `name` that have ended."""
    return Ledger(storage=storage, folder=f"trials/{name}", entry=TrialRecord)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Record of a trial that has ended."""

    trial: int
    """Number of the trial in the order of the proposals, from 1."""
    status: str
    """Outcome of the trial: `finished`, `stopped` (by the scheduler), `diverged` or `failed`."""
    config: dict[str, Any]
    """Searched values, by field of a recipe."""
    history: list[dict[str, float]]
    """Metrics of each epoch, as `loop.train` yields them."""
    address: str = ""
    """IP address of the node on which the trial ended."""
    ended_at: float = field(default=0.0, compare=False)
    """Time at which the trial ended, in seconds since the epoch."""
    seconds: float = field(default=0.0, compare=False)
    """Wall-clock seconds of the trial, as Ray Tune counts them."""

    @property
    def score(self) -> float:
        """Validation accuracy after the last epoch, in [0, 1]; -1 if the trial diverged, failed or has no epoch."""
        if self.status in ("diverged", "failed") or not self.history:
            return -1.0
        return self.history[-1][METRIC]
