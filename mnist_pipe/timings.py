"""When each stage last ran on this machine and how long it took, in `.state/timings.json`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.atomic import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The last run of one stage."""

    ended_at: float
    """Time of its end, in seconds since the epoch."""
    seconds: float
    """Wall-clock seconds, start-up included."""


def read(root: Path) -> dict[str, StageTime]:
    """Return the last run of each stage of the project in `root`, by stage; empty if nothing was recorded.

    Raises:
        CorruptDataError: the file is not JSON.
    """
    path = root / paths.TIMINGS
    recorded = read_json(path) if path.exists() else {}
    # Version 0.1 recorded only the seconds.
    return {stage: StageTime(**entry) for stage, entry in recorded.items() if isinstance(entry, dict)}


def record(stage: str, *, seconds: float, root: Path) -> None:
    """Record that `stage` ended now and took so many seconds."""
    entries = {**read(root), stage: StageTime(ended_at=round(time.time(), 2), seconds=round(seconds, 2))}
    write_json(root / paths.TIMINGS, {name: asdict(entry) for name, entry in entries.items()})
