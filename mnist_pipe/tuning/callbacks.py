"""Ray Tune callbacks that write TensorBoard's files and the ledger and export metrics while a search runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.tuning.ledger import TrialRecord
from mnist_pipe.tuning.space import config_of, known_to_optuna
from mnist_pipe.tuning.trial import MEMBERS, METRIC, proposals_of

_METRICS = (METRIC, "validation_loss", "train_loss", "train_accuracy", "diverged")  # a diverged epoch has no losses


def folder_of(proposal: Mapping[str, Any]) -> str:
    """Return the name of a trial's folder."""
    return f"trial-{proposal['trial']}"


class Curves(LoggerCallback):  # type: ignore[misc]
    """Callback that writes TensorBoard's files: a proposal's cells in the table of trials, and each epoch's metrics."""

    def __init__(self, cells_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self._cells_of = cells_of
        self._writers: dict[Any, list[Any]] = {}

    def log_trial_start(self, trial: Any) -> None:
        """Open a TensorBoard log for each proposal of `trial`."""
        folders = [Path(trial.local_path).with_name(folder_of(proposal)) for proposal in proposals_of(trial.config)]
        self._writers[trial] = [SummaryWriter(folder) for folder in folders]

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002
        """Write the epoch's metrics of each proposal of `trial`."""
        for writer, metrics in zip(self._writers[trial], result.get(MEMBERS, [result]), strict=True):
            for name in metrics.keys() & _METRICS:
                writer.add_scalar(name, metrics[name], result["training_iteration"])
            writer.flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:  # noqa: ARG002
        """Write the cells of each proposal of `trial`, and close its log."""
        # A trial that failed before it started has no writers.
        for writer, proposal in zip(self._writers.pop(trial, []), proposals_of(trial.config), strict=False):
            cells = {name: known_to_optuna(cell) for name, cell in self._cells_of(config_of(proposal)).items()}
            # `writer.add_hparams` would write the accuracy once more, into a file of its own.
            for summary in hparams(cells, {METRIC: None}):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            writer.close()


class Epochs(tune.Callback):  # type: ignore[misc]
    """Callback that exports each epoch of each proposal as Ray's metrics.

    It runs in the driver, whose process lives as long as the search, so that a trial takes no longer.
    """

    def __init__(self, exporter: Exporter, *, num_images: int, known: Collection[str]) -> None:
        self._exporter, self._num_images, self._known = exporter, num_images, frozenset(known)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Export the epoch of each proposal of `trial`; one that the ledger knows was not trained now."""
        proposals = proposals_of(trial.config)
        for proposal, metrics in zip(proposals, result.get(MEMBERS, [result]), strict=True):
            is_new = digest(config_of(proposal)) not in self._known
            self._exporter.epoch(
                metrics,
                trial=proposal["trial"],
                num_images=self._num_images if is_new else 0,
                seconds=result["time_this_iter_s"],
            )


class Recorder(tune.Callback):  # type: ignore[misc]
    """Callback that collects the trials as they end, and writes each new one to the ledger."""

    def __init__(
        self,
        ledger: Ledger[TrialRecord],
        *,
        num_epochs: int,
        known: Collection[str],
        on_trial: Callable[[TrialRecord], None],
    ) -> None:
        self.records: list[TrialRecord] = []
        self._ledger, self._num_epochs, self._known, self._on_trial = ledger, num_epochs, known, on_trial
        self._histories: dict[tuple[str, int], list[dict[str, float]]] = {}
        self._addresses: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles its callbacks into a file of its own, which nothing here reads.

        The state grows with the number of trials, and `on_trial` may hold a thread, which cannot be pickled.
        """
        return {}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Add the epoch's metrics to the history of each proposal of `trial`."""
        keys = ("epoch", "train_loss", "train_accuracy", "validation_loss", METRIC, "diverged")
        self._addresses[trial.trial_id] = str(result["node_ip"])
        self._seconds[trial.trial_id] = float(result["time_total_s"])
        for member, metrics in enumerate(result.get(MEMBERS, [result])):
            history = self._histories.get((trial.trial_id, member), [])
            # A trial that lost its node has restarted and reports its first epochs again.
            earlier = [epoch for epoch in history if epoch["epoch"] < metrics["epoch"]]
            shown = {key: metrics[key] for key in keys if key in metrics}
            self._histories[trial.trial_id, member] = [*earlier, shown]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        """Record each proposal of `trial` as finished, stopped or diverged."""
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        """Record each proposal of `trial` as failed."""
        self._end(trial, failed=True)

    def _end(self, trial: Any, *, failed: bool) -> None:
        address, seconds = self._addresses.pop(trial.trial_id, ""), self._seconds.pop(trial.trial_id, 0.0)
        for member, proposal in enumerate(proposals_of(trial.config)):
            history = self._histories.pop((trial.trial_id, member), [])
            diverged = bool(history and history[-1].get("diverged"))
            num_epochs = proposal.get("num_epochs", self._num_epochs)
            ended = bool(history and history[-1]["epoch"] >= num_epochs)
            status = "failed" if failed else "diverged" if diverged else "finished" if ended else "stopped"
            self._add(
                TrialRecord(
                    trial=proposal["trial"],
                    status=status,
                    config=config_of(proposal),
                    history=history,
                    address=address,
                    ended_at=time.time(),
                    seconds=seconds,
                )
            )

    def _add(self, record: TrialRecord) -> None:
        self.records.append(record)
        if digest(record.config) not in self._known:
            self._ledger.record(record, name=f"{record.trial:05}")
        self._on_trial(record)
