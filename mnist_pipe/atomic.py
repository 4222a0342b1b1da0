"""Files that are either whole or absent: atomic writes, digests, manifests, locks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mnist_pipe import command_line
from mnist_pipe.errors import BusyError, CorruptDataError, InputError
from mnist_pipe.waiting import LIMIT_SECONDS, NOTICE_SECONDS

MANIFEST = "manifest.json"
_TICK_SECONDS = 0.02


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, on any error remove it.

    A reader, or a rerun after a power cut, sees either the old content or the new one, never a partial file.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_bytes(folder / "note", b"old")
    >>> with atomic_file(folder / "note") as temporary:
    ...     _ = temporary.write_bytes(b"new")
    ...     print((folder / "note").read_text())
    old
    >>> print((folder / "note").read_text(), os.listdir(folder))
    new ['note']
    >>> shutil.rmtree(folder)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the writer lives; see remove_leftovers
        yield temporary
        temporary.chmod(mode)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Fsync `folder`: without it, a power cut can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; on success rename it to `folder`, on any error remove it.

    `folder` must be empty or not exist. The caller must fsync the files, for example by `atomic_file`.

    Raises:
        OSError: `folder` contains files when the block ends.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)
    _sync_folder(folder.parent)


def remove_leftovers(folder: Path, *, recursive: bool = True) -> None:
    """Remove from `folder`, and from the folders in it if `recursive`, what writers that were killed have left.

    A writer holds a lock on its temporary file, which the kernel releases when it dies.
    """
    for path in list(folder.rglob(".*.tmp") if recursive else folder.glob(".*.tmp")):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # if SQLite was writing it
            finally:
                os.close(handle)


def check_new_or_empty(folder: Path) -> None:
    """Check, before any work starts, that `folder` is one that `atomic_folder` can write.

    Raises:
        InputError: something exists there that is not an empty folder.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError.invalid(
            folder, "the output", "be new or empty", got="an existing one", fix="remove it or name another"
        )


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` atomically."""
    with atomic_file(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write `value` to `path` atomically, as JSON with sorted keys, so that equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode(), mode=mode)


def read_json(path: Path, *, fix: str = "") -> Any:
    """Return the JSON value in `path`.

    Raises:
        CorruptDataError: the file is missing or is not JSON; its message ends with `fix`, the remedy.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CorruptDataError.missing(path, fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise CorruptDataError.invalid(path, "the file", "be JSON", got=str(error), fix=fix) from error


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON-like value, independent of the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Write the SHA-256 of every file in `folder` to its manifest.

    Call it last: a folder without a manifest counts as unfinished.
    """
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    write_json(folder / MANIFEST, files)


def verify_manifest(folder: Path) -> None:
    """Check the SHA-256 of every file that the manifest of `folder` names.

    Raises:
        CorruptDataError: there is no manifest, or a file is missing or has other bytes.
    """
    for name, expected in read_json(folder / MANIFEST).items():
        path = folder / name
        found = sha256(path) if path.is_file() else "no file"
        if found != expected:
            raise CorruptDataError.invalid(path, "sha256", f"be {expected[:12]}", got=found[:12])


@contextmanager
def locked(
    path: Path, *, purpose: str, holder: str = "", wait: bool = False, limit_seconds: float = LIMIT_SECONDS
) -> Iterator[None]:
    """Hold an exclusive `flock` on `path`. The kernel releases it when the process dies, so no stale lock remains.

    With `wait`, wait for it as long as it passes from one process to the next within `limit_seconds`. `holder` says
    to those who wait what this process does.

    Raises:
        BusyError: another process holds it: at all, or if `wait`, for longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        _lock(stream, path, purpose=purpose, limit_seconds=limit_seconds if wait else 0)
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()} {holder}".strip())
        stream.flush()
        yield


def _lock(stream: TextIO, path: Path, *, purpose: str, limit_seconds: float) -> None:
    seen, notice_at, give_up_at = None, time.monotonic() + NOTICE_SECONDS, 0.0
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
        else:
            return
        now = time.monotonic()
        if holder != seen:
            seen, give_up_at = holder, now + limit_seconds
        if now >= give_up_at:
            state, fix = f"is already running in process {holder}", "wait for it or stop it"
            raise BusyError.missing(purpose, state=state, where=path, fix=fix)
        if now >= notice_at:
            command_line.show(f"waiting for process {holder}, which holds {path}: {purpose}", error=True)
            notice_at = math.inf
        time.sleep(_TICK_SECONDS)
