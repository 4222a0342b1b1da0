"""The Ray session that a stage joins or starts, and its resources.

This module does not import torch, because that takes longer than joining Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_pipe import hardware
from mnist_pipe.cluster.storage import VARIABLE, Storage
from mnist_pipe.errors import UnavailableError, one_line
from mnist_pipe.fingerprint import code_version

IMAGES_PER_GPU = 1024
"""The images of a batch that each GPU gets at least, if `auto` chooses the number of workers.

With fewer, a step waits for its launches and its exchange of gradients, and several GPUs are slower than one.
"""
_PROBE_SECONDS = 60.0  # the wait for a node that imports torch
_OBJECT_STORE_BYTES = 500_000_000
"""The size of a local object store: the data set is 172 MB as float32, while Ray's default is 30 % of the RAM."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The resources of the Ray session that this process is connected to."""

    num_cpus: int
    num_gpus: int
    """The number of GPUs that can have a worker, which needs a CPU of the same node too."""
    nodes: tuple[int, ...]
    """The number of CPUs of each node that has at least one."""
    grows: bool
    """Whether nodes may join and leave: the cluster was running before, and all nodes reach a shared storage."""
    address: str
    job_url: str = ""
    """URL of this process's job on Ray's dashboard; empty if there is no dashboard."""


_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray's default is 2 s, and an epoch takes at least one poll
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # Ray's default of 600 s is how long a hung worker goes unnoticed
    # Ray's default is 60 s: it waits this long for a node that it does not know to be dead yet, then must retry.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoard's is added explicitly; nothing reads CSV and JSON
    # Tune would write a snapshot of all its trials every ten seconds or more, which takes longer the more there are.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted search resumes from the ledger, so it need not save
}


@contextmanager
def connected(name: str) -> Iterator[Cluster]:
    """Join the Ray cluster that RAY_ADDRESS names, or start one on loopback, for the duration of the block.

    Ray's dashboard lists the block as the job `name`.

    Raises:
        UnavailableError: the cluster does not answer, or torch cannot use the GPUs that Ray counts on one of its nodes.
    """
    # Workers log to files, which the dashboard shows; progress is reported through callbacks such as `on_epoch`.
    options = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "job_config": JobConfig(metadata={"job_name": name}),
    }
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        try:
            context = ray.init(address=address, **options)
        except (ConnectionError, ray.exceptions.RayError) as error:
            fix = "start that cluster or unset the variable"
            cause = one_line(error)
            raise UnavailableError.unreachable(address, where="RAY_ADDRESS", cause=cause, fix=fix) from error
    else:
        context = ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=hardware.num_cpus(),  # Ray counts those that this process may not use, too
            num_gpus=hardware.num_gpus(),
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **options,
        )
    try:
        grows = address != "local" and bool(os.environ.get(VARIABLE))
        nodes, num_gpus = usable(ray.nodes())
        if num_gpus and address != "local":
            _check_gpus(ray.nodes())
        # On a single machine no node can be preempted, so the watcher, one more process, is not started.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(grows or len(nodes) > 1)))
        yield Cluster(
            num_cpus=sum(nodes),
            num_gpus=num_gpus,
            nodes=nodes,
            grows=grows,
            address=str(context.address_info["address"]),
            job_url=_job_url(context.dashboard_url),
        )
    finally:
        ray.shutdown()


def usable(nodes: Iterable[Mapping[str, Any]]) -> tuple[tuple[int, ...], int]:
    """Return the number of CPUs of each living node that has one, and the number of GPUs that can have a worker.

    Args:
        nodes: the result of `ray.nodes()`.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = tuple(int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1)
    return cpus, sum(int(min(resources.get("GPU", 0), resources.get("CPU", 0))) for resources in alive)


def _check_gpus(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Check that on each node torch can use the GPUs that Ray counts there; the check needs none of its resources."""
    probe = ray.remote(num_cpus=0)(hardware.check_gpus_of_ray)
    found = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            int(node["Resources"]["GPU"]), where=node["NodeManagerAddress"]
        ): node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    }
    for result, node in found.items():
        try:
            ray.get(result, timeout=_PROBE_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError) as error:
            raise UnavailableError.unreachable(f"the node {node}", where="Ray", cause=one_line(error)) from error


