"""Runs spread over the processors of Ray."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from mnist_pipe.atomic import digest, sha256
from mnist_pipe.cluster.ray_session import Cluster, check_code, check_storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.fingerprint import code_version
from studies.common.ledger import Config, Run, read_ledger, record

Compute = Callable[[Config, Mapping[str, Any]], dict[str, Any]]


def run_all(
    compute: Compute,
    configs: Sequence[Config],
    *,
    shared: Mapping[str, Any],
    available: Cluster,
    storage: Storage,
    name: str,
    on_run: Callable[[Run], None] = lambda _: None,
) -> list[Run]:
    """`compute(config, shared)` for each of `configs`, on a processor each, or a GPU where there are any.

    `shared` is in the memory of each machine once. Runs start in the order given, so the longest should come first;
    they return in that order too, and `on_run` is called as each ends. Those that the ledger `name` knows are not
    computed again and `on_run` is not told of them. A run that is lost with its machine starts again.

    Raises:
        EnvironmentFault: several machines without a storage that all of them reach, or one with other code.
        Exception: what a run raised; the others are given up.
    """
    check_storage(len(available.nodes))
    known = read_ledger(storage, name)
    code = _version(compute)
    data = ray.put(dict(shared))
    task = ray.remote(_timed).options(
        num_cpus=1, num_gpus=min(1, available.num_gpus), max_retries=3, name=compute.__module__
    )
    open_runs = {
        task.remote(compute, config, data, code=code): config for config in configs if digest(config) not in known
    }
    while open_runs:
        (ended, *_), _ = ray.wait(list(open_runs))
        config = open_runs.pop(ended)
        try:
            measured = ray.get(ended)
        except ray.exceptions.RayTaskError as fault:
            raise fault.cause from None
        run = Run(config=config, **measured)
        record(run, storage=storage, name=name)
        known[digest(config)] = run
        on_run(run)
    return [known[digest(config)] for config in configs]


def _timed(compute: Compute, config: Config, shared: Mapping[str, Any], *, code: str) -> dict[str, Any]:
    """What `Run` holds beside the configuration."""
    check_code(code, found=_version(compute))
    started, worked = time.perf_counter(), time.process_time()
    result = compute(config, shared)
    return {
        "result": result,
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - worked, 2),
        "address": ray.util.get_node_ip_address(),
    }


def _version(compute: Compute) -> str:
    """Of the library, and of what lies beside the function."""
    source = inspect.getsourcefile(compute)
    assert source is not None
    beside = sorted(Path(source).parent.glob("*.py"))
    return digest([code_version(), *(sha256(path) for path in beside)])
