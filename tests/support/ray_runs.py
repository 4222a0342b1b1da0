"""Helpers that train on Ray over the small data set."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path

import psutil

from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Scale
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.training import ray_train
from mnist_pipe.training.progress import Progress
from mnist_pipe.training.ray_train import TrainingResult
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.streaming import Shards
from tests.support import ray_data


def workers(least: int, most: int = 0, *, use_gpu: bool = False, cpus_per_worker: int = 1, num_nodes: int = 1) -> Scale:
    """Return a scale of `least` to `most` workers, on one node by default."""
    return Scale(
        min_workers=least,
        max_workers=most or least,
        use_gpu=use_gpu,
        cpus_per_worker=cpus_per_worker,
        num_nodes=num_nodes,
    )


ONE, TWO = workers(1), workers(2)


class Recorder(Progress):
    """Progress that records its calls."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.starts: list[list[str]] = []

    def on_start(self, addresses: list[str]) -> None:
        self.starts.append(addresses)

    def on_epoch(self, metrics: dict[str, float]) -> None:
        self.epochs.append(metrics)


def fit(
    folder: Path,
    *,
    recipe: Recipe = ray_data.RECIPE,
    training: NormalizedSplit | Shards | None = None,
    scale: Scale = ONE,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train over blobs with checkpoints below `folder`, and leave the last state in `folder/state`."""
    return ray_train.fit(
        recipe,
        training=training or ray_data.split(3200),
        validation=ray_data.split(501, seed=1),
        name="run",
        storage=storage.open_uri(str(folder)),
        state=folder / "state",
        scale=scale,
        progress=progress or Recorder(),
    )


def listeners() -> set[tuple[str, str]]:
    """Return the name and address of every TCP listener of this process's descendants."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since
            name = " ".join(process.cmdline())[:80]
            listening = (one for one in process.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN)
            found |= {(name, one.laddr.ip) for one in listening}
    return found


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches `address`, which may be an IPv4 address written as IPv6."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
