"""The DVC experiment that a stage belongs to, and the checkout that keeps what outlives the experiment.

`dvc exp run --temp` and `--queue` run stages in a clone of the checkout under `.dvc/tmp/exps/`, which DVC deletes
afterwards. Such a clone uses the checkout's `.state/`: its registry, services, downloads and checkpoints.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mnist_pipe import paths

_CLONES = (".dvc", "tmp", "exps")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A DVC experiment."""

    name: str
    baseline: str
    """The commit from which it was started."""
    in_workspace: bool
    """Whether its stages run in the checkout itself, as plain `dvc exp run` does, and not in a clone."""


def current(root: Path) -> Experiment | None:
    """Return the experiment for which DVC runs this process in `root`, or None if it runs it for none."""
    name = os.environ.get("DVC_EXP_NAME")  # https://dvc.org/doc/user-guide/env
    if not name:
        return None
    baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
    return Experiment(name=name, baseline=baseline, in_workspace=not is_clone(root))


def checkout_of(root: Path) -> Path:
    """Return the checkout of which `root` is an experiment's clone; if it is none, `root` itself, as absolute path."""
    root = root.resolve()
    for folder in root.parents:
        if folder.parts[-len(_CLONES) :] == _CLONES:
            return paths.find_root(folder.parents[len(_CLONES) - 1])
    return root


def is_clone(root: Path) -> bool:
    """Return whether `root` is an experiment's clone of a checkout."""
    return checkout_of(root) != root.resolve()


def link_state(root: Path) -> None:
    """In an experiment's clone, make `.state/` a link to the checkout's; elsewhere do nothing."""
    if is_clone(root):
        checkout = checkout_of(root)
        (checkout / paths.STATE).mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (root / paths.STATE).symlink_to(checkout / paths.STATE)


def link_files(root: Path, folder: Path) -> None:
    """In an experiment's clone, add links to the files of the checkout's `folder` that Git, and so the clone, lacks.

    It may also be a single file.

    DVC computes the digest of a stage's inputs after the stage has run, so that it records the linked files.
    """
    if not is_clone(root) or folder.is_absolute():
        return
    checkout = checkout_of(root)
    for path in (checkout / folder, *(checkout / folder).rglob("*")):
        link = root / folder / path.relative_to(checkout / folder)
        if path.is_file() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
