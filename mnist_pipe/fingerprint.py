"""Names of runs: a hash of the parameters, the inputs and the code that a run is made from.

A stage that is rerun after it was killed finds its checkpoints under the same name. If its parameters, inputs or code
changed, it has another name and starts from scratch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.atomic import digest, sha256

PACKAGE = Path(__file__).parent


def run_name(stage: str, *, params: Any, inputs: Iterable[Path]) -> str:
    """Return `<stage>-<hash>`, a hash of the JSON-like `params`, the bytes of `inputs` and `code_version`."""
    made_from = {"params": params, "inputs": [sha256(path) for path in inputs], "code": code_version()}
    return f"{stage}-{digest(made_from)[:12]}"


def code_version() -> str:
    """Return a hash of the source that computes numbers: data, models, training and tuning."""
    return _digest(PACKAGE / folder for folder in ("data", "models", "training", "tuning"))


def source_version() -> str:
    """Return a hash of the project's whole source, which must be equal on all machines that work on a run."""
    return _digest(PACKAGE.parent / folder for folder in (*paths.CODE, paths.STUDIES))


def _digest(folders: Iterable[Path]) -> str:
    kinds = ("*.py", "*.html", "*.toml")
    sources = sorted(path for folder in folders for kind in kinds for path in folder.rglob(kind))
    return digest([[str(path.relative_to(PACKAGE.parent)), sha256(path)] for path in sources])
