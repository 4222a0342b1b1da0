"""The data that each DVC stage of the pipeline and of the studies reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    """Return the stages under `root` by name; those of the studies also run in `root`, and their names differ."""
    stages = {
        name: content
        for file in paths.DVC_FILES
        if (root / file).exists()
        for name, content in YAML(typ="safe").load(root / file)["stages"].items()
    }
    return {
        name: Stage(
            inputs=tuple(path for path in map(Path, content.get("deps", ())) if not _is_code(path)),
            outputs=tuple(
                Path(next(iter(entry)) if isinstance(entry, dict) else entry)
                for kind in ("outs", "metrics", "plots")
                for entry in content.get(kind, ())
            ),
        )
        for name, content in stages.items()
    }


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or any(path.is_relative_to(folder) for folder in paths.CODE)
