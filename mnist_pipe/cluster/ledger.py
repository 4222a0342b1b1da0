"""Ledgers of finished work, from which an interrupted job resumes: one JSON file per entry, in the storage.

An entry is written, whole or not at all, as soon as the work that it describes has ended. A job that is restarted reads
the entries and computes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.storage import Storage

Entry = TypeVar("Entry")
_DIGEST = "sha256"  # key of an entry's file: the digest of its other values


@dataclass(frozen=True, kw_only=True)
class Ledger(Generic[Entry]):
    """The ledger of one job."""

    storage: Storage
    folder: str
    """The key of a folder that no other job uses."""
    entry: Callable[..., Entry]
    """The dataclass of the entries; its fields are JSON values."""

    def record(self, entry: Entry, *, name: str) -> None:
        """Write `entry` and its digest under `name`; replace an earlier one of that name."""
        values = vars(entry)
        self.storage.write_json(f"{self.folder}/{name}.json", {_DIGEST: digest(values), **values})

    def read(self) -> list[Entry]:
        """Return the entries in the order of their names; skip a file that is not an entry or is damaged."""
        found = []
        for file in self.storage.names(self.folder):
            try:
                values = self.storage.read_json(f"{self.folder}/{file}")
                if values.pop(_DIGEST, None) == digest(values):
                    found.append(self.entry(**values))
            except (ValueError, TypeError, AttributeError):
                continue
        return found

    def remove(self) -> None:
        """Delete every entry."""
        self.storage.remove(self.folder)
