"""The lineage of a model: the revision of the source, the parameters, the data and the library versions."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.atomic import digest, read_json
from mnist_pipe.errors import UnavailableError
from mnist_pipe.params import loader
from mnist_pipe.waiting import LIMIT_SECONDS

_LIBRARIES = ("dvc", "mlflow", "numpy", "optuna", "prefect", "pyarrow", "ray", "safetensors", "scipy", "torch")
NO_GIT = "not a git checkout"


def collect(root: Path, *, card: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lineage of the model whose card is `card` and whose validation split has `provenance`.

    `git_dirty` is None if there is no revision to differ from.

    Raises:
        InputError: `params.yaml` under `root` breaks a rule.
        UnavailableError: git does not answer.
    """
    revision, dirty = source_revision(root)
    values = loader.load(root / paths.PARAMS, names={}).model_dump(mode="json", by_alias=True)
    return {
        "dataset": card["dataset"],
        "source_sha256": provenance.get("source_sha256"),
        "data_sha256": card["data_sha256"],
        "params_sha256": digest(values),
        "git_revision": revision,
        "git_dirty": dirty,
        "versions": {
            "python": platform.python_version(),
            "mnist_pipe": version("mnist-pipe"),
            **{name: version(name) for name in _LIBRARIES},
        },
    }


def source_revision(root: Path) -> tuple[str, bool | None]:
    """Return the commit under `root` and whether the tree differs from it; without a commit, the reason and None.

    What the pipeline itself writes (`dvc.lock`, `reports/`) does not count as a difference, because it changes during a
    run. Neither do the studies, because no champion is made from them. On a cluster's worker the commit is the
    client's, which came with the request.
    """
    if (root / paths.REVISION).exists():
        client = read_json(root / paths.REVISION)
        return client["revision"], client["dirty"]
    try:
        # A tree that was unpacked inside another repository does not belong to that repository.
        _git(root, "ls-files", "--error-unmatch", str(paths.PARAMS))
        revision = _git(root, "rev-parse", "HEAD").strip()
        others = [f":(exclude){path}" for path in ("dvc.lock", paths.REPORTS, paths.STUDIES)]
        changes = _git(root, "status", "--porcelain", "--", ".", *others)
    except FileNotFoundError:
        return f"{NO_GIT} (git is not installed)", None
    except subprocess.TimeoutExpired as error:
        fix = "end what holds the repository"
        raise UnavailableError.unreachable(
            "git", where=root, cause=f"nothing in {error.timeout:g} s", fix=fix
        ) from None
    except subprocess.SubprocessError:
        return NO_GIT, None
    return revision, bool(changes.strip())


def committed(root: Path, path: Path) -> bytes:
    """Return the content of `path`, relative to `root`, in the commit that is checked out; empty if there is none."""
    try:
        return _git(root, "show", f"HEAD:./{path}").encode()
    except (FileNotFoundError, subprocess.SubprocessError):
        return b""


def _git(root: Path, *arguments: str) -> str:
    # Inside a git hook, GIT_DIR and other GIT_* variables point to another repository or index.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Without safe.directory, git rejects a checkout that another user owns, such as a mounted volume.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "--no-optional-locks", *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=LIMIT_SECONDS
    ).stdout
