"""Measure the overhead and speedup of a cluster on its test bed: two one-thread nodes in network namespaces.

    python -m tests.cluster.benchmark [--only stages|epochs] [--repeats 3] [--rows 8000] [--epochs 3]

Prints the seconds of a stage on the cluster and without it, then those of an epoch on one node and on two, measured
alternately in one run. Prefect, MLflow and PostgreSQL are stopped while epochs are timed, because in the bed they share
the CPUs with the nodes and use a third of a CPU. Needs root.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.bed import Bed
from tests.cluster.project import RECIPE, Project, make

CHANNELS = [64, 128, 256]
BATCH_ROWS = 1000  # large, because the workers wait for each other a dozen times a step
OVERHEAD_STAGE = "normalize"
EPOCHS = """
import itertools, json, os, time
from pathlib import Path
from mnist_pipe import paths
from mnist_pipe.cluster import storage
from mnist_pipe.data.splits import read_normalized
from mnist_pipe.cluster.ray_session import connected
from mnist_pipe.cluster.ray_session import scale as scale_of
from mnist_pipe.training import ray_train
from mnist_pipe.training.progress import Progress
from mnist_pipe.training.loop import Recipe

times = []
class Clock(Progress):
    def on_start(self, addresses):
        times.append(time.perf_counter())
    def on_epoch(self, metrics):
        times.append(time.perf_counter())

with connected("benchmark") as available:
    ray_train.fit(
        Recipe(**{recipe}, model_params={{"channels": {channels}}}, num_epochs={epochs} + 1, precision="float32"),
        training=read_normalized(paths.TRAINING_SPLITS["train"]).first({rows}),
        validation=read_normalized(paths.TRAINING_SPLITS["validation"]).first(1000),
        name="benchmark-{name}", storage=storage.project_storage(Path.cwd()), state=Path("state-{name}"),
        scale=scale_of(available, num_workers={workers}, use_gpu=False), progress=Clock(),
    )
print(json.dumps([later - earlier for earlier, later in itertools.pairwise(times[1:])]))
"""


def main() -> None:
    """Start the bed, measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("stages", "epochs"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with Bed.start() as bed, tempfile.TemporaryDirectory() as folder:
        bed.script("deployments")
        project = make(bed, Path(folder))
        for stage in ("ingest", "normalize"):
            run(project, stage)
        if options.only != "epochs":
            compare_stages(project, repeats=options.repeats)
        if options.only != "stages":
            compare_epochs(project, repeats=options.repeats, rows=options.rows, number=options.epochs)


def compare_stages(project: Project, *, repeats: int) -> None:
    """Time one stage on the cluster and without it, alternately, and print the seconds."""
    there, here = [], []
    for _ in range(repeats):
        there.append(run(project, OVERHEAD_STAGE))
        here.append(run(project, OVERHEAD_STAGE, locally=True))
    show(f"{OVERHEAD_STAGE} on the cluster", there)
    show(f"{OVERHEAD_STAGE} here", here)
    print(f"more on the cluster: {statistics.median(there) - statistics.median(here):.1f} s")


def compare_epochs(project: Project, *, repeats: int, rows: int, number: int) -> None:
    """Time epochs on one node and on two, alternately, and print the seconds."""
    for service in ("worker", "prefect-server", "mlflow-server", "postgres"):
        project.bed.kill(service)
    one: list[float] = []
    two: list[float] = []
    for repeat in range(repeats):
        for workers, seconds in ((1, one), (2, two)):
            seconds += epochs(project, workers=workers, name=f"{repeat}-{workers}", rows=rows, number=number)
    show(f"an epoch of {rows} rows, convnet {CHANNELS}, on one node", one)
    show("on two nodes", two)
    print(f"ratio: {statistics.median(one) / statistics.median(two):.2f}")


def run(project: Project, stage: str, *, locally: bool = False) -> float:
    """Run a stage from the command line, and return its seconds."""
    here = {"MNIST_PIPE_WORK_POOL": "", "MNIST_PIPE_STORAGE": "", "MLFLOW_TRACKING_URI": ""}
    started = time.monotonic()
    # The local run also uses a Prefect server that is already running: the same one.
    done = project.run("python", "-m", "pipelines", stage, env=here if locally else {}, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - started


def epochs(project: Project, *, workers: int, name: str, rows: int, number: int) -> list[float]:
    """Return the seconds of each epoch after the first, which includes warm-up."""
    recipe = {**RECIPE, "batch_size": BATCH_ROWS}
    code = EPOCHS.format(recipe=recipe, channels=CHANNELS, epochs=number, rows=rows, workers=workers, name=name)
    code = f"import os\nos.chdir({str(project.folder)!r})\n{code}"
    found: list[float] = project.bed.python("head", code, timeout=900)
    return found


def show(what: str, seconds: Sequence[float]) -> None:
    print(
        f"{what}: min {min(seconds):.1f}, median {statistics.median(seconds):.1f}, max {max(seconds):.1f} s", flush=True
    )


if __name__ == "__main__":
    main()
