"""The name of a run: a hash of what it is made from.

A killed stage that runs again finds its checkpoints under the same name; one whose parameters, inputs or code changed
has another name and starts afresh.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.atomic import digest, sha256

PACKAGE = Path(__file__).parent


def run_name(stage: str, *, params: Any, inputs: Iterable[Path]) -> str:
    """`<stage>-<hash>` of JSON-like `params`, the bytes of `inputs` and the library's own source."""
    made_from = {"params": params, "inputs": [sha256(path) for path in inputs], "code": code_version()}
    return f"{stage}-{digest(made_from)[:12]}"


def code_version() -> str:
    """A hash over the source of what computes numbers: data, models, training and tuning."""
    return _digest(PACKAGE / folder for folder in ("data", "models", "training", "tuning"))


def source_version() -> str:
    """A hash over all source of the project: what two machines that work on one run must agree in."""
    return _digest(PACKAGE.parent / folder for folder in (*paths.CODE, paths.STUDIES))


def _digest(folders: Iterable[Path]) -> str:
    kinds = ("*.py", "*.html", "*.toml")
    sources = sorted(path for folder in folders for kind in kinds for path in folder.rglob(kind))
    return digest([[str(path.relative_to(PACKAGE.parent)), sha256(path)] for path in sources])
