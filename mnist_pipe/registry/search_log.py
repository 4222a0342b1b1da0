"""The log of a search in MLflow: one run for the search, and a child run for each trial as soon as it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mnist_pipe.errors import PipelineError
from mnist_pipe.registry.runs import find_runs, log_metrics, open_experiment
from mnist_pipe.registry.store import check_name, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PARENT = "mlflow.parentRunId"  # MLflow's pages nest a run with this tag under the run that it names


def log_search(experiment: str, trials: Sequence[Mapping[str, Any]], *, root: Path, search_id: str) -> int:
    """Log what is missing of a search that has ended, and return how many trials were logged.

    A trial that was logged completely under the same `search_id` is left as it is and not counted; one whose logging
    was interrupted is completed.

    Args:
        experiment: the name of the MLflow experiment.
        trials: `{"trial": 3, "status": "stopped", "config": {..}, "history": [{"epoch": 1, "train_loss": ..}, ..],
            "ended_at": 1700000000.0, "seconds": 2.5}` for each trial; seconds are wall-clock seconds, since the epoch.
            A run of the search's final has a text, `3-seed-1`, as `trial`, and counts as no trial.
        root: the project's root.
        search_id: identifies the search, among others of the same experiment.

    Raises:
        InputError: `experiment` is not a valid name.
        UnavailableError: the store does not answer.
    """
    check_name(experiment)
    with open_store(root, write=True) as client:
        parent, children = _open(client, experiment, root=root, search_id=search_id)
        missing = [trial for trial in trials if _is_missing(children.get(str(trial["trial"])))]
        for trial in missing:
            _log_trial(client, parent, trial, child=children.get(str(trial["trial"])))
        own = [trial for trial in trials if isinstance(trial["trial"], int)]
        scores = [trial["history"][-1]["validation_accuracy"] for trial in own if _has_ended(trial)]
        summary = {"num_trials": len(own), **({"best_validation_accuracy": max(scores)} if scores else {})}
        log_metrics(client, parent, params={}, history=[(summary, 0)])
        client.set_terminated(parent.info.run_id)
    return len(missing)


def run_of(experiment: str, *, root: Path, search_id: str) -> str | None:
    """Return the id of the run of a search that was logged, or None if there is none.

    Raises:
        UnavailableError: the store does not answer.
    """
    with open_store(root) as client:
        known = client.get_experiment_by_name(experiment)
        runs = find_runs(client, known.experiment_id, f"tags.search = '{search_id}'") if known else []
    return next((run.info.run_id for run in runs if "trial" not in run.data.tags), None)


class SearchLog:
    """Log of a running search: a thread writes each trial to MLflow while the search goes on.

    It delays nothing and raises nothing: what it could not write, `log_search` writes at the end of the search.
    """

    def __init__(self, experiment: str, *, root: Path, search_id: str) -> None:
        self._experiment, self._root, self._search_id = experiment, root, search_id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search-log")
        self._opened: tuple[Run, dict[str, Run]] | None = None
        self._has_failed = False

    def __enter__(self) -> SearchLog:
        """Create the search's run, which also imports MLflow while the trials are computed."""
        self._thread.submit(self._write, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the trials that were added; after an error, drop those that were not begun."""
        self._thread.shutdown(wait=True, cancel_futures=error is not None)

    def add(self, trial: Mapping[str, Any]) -> None:
        """Log a trial that has ended, as `log_search` takes it, soon."""
        self._thread.submit(self._write, trial)

    def _write(self, trial: Mapping[str, Any] | None) -> None:
        if self._has_failed:  # every further trial would wait for the store just as long
            return
        try:
            with open_store(self._root, write=True) as client:
                if self._opened is None:
                    self._opened = _open(client, self._experiment, root=self._root, search_id=self._search_id)
                parent, children = self._opened
                if trial is not None and _is_missing(children.get(str(trial["trial"]))):
                    _log_trial(client, parent, trial, child=children.get(str(trial["trial"])))
        except PipelineError:
            self._has_failed = True  # `log_search` tries again, and raises


def _open(client: MlflowClient, experiment: str, *, root: Path, search_id: str) -> tuple[Run, dict[str, Run]]:
    """Return the run of the search, created if there is none, and the runs of its trials by number."""
    experiment_id = open_experiment(client, experiment, root=root)
    runs = find_runs(client, experiment_id, f"tags.search = '{search_id}'")
    children = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
    parents = [run for run in runs if "trial" not in run.data.tags]
    return parents[0] if parents else client.create_run(
        experiment_id, run_name=search_id, tags={"search": search_id}
    ), children


def _is_missing(child: Run | None) -> bool:
    return child is None or child.info.status == "RUNNING"


def _has_ended(trial: Mapping[str, Any]) -> bool:
    return trial["status"] in ("finished", "stopped")


def _log_trial(client: MlflowClient, parent: Run, trial: Mapping[str, Any], *, child: Run | None) -> None:
    """Write the run of a trial; complete `child`, which an interrupted process left."""
    number, search_id = str(trial["trial"]), parent.data.tags["search"]
    ended_at = trial.get("ended_at") or time.time()
    if child is None:
        child = client.create_run(
            parent.info.experiment_id,
            start_time=int(1000 * (ended_at - trial.get("seconds", 0.0))),
            run_name=f"{search_id}-{number}",
            tags={"search": search_id, "trial": number, "status": str(trial["status"]), _PARENT: parent.info.run_id},
        )
    history = [({k: v for k, v in epoch.items() if k != "epoch"}, epoch["epoch"]) for epoch in trial["history"]]
    log_metrics(client, child, params=trial["config"], history=history)
    status = "FINISHED" if _has_ended(trial) else "FAILED"
    client.set_terminated(child.info.run_id, status, end_time=int(1000 * ended_at))
