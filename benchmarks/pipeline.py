"""Measure the time of `dvc repro` by stage, from nothing and with nothing to do, and the memory of each stage.

The pipeline runs in a clone of this checkout, without data and models, with the services up. A stage's fixed
costs are read from Prefect: from the start of its process to the start of its first task, and from the end of its last
task to the end of its process. A stage's memory is sampled every second: the proportional set size (PSS) of its
processes and of Ray's workers, so that memory shared by several of them counts once.

    python -m benchmarks.pipeline --repeats 1
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from mnist_pipe import paths
from mnist_pipe.atomic import read_json
from mnist_pipe.local import services
from pipelines import STAGES

ROOT = Path(__file__).parents[1]
OURS = ("search", "train", "evaluate")  # stages whose work other benchmarks measure
NOTHING_TO_DO = 5


def measure(*, repeats: int, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Rebuild the pipeline `repeats` times, then run it with nothing to do.

    Returns:
        `runs`: for each repetition its `seconds`, the seconds `outside` search, train and evaluate, and for each of the
        `stages` its `seconds`, `before_seconds`, `after_seconds` and `peak_bytes`; `nothing_to_do_seconds`: a list;
        `test_accuracy`: that of the last rebuild.
    """
    with tempfile.TemporaryDirectory() as folder, _project(Path(folder)) as (project, environment):
        runs = [_rebuild(project, environment, log=log) for _ in range(repeats)]
        idle = [_seconds(["dvc", "repro"], project, environment) for _ in range(NOTHING_TO_DO)]
        log(f"nothing to do: {statistics.median(idle):.2f} s")
        evaluation = read_json(project / paths.EVALUATION)
    return {"runs": runs, "nothing_to_do_seconds": idle, "test_accuracy": evaluation["test"]["accuracy"]}


@contextmanager
def _project(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a clone whose services are up, and the environment for commands in it."""
    project = folder / "main"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    environment = {
        **os.environ,
        "PYTHONPATH": str(project),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(["mnist-pipe", "up"], cwd=project, env=environment, check=True, capture_output=True)
    try:
        yield project, environment
    finally:
        subprocess.run(["mnist-pipe", "down"], cwd=project, env=environment, check=False, capture_output=True)


def _seconds(command: list[str], project: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def _rebuild(project: Path, environment: dict[str, str], *, log: Callable[[str], None]) -> dict[str, Any]:
    for path in (paths.RAW, paths.NORMALIZED, "models", ".dvc/cache"):
        shutil.rmtree(project / path, ignore_errors=True)
    (project / "dvc.lock").unlink()
    stages: dict[str, dict[str, float]] = {}
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stages, stop), daemon=True)
    watcher.start()
    seconds = _seconds(["dvc", "repro"], project, environment)
    stop.set()
    watcher.join()
    time.sleep(2)  # Prefect records task runs with a delay
    tasks = _tasks(project)
    for stage, found in stages.items():
        first, last = tasks[stage]
        found["before_seconds"] = first - found["started"]
        found["after_seconds"] = found.pop("ended") - last
        found["seconds"] = found["after_seconds"] + last - found.pop("started")
        log(
            f"{stage}: {found['seconds']:.1f} s, {found['before_seconds']:.2f} s before its first task, "
            f"{found['after_seconds']:.2f} s after its last task, peak memory {found['peak_bytes'] / 1e6:.0f} MB"
        )
    outside = seconds - sum(stages[stage]["seconds"] for stage in OURS)
    log(f"dvc repro: {seconds:.1f} s, of which {outside:.1f} s outside {', '.join(OURS)}")
    return {"seconds": seconds, "outside": outside, "stages": stages}


def _watch(stages: dict[str, dict[str, float]], stop: threading.Event) -> None:
    """Record each stage's start and end, that of its first process, and its peak memory with that of Ray's workers."""
    while not stop.wait(1.0):
        running: dict[str, list[psutil.Process]] = {}
        workers = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                line = process.cmdline()
                if "pipelines" in line and line[-1] in STAGES:
                    running.setdefault(line[-1], []).append(process)
                elif line and line[0].startswith("ray::") and line[0] != "ray::IDLE":
                    workers.append(process)
        for stage, processes in running.items():
            with suppress(psutil.Error):
                if stage not in stages:
                    first = min(processes, key=psutil.Process.create_time)
                    stages[stage] = {"started": first.create_time(), "peak_bytes": 0.0}
                    threading.Thread(target=_await_end, args=(first, stages[stage]), daemon=True).start()
                held = [process.memory_full_info().pss for process in {*processes, *workers}]
                stages[stage]["peak_bytes"] = max(stages[stage]["peak_bytes"], float(sum(held)))


def _await_end(process: psutil.Process, found: dict[str, float]) -> None:
    process.wait()
    found["ended"] = time.time()


def _tasks(project: Path) -> dict[str, tuple[float, float]]:
    """Return by stage when the first task of its newest flow run started and the last ended, in seconds since 1970."""
    os.environ.update(services.environment(project))  # Prefect reads it only on import
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    times = {}
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        for run in client.read_flow_runs(sort=FlowRunSort.START_TIME_ASC):
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            starts = [task.start_time.timestamp() for task in tasks if task.start_time]
            ends = [task.end_time.timestamp() for task in tasks if task.end_time]
            times[flows[run.flow_id]] = min(starts), max(ends)
    return times


def main() -> None:
    """Print a line for each stage, then the totals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    measure(repeats=parser.parse_args().repeats, log=partial(print, flush=True))


if __name__ == "__main__":
    main()
