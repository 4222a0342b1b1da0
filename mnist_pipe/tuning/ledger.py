"""The trials of a search that have ended, one JSON file each in the storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.tuning.trial import METRIC


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """The highest validation accuracy; of equals the lower validation loss, then the earlier."""
    return max(records, key=lambda r: (r.score, -r.history[-1]["validation_loss"] if r.score >= 0 else 0.0, -r.trial))


def ledger_of(name: str, *, storage: Storage) -> Ledger[TrialRecord]:
    """The trials of the search `name` that have ended."""
    return Ledger(storage=storage, folder=f"trials/{name}", entry=TrialRecord)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial that has ended."""

    trial: int
    """In the order of the proposals, from 1."""
    status: str
    """finished, stopped (by the scheduler), diverged or failed."""
    config: dict[str, Any]
    """What was searched, by field of a recipe."""
    history: list[dict[str, float]]
    """One entry an epoch, as `loop.train` yields them."""
    address: str = ""
    """The node where it ended."""

    @property
    def score(self) -> float:
        """Validation accuracy after the last epoch; -1 where there is none that counts."""
        if self.status in ("diverged", "failed") or not self.history:
            return -1.0
        return self.history[-1][METRIC]