def _job_url(dashboard: str | None) -> str:
    return f"http://{dashboard}/#/jobs/{ray.get_runtime_context().get_job_id()}" if dashboard else ""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The number and kind of the workers of a training."""

    min_workers: int
    """The smallest number of workers; 0 if the loop runs in the driver's own process."""
    max_workers: int
    """The largest number of workers. Above `min_workers` the run is elastic: it adapts when a node leaves or joins."""
    use_gpu: bool
    cpus_per_worker: int
    """The number of CPUs of each worker, which has as many threads."""
    num_nodes: int
    """The number of nodes of the cluster, over which workers without a GPU are spread."""


def scale(available: Cluster, *, num_workers: int | str | Sequence[int], use_gpu: bool | str, batch_size: int) -> Scale:
    """Return the number and kind of the workers of a training on the cluster.

    If nodes may join and leave, `auto` is elastic down to one worker, and the upper bound of a range may exceed what
    the cluster has now.

    Args:
        available: the cluster.
        num_workers: a number, a range `[low, high]`, or `auto`: as many GPUs as have `IMAGES_PER_GPU` of a batch
            each, at least one; without GPUs, one worker on every node, with all of its CPUs. 0 is this process.
        use_gpu: whether each worker has a GPU; `auto` uses GPUs if there are any.
        batch_size: the number of images of a batch over all workers, each of which needs one.
    """
    gpu = available.num_gpus > 0 if use_gpu == "auto" else bool(use_gpu)
    if num_workers == "auto":
        most = min(available.num_gpus, max(1, batch_size // IMAGES_PER_GPU)) if gpu else len(available.nodes)
        most = min(most, batch_size)
        least = 1 if available.grows else most
    else:
        least, most = (num_workers, num_workers) if isinstance(num_workers, int) else map(int, num_workers)
        if not available.grows:
            most = max(least, min(most, available.num_gpus if gpu else available.num_cpus))
    # A Ray that somebody else started counts CPUs of this machine that this process may not use.
    cpus = available.num_cpus if available.grows else min(available.num_cpus, hardware.num_cpus())
    return Scale(
        min_workers=least,
        max_workers=most,
        use_gpu=gpu,
        cpus_per_worker=1 if gpu else max(1, min(min(available.nodes), cpus // max(1, most))),
        num_nodes=len(available.nodes),
    )


def check_storage(num_nodes: int) -> None:
    """Check that a cluster of several nodes has a shared storage.

    Raises:
        UnavailableError: there are several nodes, and MNIST_PIPE_STORAGE is not set.
    """
    if num_nodes > 1 and not os.environ.get(VARIABLE):
        state = f"is not set, but a cluster of {num_nodes} nodes needs it"
        raise UnavailableError.missing(VARIABLE, state=state, fix="set it to a bucket or a shared directory")


def check_code(expected: str, *, found: str | None = None) -> None:
    """Check that this node has the same code as the process that started the run; `found` defaults to `code_version()`.

    Raises:
        UnavailableError: this node has another version.
    """
    found = found or code_version()
    if found != expected:
        where = ray.util.get_node_ip_address()
        fix = "check out the same commit on every node"
        raise UnavailableError.invalid(where, "the code", f"be version {expected[:12]}", got=found[:12], fix=fix)


def attempts(storage: Storage, name: str) -> list[str]:
    """Return the keys of Ray's folders in the storage, one for each earlier attempt at the run `name`."""
    return [f"ray/{found}" for found in storage.names("ray") if found.startswith(f"{name}.")]
