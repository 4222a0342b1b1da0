"""When each stage last ran on this machine and how long it took, in `.state/timings.json`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.atomic import read_json, write_json
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.experiment import is_clone


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The last run of one stage."""

    ended_at: float
    """Time of its end, in seconds since the epoch."""
    seconds: float
    """Wall-clock seconds, start-up included."""


def read(root: Path) -> dict[str, StageTime]:
    """Return the last run of each stage of the project in `root`, by stage; leave out what is damaged or not known.

    No stage fails for the times of others, so a damaged file counts as none.
    """
    try:
        recorded = read_json(_file(root))
    except CorruptDataError:
        return {}
    if not isinstance(recorded, dict):
        return {}
    # Version 0.1 recorded only the seconds.
    return {
        stage: StageTime(ended_at=entry["ended_at"], seconds=entry["seconds"])
        for stage, entry in recorded.items()
        if isinstance(entry, dict) and all(_is_time(entry.get(key)) for key in ("ended_at", "seconds"))
    }


def _is_time(value: object) -> bool:
    """Return whether a JSON value is a number of seconds; up to the year 9999, which `datetime` can show."""
    return type(value) in (int, float) and 0 <= value < 2.5e11  # type: ignore[operator]


def record(stage: str, *, seconds: float, root: Path) -> None:
    """Record that `stage` ended now and took so many seconds."""
    entries = {**read(root), stage: StageTime(ended_at=round(time.time(), 2), seconds=round(seconds, 2))}
    write_json(_file(root), {name: asdict(entry) for name, entry in entries.items()})


def _file(root: Path) -> Path:
    # An experiment's clone has the checkout's `.state/`, but not its times, nor those of experiments at the same time.
    return root / (".dvc/tmp/timings.json" if is_clone(root) else paths.TIMINGS)
