"""A study's runs, on every processor of the machine or of the cluster; `studies` says which, and shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from mnist_pipe import atomic, paths
from pipelines.stage import stage

if TYPE_CHECKING:
    from studies.common.ledger import Run


@task
def measure(study: str, params: dict[str, Any], ledger: str) -> dict[str, Any]:
    """Compute every run that `ledger` does not know and write `runs.json` and `times.json`; returns the latter."""
    from mnist_pipe.cluster import ray_session, storage
    from mnist_pipe.data.splits import read_normalized
    from studies.common import catalogue
    from studies.common.executor import run_all
    from studies.common.ledger import read_ledger

    module, place, log = catalogue.runs_of(study), storage.project_storage(Path.cwd()), get_run_logger()
    section = module.Params.model_validate(params)
    splits = {name: read_normalized(path) for name, path in paths.SPLITS.items()}
    started, num_known = time.monotonic(), len(read_ledger(place, ledger))
    if num_known:
        log.info("%s: %d runs had ended before it was interrupted", study, num_known)

    def show(run: Run) -> None:
        log.info("%s on %s, %.1f s: %s", study, run.address, run.seconds, _line(run.config))

    with ray_session.connected(ledger) as available:
        found: list[Run] = []
        if hasattr(module, "tune"):
            found = module.tune(section, splits, available=available, storage=place, name=ledger, say=log.info)
        searched = len(found)
        while len(configs := module.plan(section, found)) > len(found) - searched:
            log.info("%s: %d runs", study, len(configs))
            runs = run_all(
                module.run,
                configs,
                shared=splits,
                available=available,
                storage=place,
                name=ledger,
                on_run=show,
            )
            found = [*found[:searched], *runs]
    conclusions = module.conclude(found, splits)
    times = _times(found, num_cpus=available.num_cpus, num_gpus=available.num_gpus)
    if not num_known:
        times["wall_seconds"] = round(time.monotonic() - started, 1)
    folder = paths.STUDIES / study
    atomic.write_json(folder / paths.STUDY_TIMES, times)
    atomic.write_json(
        folder / paths.STUDY_RUNS,
        {"conclusions": conclusions, "runs": [{"config": run.config, "result": _public(run.result)} for run in found]},
    )
    return times


def _times(runs: list[Run], *, num_cpus: int, num_gpus: int) -> dict[str, Any]:
    """How long it took, and on what: apart from the figures, which are the same from time to time."""
    from importlib.metadata import version

    from mnist_pipe.hardware import cpu_name

    return {
        "processor": cpu_name(),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "torch": version("torch"),
        "run_seconds": round(sum(run.seconds for run in runs), 1),
        "processor_seconds": round(sum(run.processor_seconds for run in runs), 1),
        "runs": [
            {"config": _line(run.config), "seconds": run.seconds, "processor_seconds": run.processor_seconds}
            for run in runs
        ],
    }


def _line(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items())


def _public(result: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only `conclude` wants."""
    return {key: value for key, value in result.items() if not key.startswith("_")}


@stage
def study(study: str, params: dict[str, Any]) -> None:
    """Measure `study`; where it was interrupted, go on from the runs that had ended."""
    from mnist_pipe.fingerprint import PACKAGE, run_name

    folder = PACKAGE.parent / paths.STUDIES
    computing = (path for path in sorted((folder / study).glob("*.py")) if path.name != "findings.py")
    sources = [folder / "fitting.py", *computing]
    ledger = run_name(f"{study}-runs", params=None, inputs=[*paths.SPLITS.values(), *sources])
    times = measure(study, params, ledger)
    table = [{"run": run["config"], "seconds": run["seconds"]} for run in times["runs"]]
    create_table_artifact(key="runs", table=table, description=f"The runs of {study}")
    get_run_logger().info("%s: %d runs, %.0f s of a processor", study, len(table), times["processor_seconds"])
    forget(ledger)


@task
def forget(ledger: str) -> None:
    """Remove what an interrupted study resumes from; a finished one, asked for again, is to be measured again."""
    from mnist_pipe.cluster import storage
    from studies.common.ledger import ledger_key

    place = storage.project_storage(Path.cwd())
    place.remove(ledger_key(ledger))
    for search in place.names("trials"):  # of a study that searches first
        if search.startswith(ledger):
            place.remove(f"trials/{search}")
