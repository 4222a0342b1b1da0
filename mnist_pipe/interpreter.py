"""The Python that runs a command: the project's own, whichever is first on PATH."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from mnist_pipe import experiment
from mnist_pipe.errors import UnavailableError


def enter(module: str) -> None:
    """Run `python -m module` again with the project's own Python, and do not return, if this one lacks its packages.

    DVC runs a stage with the `python` that is first on PATH. That is another one where the environment is not
    activated: for `.venv/bin/dvc`, in an editor and in cron.

    Raises:
        UnavailableError: there is no environment, or it lacks them too.
    """
    if importlib.util.find_spec("psutil") is not None:
        return
    own = experiment.checkout_of(Path.cwd()) / ".venv"
    if Path(sys.prefix).resolve() == own.resolve() or not (own / "bin/python").exists():
        fix = "run: make .venv/.run, or put the Python of the project's environment first on PATH"
        raise UnavailableError.missing("psutil", state="is not installed", where=sys.executable, fix=fix)
    os.execv(own / "bin/python", [str(own / "bin/python"), "-m", module, *sys.argv[1:]])
