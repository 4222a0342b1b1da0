"""optuna-dashboard, which shows every search as a study; it is in the extra `dashboards`.

It has no password and listens on loopback only. Who reaches it can delete a study of the journal, which is a view: the
ledger of a running search and MLflow have the trials.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, flags

PORT = 8080
"""First port to try."""


def is_installed() -> bool:
    """Return whether the extra is installed."""
    return find_spec("optuna_dashboard") is not None


def _plan(root: Path) -> Launch:
    port, journal = free_port(PORT), _journal(root)
    fetch(root)
    options = {"--host": LOOPBACK, "--port": port, "--storage-class": "JournalFileStorage"}
    # Its own server, because it would take gunicorn, which MLflow may bring.
    command = ["optuna-dashboard", journal, *flags(options), "--server", "wsgiref", "--quiet"]
    return Launch(command=command, port=port, address=journal)


def _journal(root: Path) -> str:
    """Return the file that is shown: the journal of the searches, or its copy if the storage is a bucket."""
    from mnist_pipe.cluster import storage  # imports pyarrow, which takes 0.1 s

    return str(storage.project_storage(root).local(paths.JOURNAL) or root / paths.JOURNAL_COPY)


def fetch(root: Path) -> None:
    """Copy the journal from a bucket, if that is the storage; otherwise only create its folder."""
    from mnist_pipe.atomic import write_bytes
    from mnist_pipe.cluster import storage

    place, path = storage.project_storage(root), Path(_journal(root))
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.local(paths.JOURNAL) is None:
        write_bytes(path, place.read(paths.JOURNAL) or b"")


PROGRAM = Program(
    plan=_plan,
    probe="api/studies",
    accepts=lambda _, reply: isinstance(reply, dict) and "study_summaries" in reply,
    shows=_journal,
    has_secret=False,
)
