"""The data that each DVC stage of the pipeline and of the studies reads and writes, and its digests."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mnist_pipe import paths
from mnist_pipe.errors import CorruptDataError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The data of one stage, as paths relative to the project's root."""

    inputs: tuple[Path, ...]
    """The input files and folders, without code: a worker uses its own copy of the same version."""
    outputs: tuple[Path, ...]
    """The output files and folders: outs, metrics and plots."""
    code: tuple[Path, ...]
    """The modules and folders of code that the stage depends on."""


def read(root: Path) -> dict[str, Stage]:
    """Return the stages of the pipeline and of the studies by name; the names of all differ.

    A path outside `root` or in a bucket, which `ingest.path` may name, is no input: a worker reads its own.
    """
    stages = [
        (file.parent, name, content)
        for file in paths.DVC_FILES
        if (root / file).exists()
        for name, content in YAML(typ="safe").load(root / file)["stages"].items()
    ]
    return {
        name: Stage(
            inputs=tuple(
                path
                for path in (_below(folder, _resolved(entry, root)) for entry in content.get("deps", ()))
                if not (_is_code(path) or path.is_absolute() or ".." in path.parts or ":" in path.parts[0])
            ),
            code=tuple(path for path in (_below(folder, entry) for entry in content.get("deps", ())) if _is_code(path)),
            outputs=tuple(
                _below(folder, next(iter(entry)) if isinstance(entry, dict) else entry)
                for kind in ("outs", "metrics", "plots")
                for entry in content.get(kind, ())
            ),
        )
        for folder, name, content in stages
    }


def verify_inputs(stage: str, root: Path) -> None:
    """Check that the stage's inputs are what DVC recorded when other stages wrote them.

    DVC itself compares the time of a file's last change: it checks out an altered object of its cache as it is, and
    says that everything is up to date.

    Raises:
        CorruptDataError: an input has other bytes; the message names it and the stage that writes it.
    """
    written = {path: (file, name, md5) for file in paths.DVC_LOCKS for path, name, md5 in _outputs(root, file)}
    for path in read(root)[stage].inputs:
        if path not in written or not (root / path).exists():
            continue
        file, name, expected = written[path]
        if (found := md5_of(root / path)) != expected:
            dvc = "dvc" if file.parent == Path() else f"dvc --cd {file.parent}"
            rule = f"be {expected[:12]}, as {file} records"
            fix = f"run: mnist-pipe doctor --fix, then: {dvc} repro --single-item --force {name}"
            raise CorruptDataError.invalid(path, "md5", rule, got=found[:12], fix=fix)


def md5_of(path: Path) -> str:
    """Return DVC's digest of a file, or of a folder, which is that of the sorted list of its files."""
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        content = [{"md5": md5_of(file), "relpath": name} for name, file in files]
        return hashlib.md5(json.dumps(content, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _outputs(root: Path, file: Path) -> list[tuple[Path, str, str]]:
    """Return path, stage and MD5 of each output that a lock file records."""
    if not (root / file).exists():
        return []
    stages = YAML(typ="safe").load(root / file).get("stages", {})
    outs = [(name, out) for name, lock in stages.items() for out in lock.get("outs", ())]
    return [(_below(file.parent, out["path"]), name, out["md5"]) for name, out in outs]


def _below(folder: Path, path: str) -> Path:
    """Return a path of the DVC project in `folder` as a path from the root, which may lie outside of it."""
    return Path(os.path.normpath(folder / path))


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
