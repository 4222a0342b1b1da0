"""Which checkout the files in `.state/` belong to.

A copy of a checkout, or of a disk, also copies the records of running services and their secrets. A copied folder has
another inode than the original, while a checkout that is moved, or mounted elsewhere, keeps its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.atomic import atomic_file, locked, write_json

RECORD = paths.STATE / "checkout.json"
SECRETS = paths.STATE / "secrets"


def is_own(root: Path) -> bool:
    """Return whether `.state/` was made in this checkout; if it does not say, which was so in version 0.1, it was."""
    recorded = _recorded(root)
    return recorded is None or _matches(recorded, _identity(root))


def adopt(root: Path) -> None:
    """Make `.state/` this checkout's own; if it is a copy, remove the original's records and secrets from it."""
    if _recorded(root) == _identity(root):
        return
    with locked(root / paths.STATE / "checkout.lock", purpose="recording the checkout", wait=True):
        if not is_own(root):
            (root / paths.SERVICES).unlink(missing_ok=True)
            shutil.rmtree(root / SECRETS, ignore_errors=True)
            _unlink_from_original(root / paths.STATE)
        write_json(root / RECORD, _identity(root))


def _unlink_from_original(folder: Path) -> None:
    """Copy each file that another folder has too, as `cp -al` leaves it, because some files are written in place."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            with atomic_file(path, mode=path.stat().st_mode & 0o777) as temporary:
                shutil.copyfile(path, temporary)


def _recorded(root: Path) -> dict[str, Any] | None:
    """Return the recorded identity, or None if there is no legible one."""
    try:
        found = json.loads((root / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == {"device", "inode", "path"} else None


def _identity(root: Path) -> dict[str, Any]:
    folder = (root / paths.STATE).resolve()
    try:
        found = folder.stat()
    except OSError:
        return {}
    return {"device": found.st_dev, "inode": found.st_ino, "path": str(folder)}


def _matches(recorded: dict[str, Any], found: dict[str, Any]) -> bool:
    # Another disk may have the same inode, and a disk may get another number when the machine starts.
    same = {key for key in recorded if recorded[key] == found.get(key)}
    return "inode" in same and len(same) > 1
