"""Artifacts on the page of a flow run in Prefect: links to the other dashboards, and the progress of a task."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any

from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact


def link(url: str, *, key: str, text: str) -> None:
    """Create the link artifact `key` of the current run; an empty `url` is a page that does not run, and no link."""
    if url:
        create_link_artifact(url, link_text=text, key=key, description=text)


def addresses(root: Path) -> dict[str, str]:
    """Return the URL of each dashboard that answers now and shows what a stage writes, by the name of its service.

    That is a local service, or the MLflow server that MLFLOW_TRACKING_URI names.
    """
    from mnist_pipe.local import services
    from mnist_pipe.registry import store

    found = {}
    for name, (state, service) in services.status(root).items():
        shows = services.PROGRAMS[name].shows
        if service and state is services.State.RUNNING and (shows is None or shows(root) == service.address):
            found[name] = service.url
    server = store.public_uri(root)
    return {**found, "mlflow": server} if server.startswith(("http://", "https://")) else found


def mlflow_run(run_id: str | None, *, root: Path) -> str:
    """Return the URL of a run on the pages of MLflow, or an empty string if there is no run or no server answers."""
    server = addresses(root).get("mlflow")
    return f"{server.rstrip('/')}/#/runs/{run_id}" if server and run_id else ""


class Progress:
    """Progress artifact of the current run, while the block runs.

    A thread sends it, so that it neither delays the work nor ends it if the server does not answer.
    """

    def __init__(self, key: str, *, total: int, description: str) -> None:
        self._total, self._sent, self._done = total, 0, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=key)
        # The thread gets the context from which Prefect knows the run.
        self._artifact: Future[Any] = self._thread.submit(
            copy_context().run, create_progress_artifact, 0.0, key=key, description=description
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what is being sent."""
        self._thread.shutdown(wait=True, cancel_futures=error is not None)

    def show(self, done: int) -> None:
        """Show soon that `done` of all parts are done."""
        self._done = done
        self._thread.submit(self._send)

    def _send(self) -> None:
        done = self._done
        if done == self._sent:  # several parts ended while the thread was sending
            return
        with suppress(Exception):
            update_progress_artifact(self._artifact.result(), min(100.0, 100.0 * done / self._total))
            self._sent = done
