"""The project's metrics in Prometheus' format, which Ray exports on every node beside its own.

Ray puts `ray_` before each name, and `_total` behind that of a counter. A process sends its values to its node's agent
every 10 s, and when it leaves Ray. A gauge that is not set again disappears 20 s later; a counter stays as long as the
node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import ray
from ray.util.metrics import Counter, Gauge

LABELS = ("stage", "search", "trial")
COUNTERS = {
    "mnist_pipe_trials": "Trials that have ended, by status.",
    "mnist_pipe_epochs": "Epochs that have ended.",
    "mnist_pipe_images": "Images that a network was trained on, or classified.",
}
GAUGES = {
    "mnist_pipe_train_accuracy_ratio": "Accuracy of the last epoch on the training rows, in [0, 1].",
    "mnist_pipe_train_loss_nats": "Mean negative log-likelihood of the last epoch on the training rows.",
    "mnist_pipe_validation_accuracy_ratio": "Accuracy after the last epoch on the validation split, in [0, 1].",
    "mnist_pipe_validation_loss_nats": "Mean negative log-likelihood after the last epoch on the validation split.",
    "mnist_pipe_images_per_second": "Images a second of the last epoch with its validation, or of a scoring.",
}
_OF_EPOCHS = {  # the gauge of each metric of an epoch
    name: f"mnist_pipe_{name}_{unit}"
    for split in ("train", "validation")
    for name, unit in ((f"{split}_accuracy", "ratio"), (f"{split}_loss", "nats"))
}


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """The metrics of one run; without a Ray session every method does nothing."""

    stage: str
    """What runs: `search`, `train`, `score` or `serve`."""
    run: str = ""
    """Name of the run, `search-…` or `train-…`: the label `search`."""

    def epoch(
        self, metrics: Mapping[str, float], *, trial: int | None = None, num_images: int = 0, seconds: float = 0.0
    ) -> None:
        """Export an epoch that has ended.

        Args:
            metrics: those of `loop.train`; a diverged epoch has no losses.
            trial: number of the trial, in a search.
            num_images: number of images that the epoch trained on; 0 if it was not trained now.
            seconds: wall-clock seconds that it took.
        """
        self._count("mnist_pipe_epochs", 1, trial=trial)
        for name, gauge in _OF_EPOCHS.items():
            if name in metrics:
                self._set(gauge, metrics[name], trial=trial)
        self.images(num_images, seconds=seconds, trial=trial)

    def trial(self, number: int, *, status: str) -> None:
        """Export that a trial has ended: `finished`, `stopped`, `diverged` or `failed`."""
        self._count("mnist_pipe_trials", 1, trial=number, status=status)

    def images(self, number: int, *, seconds: float = 0.0, trial: int | None = None) -> None:
        """Export that `number` images went through a network and, if `seconds` is not 0, how many a second."""
        if number:
            self._count("mnist_pipe_images", number, trial=trial)
            if seconds:
                self._set("mnist_pipe_images_per_second", number / seconds, trial=trial)

    def _count(self, name: str, number: float, *, trial: int | None, **more: str) -> None:
        if ray.is_initialized():
            _counter(name, tuple(more)).inc(number, tags={**self._labels(trial), **more})

    def _set(self, name: str, value: float, *, trial: int | None) -> None:
        if ray.is_initialized():
            _gauge(name).set(value, tags=self._labels(trial))

    def _labels(self, trial: int | None) -> dict[str, str]:
        values = (self.stage, self.run, "" if trial is None else str(trial))
        return dict(zip(LABELS, values, strict=True))


@cache
def _counter(name: str, more: tuple[str, ...]) -> Counter:
    return Counter(name, COUNTERS[name], (*LABELS, *more))


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, GAUGES[name], LABELS)
