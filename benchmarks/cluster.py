"""What a cluster costs and gains, on the test bed of tests/cluster: two one-thread nodes in network namespaces.

    python -m benchmarks.cluster [--repeats 3] [--epochs 2]

Prints seconds of a stage here and there, and of an epoch on one node and on two, taken in turns in one run. Needs root.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.cluster.bed import ROOT, Bed
from tests.cluster.project import Project, make, take

CHANNELS = [32, 64, 128]
OVERHEAD_STAGE = "normalize"


def main() -> None:
    """Start the bed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    with Bed.start() as bed, tempfile.TemporaryDirectory() as folder:
        bed.run("head", [ROOT / "deploy/deployments"], env={"MNIST_PIPE_ENV": str(bed.settings_file("head"))})
        project = make(bed, Path(folder))
        for stage in ("ingest", "normalize"):
            run(project, stage)
        there, here = [], []
        for _ in range(options.repeats):
            there.append(run(project, OVERHEAD_STAGE))
            here.append(run(project, OVERHEAD_STAGE, locally=True))
        show(f"{OVERHEAD_STAGE} on the cluster", there)
        show(f"{OVERHEAD_STAGE} here", here)
        print(f"more on the cluster: {statistics.median(there) - statistics.median(here):.1f} s")
        (project.folder / "models").mkdir(exist_ok=True)
        one, two = [], []
        for _ in range(options.repeats):
            one += epochs(project, workers=1, number=options.epochs)
            two += epochs(project, workers=2, number=options.epochs)
        show(f"an epoch of convnet {CHANNELS} on one node", one)
        show("on two nodes", two)
        print(f"ratio: {statistics.median(one) / statistics.median(two):.2f}")


def run(project: Project, stage: str, *, locally: bool = False) -> float:
    """Seconds of a stage from the command line on."""
    here = {"MNIST_PIPE_WORK_POOL": "", "MNIST_PIPE_STORAGE": "", "MLFLOW_TRACKING_URI": ""}
    started = time.monotonic()
    # Here too with a Prefect server that runs: the same one.
    done = project.run("python", "-m", "pipelines", stage, env=here if locally else {}, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - started


def epochs(project: Project, *, workers: int, number: int) -> list[float]:
    """Seconds of each epoch but the first, which also warms up."""
    take(project, train__num_workers=workers, train__num_epochs=number + 1, models__convnet={"channels": CHANNELS})
    done = project.run("python", "-m", "pipelines", "train", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"^(\d\d:\d\d:\d\d\.\d+) \| epoch", done.stderr, re.MULTILINE)
    times = [datetime.strptime(text, "%H:%M:%S.%f") for text in found]
    return [(later - earlier).total_seconds() % 86400 for earlier, later in itertools.pairwise(times)]


def show(what: str, seconds: list[float]) -> None:
    print(
        f"{what}: min {min(seconds):.1f}, median {statistics.median(seconds):.1f}, max {max(seconds):.1f} s", flush=True
    )


if __name__ == "__main__":
    main()
