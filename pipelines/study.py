"""Stage `STUDY-runs`: compute a study's runs on all CPUs and GPUs of the machine or cluster.

The package `studies` defines the runs and presents their results.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact

import studies
from mnist_pipe import atomic, paths
from mnist_pipe.cluster.handoff import workspace

if TYPE_CHECKING:
    from studies.common.ledger import Config, Run


@task
def measure(study: str, params: dict[str, Any], name: str) -> dict[str, Any]:
    """Compute every run that the ledger `name` lacks, write `runs.json` and `times.json`, and return the latter.

    Args:
        study: name of the study.
        params: the study's parameters, as JSON-like values.
        name: name of the ledger and of Ray's job.
    """
    from mnist_pipe.cluster import ray_session
    from mnist_pipe.cluster.storage import project_storage
    from mnist_pipe.data.splits import read_normalized
    from studies.common import catalogue
    from studies.common.executor import run_all
    from studies.common.ledger import ledger_of

    chosen, storage, log = catalogue.study_of(study), project_storage(Path.cwd()), get_run_logger()
    section, ledger = chosen.params.model_validate(params), ledger_of(name, storage=storage)
    splits = {split: read_normalized(path) for split, path in paths.SPLITS.items()}
    started, num_known = time.monotonic(), len(ledger.read())
    if num_known:
        log.info("%s: resuming after an interruption; %d runs are already finished", study, num_known)

    def show(run: Run) -> None:
        log.info("%s on %s, %.1f s: %s", study, run.address, run.seconds, _line(run.config))

    def compute(configs: Sequence[Config]) -> list[Run]:
        log.info("%s: computing %d runs", study, len(configs))
        return run_all(
            chosen.run,
            configs,
            shared=splits,
            available=available,
            ledger=ledger,
            on_gpu=chosen.on_gpu,
            on_run=show,
        )

    done: list[Run] = []
    with ray_session.connected(name) as available:
        if chosen.plan:
            done += compute(chosen.plan(section))
        if chosen.plan_from_results:
            done += compute(chosen.plan_from_results(section, done))
    conclusions = chosen.conclude(done, splits) if chosen.conclude else {}
    times = _times(done, num_cpus=available.num_cpus, num_gpus=available.num_gpus)
    times["code"] = catalogue.code_of(study)
    if not num_known:
        times["wall_seconds"] = round(time.monotonic() - started, 1)
    folder = paths.STUDIES / study
    atomic.write_json(folder / paths.STUDY_TIMES, times)
    runs = [{"config": run.config, "result": run.result} for run in done]
    atomic.write_json(folder / paths.STUDY_RUNS, {"conclusions": conclusions, "runs": runs})
    return times


def _times(runs: list[Run], *, num_cpus: int, num_gpus: int) -> dict[str, Any]:
    """Return the durations, in seconds, and the hardware; kept apart from the results, which are reproducible."""
    from mnist_pipe.evaluation.stamp import stamp

    return {
        **stamp(Path.cwd(), num_cpus=num_cpus, num_gpus=num_gpus),
        "run_seconds": round(sum(run.seconds for run in runs), 1),
        "processor_seconds": round(sum(run.processor_seconds for run in runs), 1),
        "runs": [
            {"config": _line(run.config), "seconds": run.seconds, "processor_seconds": run.processor_seconds}
            for run in runs
        ],
    }


def _line(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items())


@flow
def study(study: str, params: dict[str, Any]) -> None:
    """Compute the runs of `study`; after an interruption, resume from the runs that had ended."""
    with workspace():
        from mnist_pipe.fingerprint import run_name

        name = run_name(f"{study}-runs", params=None, inputs=[*paths.SPLITS.values(), *computing_modules(study)])
        times = measure(study, params, name)
        table = [{"run": run["config"], "seconds": run["seconds"]} for run in times["runs"]]
        create_table_artifact(key="runs", table=table, description=f"The runs of {study}")
        get_run_logger().info("%s: %d runs, %.0f s of CPU time", study, len(table), times["processor_seconds"])
        forget(name)


def computing_modules(study: str) -> list[Path]:
    """Return the modules outside `mnist_pipe` whose code determines the results of the runs of `study`."""
    folder = Path(studies.__file__).parent
    own = (path for path in sorted((folder / study).glob("*.py")) if path.name not in studies.SHOWING)
    return [*(folder / "common" / name for name in studies.COMPUTING), *own]


@task
def forget(name: str) -> None:
    """Remove the records from which an interrupted study resumes, so that a finished one runs again when requested."""
    from mnist_pipe.cluster.storage import project_storage
    from studies.common.ledger import ledger_of

    storage = project_storage(Path.cwd())
    ledger_of(name, storage=storage).remove()
    for search in storage.names("trials"):  # the trials of a study that starts with a search
        if search.startswith(name):
            storage.remove(f"trials/{search}")
