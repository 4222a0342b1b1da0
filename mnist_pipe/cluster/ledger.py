"""What has ended of an interrupted job, so that it goes on where it stopped: one JSON file an entry, in the storage.

An entry is written, whole or not at all, as soon as the work that it describes has ended. The job that runs again reads
the entries and computes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mnist_pipe.cluster.storage import Storage

Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Ledger(Generic[Entry]):
    """The entries of one job."""

    storage: Storage
    folder: str
    """The key of a folder that no other job has."""
    entry: Callable[..., Entry]
    """The dataclass of the entries; its fields are JSON values."""

    def record(self, entry: Entry, *, name: str) -> None:
        """Write `entry`; an earlier one of that name is replaced."""
        self.storage.write_json(f"{self.folder}/{name}.json", vars(entry))

    def read(self) -> list[Entry]:
        """The entries in the order of their names; a file that is no entry is passed over."""
        found = []
        for file in self.storage.names(self.folder):
            try:
                found.append(self.entry(**self.storage.read_json(f"{self.folder}/{file}")))
            except (ValueError, TypeError):
                continue
        return found

    def remove(self) -> None:
        """Delete every entry."""
        self.storage.remove(self.folder)
