"""Test the metrics that runs export through Ray: their values, and what they cost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.cluster.ray_session import Cluster
from tests.support import ROOT, search
from tests.support.services import wait_until

pytestmark = pytest.mark.ray
Values = dict[tuple[str, str], float]
SCORING = """
import sys
from pathlib import Path
from mnist_pipe import models
from mnist_pipe.inference import batch
from mnist_pipe.inference.classifier import Classifier

network = models.build("mlp", hidden=[4], activation="relu").eval()
model = Classifier(network, card={"mean": 0.13, "std": 0.31}, name="toy/1", content_sha256="ab")
batch.score(sys.argv[1], Path(sys.argv[2]), model=model)
"""


@contextmanager
def scraped(*, stage: str = "search", run: str = "search") -> Iterator[Values]:
    """Yield the last value of each of the project's metrics by name and trial; a thread scrapes the node meanwhile."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: Values = {}
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(1):
            lines = re.findall(r"^ray_mnist_pipe_(\w+)\{([^}]*)\} (\S+)$", httpx.get(url).text, re.MULTILINE)
            for name, text, value in lines:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
                if (labels["stage"], labels["search"]) == (stage, run):
                    found[name, labels["trial"]] = float(value)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def test_every_trial_of_a_search_is_exported_with_its_epochs_and_accuracy(cluster: Cluster, tmp_path: Path) -> None:
    with scraped() as found:
        records = search.run(cluster, folder=tmp_path, num_trials=4, scheduler="fifo", algorithm="random")
        last = max(records, key=lambda record: record.ended_at)
        wait_until(lambda: ("trials_total", str(last.trial)) in found)
    for record in records:
        number = str(record.trial)
        assert found["trials_total", number] == 1
        assert found["epochs_total", number] == len(record.history)
        assert found["images_total", number] == 1000 * len(record.history)
        assert found["validation_accuracy_ratio", number] == pytest.approx(record.score)
        assert found["images_per_second", number] > 0


def test_a_scoring_exports_how_many_images_it_has_classified(cluster: Cluster, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": list(np.zeros((2500, 784), np.uint8))}), tmp_path / "images.parquet")
    with scraped(stage="score", run="") as found:
        command = [sys.executable, "-c", SCORING, str(tmp_path / "images.parquet"), str(tmp_path / "scores")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": cluster.address})
        wait_until(lambda: ("images_total", "") in found)
    assert found["images_total", ""] == 2500


@pytest.mark.usefixtures("cluster")
def test_an_epoch_is_exported_in_less_than_a_millisecond() -> None:
    exporter = Exporter(stage="train", run="train-1")
    metrics = dict.fromkeys(("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"), 0.5)

    def seconds(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    assert min(seconds(lambda: exporter.epoch(metrics, num_images=10, seconds=1.0)) for _ in range(100)) < 1e-3
