"""Progress events from a Ray Train run to the process that started it (the driver).

Workers and Ray's controller put events into a `ray.util.queue.Queue`, and a thread of the driver reads them.
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

from mnist_pipe.cluster.metrics import Exporter

_NOTICE_SECONDS = 15.0
"""Time without workers, in seconds, after which `Progress.on_wait` reports that the run waits for nodes."""


class Progress:
    """Callbacks of a run, called in a thread of the driver; each does nothing unless a subclass overrides it."""

    def on_start(self, addresses: list[str]) -> None:
        """Handle the start of the workers, at these addresses by rank.

        It is called again after a worker was lost or has joined.
        """

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Handle the end of an epoch, whose checkpoint is in the storage; `metrics` are those of `loop.train`."""

    def on_save(self, position: dict[str, Any]) -> None:
        """Handle a checkpoint within an epoch, at this `Position`, saved because a node is about to leave."""

    def on_wait(self) -> None:
        """Handle a wait of the run for workers; other jobs may occupy the nodes."""


class Exported(Progress):
    """Progress that exports each epoch as Ray's metrics, and passes every event on."""

    def __init__(self, progress: Progress, *, exporter: Exporter, num_images: int) -> None:
        self._progress, self._exporter, self._num_images = progress, exporter, num_images
        self._began = time.monotonic()

    def on_start(self, addresses: list[str]) -> None:
        """Measure the first epoch from here."""
        self._began = time.monotonic()
        self._progress.on_start(addresses)

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Export the epoch; one that a restarted run completes counts as a whole."""
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        self._exporter.epoch(metrics, num_images=self._num_images, seconds=seconds)
        self._progress.on_epoch(metrics)

    def on_save(self, position: dict[str, Any]) -> None:
        """Pass the event on."""
        self._progress.on_save(position)

    def on_wait(self) -> None:
        """Pass the event on."""
        self._progress.on_wait()


class Forward(UserCallback):  # type: ignore[misc]  # Ray exports no types
    """Ray Train callback that puts the controller's events into the queue that the driver reads."""

    def __init__(self, events: Queue) -> None:
        self._events = events

    def after_report(
        self,
        run_context: Any,  # noqa: ARG002
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,  # noqa: ARG002
    ) -> None:
        """Forward the metrics of a report.

        Ray calls this after the checkpoint is in the storage, so an epoch that is shown is never trained again.
        """
        self._events.put(("report", metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Forward that workers are lost, so that the driver knows that the run waits for new ones."""
        self._events.put(("lost", None))


class Listener(AbstractContextManager["Listener"]):
    """Context manager whose thread reads the events of a run and calls its `Progress`."""

    def __init__(self, progress: Progress, *, is_local: bool) -> None:
        self._progress, self._workers = progress, dict[int, str]()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="training-progress")
        # The queue's actor runs on this node, so that the loss of another node does not end the run.
        here = None if is_local else {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self.events: Any = queue.Queue() if is_local else Queue(actor_options={"num_cpus": 0, "label_selector": here})
        """Queue of (`worker`, (rank, size, address)), (`report`, metrics), (`lost`, None) and (`end`, None)."""
        self.addresses: list[str] = []
        """IP addresses of the workers of the last start, by rank."""

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ray.exceptions.RayError):  # if Ray has ended, the thread has ended with it
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
        if rank in self._workers:  # left from an earlier start that did not complete
            self._workers = {}
        self._workers[rank] = address
        if len(self._workers) == size:
            self.addresses = [self._workers.pop(number) for number in range(size)]
            self._progress.on_start(self.addresses)
