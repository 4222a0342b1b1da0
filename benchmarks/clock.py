"""When the epochs of a run on Ray Train ended, as its driver learned of them."""

from __future__ import annotations

import time

from mnist_pipe.training.progress import Progress


class Clock(Progress):
    """Notes the time of each epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """In seconds of `time.perf_counter`."""

    def on_epoch(self, metrics: dict[str, float]) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())
