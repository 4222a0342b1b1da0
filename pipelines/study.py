"""A study's runs, on every processor of the machine or of the cluster; `studies` says which, and shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from mnist_pipe import files, layout
from pipelines.stage import stage

if TYPE_CHECKING:
    from mnist_pipe.runs import Run


@task
def measure(study: str, params: dict[str, Any], ledger: str) -> dict[str, Any]:
    """Compute every run that `ledger` does not know and write `runs.json` and `times.json`; returns the latter."""
    from mnist_pipe import cluster, storage
    from mnist_pipe.data.table import read_normalized
    from mnist_pipe.runs import read_ledger
    from mnist_pipe.spread import spread
    from studies import catalogue

    module, place, log = catalogue.runs_of(study), storage.of(Path.cwd()), get_run_logger()
    section = module.Params.model_validate(params)
    splits = {name: read_normalized(path) for name, path in layout.SPLITS.items()}
    started, num_known = time.monotonic(), len(read_ledger(place, ledger))
    if num_known:
        log.info("%s: %d runs had ended before it was interrupted", study, num_known)

    def show(run: Run) -> None:
        log.info("%s on %s, %.1f s: %s", study, run.address, run.seconds, _line(run.config))

    with cluster.connected(ledger) as available:
        found: list[Run] = []
        if hasattr(module, "tune"):
            found = module.tune(section, splits, available=available, storage=place, name=ledger, say=log.info)
        searched = len(found)
        while len(configs := module.plan(section, found)) > len(found) - searched:
            log.info("%s: %d runs", study, len(configs))
            runs = spread(
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
    folder = layout.STUDIES / study
    files.write_json(folder / layout.STUDY_TIMES, times)
    files.write_json(
        folder / layout.STUDY_RUNS,
        {"conclusions": conclusions, "runs": [{"config": run.config, "result": _public(run.result)} for run in found]},
    )
    return times


def _times(runs: list[Run], *, num_cpus: int, num_gpus: int) -> dict[str, Any]:
    """How long it took, and on what: apart from the figures, which are the same from time to time."""
    from importlib.metadata import version

    from mnist_pipe.machine import processor

    return {
        "processor": processor(),
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
    from mnist_pipe.identity import PACKAGE, run_name

    folder = PACKAGE.parent / layout.STUDIES
    computing = (path for path in sorted((folder / study).glob("*.py")) if path.name != "findings.py")
    sources = [folder / "fitting.py", *computing]
    ledger = run_name(f"{study}-runs", params=None, inputs=[*layout.SPLITS.values(), *sources])
    times = measure(study, params, ledger)
    table = [{"run": run["config"], "seconds": run["seconds"]} for run in times["runs"]]
    create_table_artifact(key="runs", table=table, description=f"The runs of {study}")
    get_run_logger().info("%s: %d runs, %.0f s of a processor", study, len(table), times["processor_seconds"])
    forget(ledger)


@task
def forget(ledger: str) -> None:
    """Remove what an interrupted study resumes from; a finished one, asked for again, is to be measured again."""
    from mnist_pipe import storage
    from mnist_pipe.runs import ledger_key

    place = storage.of(Path.cwd())
    place.remove(ledger_key(ledger))
    for search in place.names("trials"):  # of a study that searches first
        if search.startswith(ledger):
            place.remove(f"trials/{search}")
