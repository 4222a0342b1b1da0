"""Recovery of DVC's own files: its lock files, and the objects of its cache.

DVC writes the lock files in place, so that a kill or a full disk during the write leaves them empty, and DVC then
refuses every command (docs/upstream.md). `dvc.lock` comes back from the copy that each stage keeps when it starts, or
from Git; the record of who reads and writes what holds nothing that outlives its writers. An altered object of the
cache is removed, because DVC would replace what a stage has just written by it; the stage that wrote it must run again.
"""

from __future__ import annotations

import configparser
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mnist_pipe import paths
from mnist_pipe.atomic import locked, write_bytes
from mnist_pipe.errors import BusyError, CorruptDataError, InputError, one_line
from mnist_pipe.paths import DVC_LOCKS, DVC_RWLOCKS, KEPT_LOCKS
from mnist_pipe.waiting import LIMIT_SECONDS

_FIX = "run: mnist-pipe doctor --fix"


def keep(root: Path) -> None:
    """Copy the lock files under `root`, as far as they are whole; DVC does not write them while a stage runs."""
    for lock in DVC_LOCKS:
        content = _content(root / lock)
        if _is_lock(content) and content != _content(root / KEPT_LOCKS / lock):
            (root / KEPT_LOCKS / lock).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(root / KEPT_LOCKS / lock, content)


def forget_the_dead(root: Path) -> None:
    """Remove what killed commands have left in DVC's record of who reads and writes what.

    DVC removes the record of a killed reader only when it writes what that one read, so that each kill would add some.
    Each stage calls this as it starts; `repair` does for the records of commands that had nothing to do.
    """
    for path in (root / name for name in DVC_RWLOCKS):
        if not path.exists():
            continue
        with suppress(BusyError, OSError), locked(path.with_name("rwlock.lock"), purpose="DVC's record"):
            if not _is_rwlock(content := _content(path)):
                continue
            record = json.loads(content)
            readers = {name: list(filter(_lives, users)) for name, users in record.get("read", {}).items()}
            writers = {name: user for name, user in record.get("write", {}).items() if _lives(user)}
            left = {"read": {name: users for name, users in readers.items() if users}, "write": writers}
            if left != {"read": {}, "write": {}, **record}:
                write_bytes(path, json.dumps(left).encode())


def _lives(user: Any) -> bool:
    return psutil.pid_exists(int(user["pid"]))


def damaged(root: Path) -> Iterator[CorruptDataError]:
    """Yield the error of each damaged file, which takes a few milliseconds."""
    for lock in DVC_LOCKS:
        content = _content(root / lock)
        if (root / lock).exists() and not _is_whole(content):
            yield CorruptDataError.invalid(lock, "the file", "be whole", got=f"{len(content)} bytes", fix=_FIX)
    for path in DVC_RWLOCKS:
        if (root / path).exists() and not _is_rwlock(content := _content(root / path)):
            yield CorruptDataError.invalid(path, "the file", "be DVC's JSON", got=f"{len(content)} bytes", fix=_FIX)


def check(root: Path) -> str:
    """Return a text that says which files are whole.

    Raises:
        CorruptDataError: one is not.
    """
    for error in damaged(root):
        raise error
    for lock in DVC_LOCKS:
        if (root / lock).exists() and not _is_lock(_content(root / lock)):
            raise CorruptDataError.invalid(lock, "the file", "be DVC's YAML", got="other text", fix=_FIX)
    found = [str(path) for path in (*DVC_LOCKS, *DVC_RWLOCKS) if (root / path).exists()]
    return f"{', '.join(found)} valid" if found else "no lock file"


def check_objects(root: Path) -> str:
    """Return a text with the number of objects in DVC's cache.

    Raises:
        CorruptDataError: an object has other bytes than its name says.
    """
    for path in altered(root):
        raise CorruptDataError.invalid(path, "md5", "be the file's name", got="another", fix=_FIX)
    return f"{sum(1 for _ in _objects(root))} objects, none altered"


def cache(root: Path) -> tuple[Path, str]:
    """Return the folder of DVC's cache, and the file and key that set it, or an empty text if none does.

    Raises:
        InputError: one of DVC's files is no INI file.
    """
    folder, place = root / ".dvc" / "cache", ""
    for file in _configs(root):
        if value := _config(file).get("cache", "dir", fallback=""):
            folder, place = file.parent / Path(value).expanduser(), f"{file}: cache.dir"
    return folder, place


def altered(root: Path) -> Iterator[Path]:
    """Yield the path of each object of DVC's cache that has other bytes than its name says."""
    from mnist_pipe.cluster import dvc_stages  # imports YAML's parser, which `mnist-pipe status` does without

    for path in _objects(root):
        if dvc_stages.md5_of(path) != path.parent.name + path.name.removesuffix(".dir"):
            yield path


def repair(root: Path) -> Iterator[str]:
    """Bring back each damaged file under `root`, and yield what was done.

    A stage whose DVC was killed may live on for seconds, so that this waits for its end.

    Raises:
        BusyError: a stage runs on, so that its DVC will write these files.
    """
    from mnist_pipe import lineage  # imports the schema of params.yaml, which takes longer than most commands

    stage = root / paths.STATE / "stage.lock"
    with locked(stage, purpose="a stage", wait=True, limit_seconds=LIMIT_SECONDS):
        for lock in DVC_LOCKS:
            if not (root / lock).exists() or _is_lock(_content(root / lock)):
                continue
            sources = {str(KEPT_LOCKS / lock): _content(root / KEPT_LOCKS / lock), "Git": lineage.committed(root, lock)}
            for source, content in sources.items():
                if _is_lock(content):
                    write_bytes(root / lock, content)
                    yield f"{lock}: restored from {source}; run: dvc repro"
                    break
            else:
                (root / lock).unlink()
                yield f"{lock}: removed, as there is no copy; dvc repro runs every stage again"
        for path in DVC_RWLOCKS:
            if (root / path).exists() and not _is_rwlock(_content(root / path)):
                (root / path).unlink()
                yield f"{path}: removed; DVC writes it anew"
        forget_the_dead(root)
        for path in altered(root):
            path.unlink()
            yield f"{path}: removed, as its bytes had changed"


def _objects(root: Path) -> Iterator[Path]:
    return (cache(root)[0] / "files/md5").glob("[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 30 + "*")


def _configs(root: Path) -> list[Path]:
    """Return the files that DVC reads its settings from; a later one overrides an earlier one."""
    from dvc.dirs import global_config_dir, system_config_dir

    folders = (Path(system_config_dir()), Path(global_config_dir()))
    return [*(folder / "config" for folder in folders), root / ".dvc" / "config", root / ".dvc" / "config.local"]


def _config(file: Path) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser()
    try:
        config.read(file)
    except (configparser.Error, ValueError) as error:
        fix = "correct that line: DVC refuses to start"
        raise InputError.invalid(file, "the file", "be an INI file", got=one_line(error), fix=fix) from None
    return config


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _is_whole(content: bytes) -> bool:
    return content.startswith(b"schema:") and content.endswith(b"\n")


def _is_lock(content: bytes) -> bool:
    if not _is_whole(content):
        return False
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stages = YAML(typ="safe").load(content).get("stages", {})
        return all("cmd" in stage for stage in stages.values())
    except (YAMLError, AttributeError, TypeError):
        return False


def _is_rwlock(content: bytes) -> bool:
    try:
        value = json.loads(content)
    except ValueError:
        return False
    return isinstance(value, dict) and all(isinstance(value.get(kind, {}), dict) for kind in ("read", "write"))
