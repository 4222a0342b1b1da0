"""The addresses that Prefect and Ray take from elsewhere than the project, and the place that names each.

A variable of the shell is only one of the places; what a file says gets the same checks. The order of the places is
that of the library, which is not imported: it would read its settings then, and keep them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from mnist_pipe import paths
from mnist_pipe.errors import InputError

PREFECT_URL = "PREFECT_API_URL"
RAY_ADDRESS = "RAY_ADDRESS"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value and the place that names it."""

    value: str
    place: str
    """The variable, or the file and the key in it, for a message."""

    @property
    def fix(self) -> str:
        """What unsets it, for the end of a message."""
        return "unset the variable" if self.place == self.place.upper() else "remove that setting"


def prefect_setting(root: Path, variable: str, *keys: str) -> Setting | None:
    """Return the value that Prefect uses in `root`, or None if none is set.

    Args:
        root: the project's root, in which Prefect looks for its files.
        variable: name of the setting in the environment, in `.env` and in a profile.
        keys: keys of the setting in `prefect.toml` and, below `tool.prefect`, in `pyproject.toml`.

    Raises:
        InputError: a file that Prefect reads is not valid.
    """
    return next(_prefect_settings(root, variable, *keys), None)


def _prefect_settings(root: Path, variable: str, *keys: str) -> Iterator[Setting]:
    yield from _of_folder(root, variable, *keys)
    home = os.environ.get("PREFECT_HOME") or str(root / paths.PREFECT_HOME)
    path = next(_of_folder(root, "PREFECT_PROFILES_PATH", "profiles_path"), None)
    file = root / path.value if path else Path(home) / "profiles.toml"
    content = _read(file)
    profile = os.environ.get("PREFECT_PROFILE") or content.get("active", "")
    if value := _get(content, "profiles", profile, variable):
        yield Setting(value=value, place=f"{file}: {variable} of the profile {profile!r}")


def _of_folder(root: Path, variable: str, *keys: str) -> Iterator[Setting]:
    if value := os.environ.get(variable):
        yield Setting(value=value, place=variable)
    if (root / ".env").is_file() and (value := dotenv_values(root / ".env").get(variable)):
        yield Setting(value=value, place=f"{root / '.env'}: {variable}")
    for name, table in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        if value := _get(_read(root / name), *table, *keys):
            yield Setting(value=value, place=f"{root / name}: {'.'.join((*table, *keys))}")


def _get(content: Any, *keys: str) -> str:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return "" if content is None or isinstance(content, dict) else str(content)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError.invalid(file, "the file", "be TOML, because Prefect reads it", got=error) from error


def ray_address() -> Setting | None:
    """Return the address of the Ray cluster to join, or None if a stage is to use the project's own.

    `auto` stands for the address in the file that `ray start` writes. Without one, Ray searches the processes.
    """
    address = os.environ.get(RAY_ADDRESS, "")
    if address in ("", "local"):
        return None
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    file = Path(folder) / "ray" / "ray_current_cluster"
    if address == "auto" and file.is_file():
        return Setting(value=file.read_text(encoding="utf-8").strip(), place=f"{RAY_ADDRESS}=auto, {file}")
    return Setting(value=address, place=RAY_ADDRESS)
