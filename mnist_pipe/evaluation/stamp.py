"""When, of which commit and on what hardware a number was measured: no page shows a number without it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnist_pipe import hardware, lineage
from mnist_pipe.errors import CorruptDataError

_KEYS = ("date", "commit", "hardware", "torch")


def stamp(root: Path, *, num_cpus: int | None = None, num_gpus: int | None = None) -> dict[str, str]:
    """Return what identifies a measurement made now by the checkout `root`, on this machine's CPUs and GPUs by default.

    `commit` has a `+` behind it if the tree differs from the commit.
    """
    revision, dirty = lineage.source_revision(root)
    cpus = hardware.num_cpus() if num_cpus is None else num_cpus
    gpus = hardware.num_gpus() if num_gpus is None else num_gpus
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": (revision if dirty is None else revision[:7]) + ("+" if dirty else ""),
        "hardware": f"{cpus} CPU cores of {hardware.cpu_name()}, {f'{gpus} GPUs' if gpus else 'no GPU'}",
        "torch": version("torch"),
    }


def line(entry: Mapping[str, Any], *, where: object) -> str:
    """Return the stamp of a measurement as text: date, hardware, commit.

    Raises:
        CorruptDataError: the entry, read from `where`, lacks a part of it.
    """
    for key in _KEYS:
        if not entry.get(key):
            raise CorruptDataError.missing(
                key, state="of the measurement is not recorded", where=where, fix="measure it again"
            )
    return f"{entry['date']}, {entry['hardware']}, `{entry['commit']}`"
