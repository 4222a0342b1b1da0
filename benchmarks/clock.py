"""Record when the driver of a Ray Train run learns of the end of each epoch."""

from __future__ import annotations

import time

from mnist_pipe.training.progress import Progress


class Clock(Progress):
    """Record of the time at which each epoch was reported."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """Times of the reports, in seconds of `time.perf_counter`."""

    def on_epoch(self, metrics: dict[str, float]) -> None:  # noqa: ARG002
        """Append the current time; the metrics are ignored."""
        self.times.append(time.perf_counter())
