"""The data that each DVC stage of the pipeline and of the studies reads and writes."""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mnist_pipe import paths


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The data of one stage, as paths relative to the project's root."""

    inputs: tuple[Path, ...]
    """The input files and folders, without code: a worker uses its own copy of the same version."""
    outputs: tuple[Path, ...]
    """The output files and folders: outs, metrics and plots."""


def read(root: Path) -> dict[str, Stage]:
    """Return the stages under `root` by name; those of the studies also run in `root`, and their names differ.

    A folder outside `root`, which `ingest.folder` may name, is no input: a worker reads its own.
    """
    stages = {
        name: content
        for file in paths.DVC_FILES
        if (root / file).exists()
        for name, content in YAML(typ="safe").load(root / file)["stages"].items()
    }
    return {
        name: Stage(
            inputs=tuple(
                path
                for path in (Path(_resolved(entry, root)) for entry in content.get("deps", ()))
                if not (_is_code(path) or path.is_absolute() or ".." in path.parts)
            ),
            outputs=tuple(
                Path(next(iter(entry)) if isinstance(entry, dict) else entry)
                for kind in ("outs", "metrics", "plots")
                for entry in content.get(kind, ())
            ),
        )
        for name, content in stages.items()
    }


def _resolved(entry: str, root: Path) -> str:
    """Return a path of `dvc.yaml` with the values of `params.yaml` in it, as DVC reads it."""
    if "${" not in entry:
        return entry
    params: Any = YAML(typ="safe").load(root / paths.PARAMS)
    return re.sub(
        r"\$\{([\w.]+)\}", lambda match: str(functools.reduce(operator.getitem, match[1].split("."), params)), entry
    )


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or any(path.is_relative_to(folder) for folder in paths.CODE)
