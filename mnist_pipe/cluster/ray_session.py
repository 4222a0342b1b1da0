"""The Ray that a stage joins or starts, and what it has; without torch, whose import takes longer than to join."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.job_config import JobConfig

from mnist_pipe import hardware
from mnist_pipe.cluster.storage import VARIABLE, Storage
from mnist_pipe.errors import UnavailableError
from mnist_pipe.fingerprint import code_version

_OBJECT_STORE_BYTES = 500_000_000
"""The data set is 172 MB as float32; Ray's default is 30 % of the memory."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the Ray that this process is connected to has."""

    num_cpus: int
    num_gpus: int
    nodes: tuple[int, ...]
    """The processors of each machine that has any for us."""
    grows: bool
    """Whether machines may come and go: it is a running one, with a storage that all of them reach."""
    address: str


_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # stock 2: an epoch takes one poll at least
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # stock 600: so long a hung worker goes unnoticed
    # Stock 60: for so long Ray waits for a machine that it does not know yet to be dead, and has to ask again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # stock 30: so long a hung worker is asked to leave its group
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoard is named explicitly; CSV and JSON beside it are unread
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted search resumes from the ledger, so it need not save
}


@contextmanager
def connected(name: str) -> Iterator[Cluster]:
    """Join the Ray that RAY_ADDRESS names, otherwise start one on loopback for the time of the block.

    Ray's dashboard lists the block as the job `name`.
    """
    # Workers log to files, which the dashboard shows; progress comes by `on_epoch`.
    options = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "job_config": JobConfig(metadata={"job_name": name}),
    }
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        context = ray.init(address=address, **options)
    else:
        context = ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **options,
        )
    try:
        grows = address != "local" and bool(os.environ.get(VARIABLE))
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = tuple(int(node["CPU"]) for node in resources if node.get("CPU", 0) >= 1)
        # A machine alone is told of no other's end; the watcher would be one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(grows or len(nodes) > 1)))
        yield Cluster(
            num_cpus=sum(nodes),
            num_gpus=int(sum(node.get("GPU", 0) for node in resources)),
            nodes=nodes,
            grows=grows,
            address=str(context.address_info["address"]),
        )
    finally:
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many workers of which kind."""

    min_workers: int
    """0 where the loop runs in the driver's own process."""
    max_workers: int
    """Above `min_workers` the run is elastic: it takes what there is, now and after a machine has left or joined."""
    use_gpu: bool
    cpus_per_worker: int
    num_nodes: int
    """Machines that they are spread over."""


def scale(available: Cluster, *, num_workers: int | str | Sequence[int], use_gpu: bool | str) -> Scale:
    """`auto` is a worker on every GPU; without GPUs one on every machine, with all of its CPUs; 0 is this process.

    Where machines come and go `auto` is elastic down to one worker, and the upper bound of a range may be more than
    there is now.
    """
    gpu = available.num_gpus > 0 if use_gpu == "auto" else bool(use_gpu)
    if num_workers == "auto":
        most = available.num_gpus if gpu else len(available.nodes)
        least = 1 if available.grows else most
    else:
        least, most = (num_workers, num_workers) if isinstance(num_workers, int) else map(int, num_workers)
        if not available.grows:
            most = max(least, min(most, available.num_gpus if gpu else available.num_cpus))
    cpus = available.num_cpus if available.grows else min(available.num_cpus, hardware.num_cpus())
    return Scale(
        min_workers=least,
        max_workers=most,
        use_gpu=gpu,
        cpus_per_worker=1 if gpu else max(1, min(min(available.nodes), cpus // max(1, most))),
        num_nodes=len(available.nodes),
    )


def check_storage(num_nodes: int) -> None:
    """Refuse several machines that have no place to meet.

    Raises:
        UnavailableError: MNIST_PIPE_STORAGE is not set.
    """
    if num_nodes > 1 and not os.environ.get(VARIABLE):
        state = f"is not set, which a cluster of {num_nodes} nodes needs"
        raise UnavailableError.missing(VARIABLE, state=state, fix="name a bucket or a shared directory")


def check_code(expected: str, *, found: str | None = None) -> None:
    """Refuse to compute with other code than the process that started this run; `found` is by default `code_version`.

    Raises:
        UnavailableError: this machine has another version.
    """
    found = found or code_version()
    if found != expected:
        where = ray.util.get_node_ip_address()
        fix = "bring its checkout to the same commit"
        raise UnavailableError.invalid(where, "the code", f"be {expected[:12]}", got=found[:12], fix=fix)


def attempts(storage: Storage, name: str) -> list[str]:
    """The folders of Ray's that earlier attempts at the run `name` left in the storage, as keys."""
    return [f"ray/{found}" for found in storage.names("ray") if found.startswith(f"{name}.")]
