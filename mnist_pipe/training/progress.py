"""How a run on Ray Train tells the process that started it what happens.

Workers and Ray's controller put events into a `ray.util.queue.Queue`; a thread of the driver reads them.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

import ray
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue

_NOTICE_SECONDS = 15.0
"""Time without workers after which the user is told that the run waits for machines."""


class Progress:
    """Follows a run: each method is called in a thread of the driver, and does nothing unless a subclass defines it."""

    def on_start(self, addresses: list[str]) -> None:
        """The workers have started, at these addresses by rank; again after a worker was lost or one has joined."""

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """An epoch has ended, as `loop.train` yields it, and its checkpoint is in the storage."""

    def on_save(self, position: dict[str, Any]) -> None:
        """A checkpoint was taken within an epoch, at this `Position`, because a machine is about to leave."""

    def on_wait(self) -> None:
        """The run has been without workers for a while: others may have the machines."""


class Forward(UserCallback):  # type: ignore[misc]  # Ray exports no types
    """Puts what Ray's controller learns into the queue that the driver reads."""

    def __init__(self, events: Queue) -> None:
        self._events = events

    def after_report(
        self,
        run_context: Any,  # noqa: ARG002
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,  # noqa: ARG002
    ) -> None:
        """After the checkpoint is in the storage: an epoch that is shown is never trained again."""
        self._events.put(("report", metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Workers are lost, and others will be waited for."""
        self._events.put(("lost", None))


class Listener(AbstractContextManager["Listener"]):
    """Reads the events of a run in a thread, and calls its `Progress`."""

    def __init__(self, progress: Progress, *, is_local: bool) -> None:
        self._progress, self._workers = progress, dict[int, str]()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="training-progress")
        # On this node: with another one the run would not be lost.
        here = None if is_local else {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self.events: Any = queue.Queue() if is_local else Queue(actor_options={"num_cpus": 0, "label_selector": here})
        """(`worker`, (rank, size, address)), (`report`, metrics), (`lost`, None) and (`end`, None)."""
        self.addresses: list[str] = []
        """Where the workers of the last start are, by rank."""

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ray.exceptions.RayError):  # Ray is gone, and the thread has ended with it
            self.events.put(("end", None))
        self._thread.join()
        if isinstance(self.events, Queue):
            self.events.shutdown()

    def _listen(self) -> None:
        notice_at: float | None = time.monotonic() + _NOTICE_SECONDS
        while True:
            try:
                kind, content = self.events.get(timeout=1.0)
            except queue.Empty:
                if notice_at is not None and time.monotonic() >= notice_at:
                    notice_at = None
                    self._progress.on_wait()
                continue
            except ray.exceptions.RayError:
                return
            match kind:
                case "worker":
                    notice_at = None
                    self._start(*content)
                case "report" if "step" in content:
                    self._progress.on_save(content)
                case "report":
                    self._progress.on_epoch(content)
                case "lost":
                    notice_at = time.monotonic() + _NOTICE_SECONDS
                case "end":
                    return

    def _start(self, rank: int, size: int, address: str) -> None:
        if rank in self._workers:  # of workers that are gone
            self._workers = {}
        self._workers[rank] = address
        if len(self._workers) == size:
            self.addresses = [self._workers.pop(number) for number in range(size)]
            self._progress.on_start(self.addresses)
