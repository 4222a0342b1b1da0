"""Runs of one function on the CPUs or GPUs of Ray, each remembered as soon as it ends."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from mnist_pipe.atomic import digest, sha256
from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.cluster.ray_session import Cluster, check_code, check_storage
from mnist_pipe.fingerprint import code_version
from studies.common.ledger import Config, Result, Run

Compute = Callable[[Config, Mapping[str, Any]], Result]


def run_all(
    compute: Compute,
    configs: Sequence[Config],
    *,
    shared: Mapping[str, Any],
    available: Cluster,
    ledger: Ledger[Run],
    on_run: Callable[[Run], None] = lambda _: None,
) -> list[Run]:
    """`compute(config, shared)` for each of `configs`, on one CPU each, or one GPU where there are any.

    `compute` is a function of a module, so that a worker can import it; `shared` is in the memory of each node once.
    Runs start in the order given, so the longest should come first; they return in that order too, and `on_run` is
    called as each ends. Runs that `ledger` has are neither computed again nor passed to `on_run`. A run that is lost
    with its node starts again.

    Raises:
        UnavailableError: several machines without a storage that all of them reach, or one with other code.
        Exception: what a run raised; the others are given up.
    """
    check_storage(len(available.nodes))
    known = {digest(run.config): run for run in ledger.read()}
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
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        run = Run(config=config, **measured)
        key = digest(config)
        ledger.record(run, name=key)
        known[key] = run
        on_run(run)
    return [known[digest(config)] for config in configs]


def _timed(compute: Compute, config: Config, shared: Mapping[str, Any], *, code: str) -> dict[str, Any]:
    """The fields of `Run` apart from its configuration."""
    check_code(code, found=_version(compute))
    started, worked = time.perf_counter(), time.process_time()
    result = compute(config, shared)
    return {
        "result": result.figures,
        "intermediate": result.intermediate,
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - worked, 2),
        "address": ray.util.get_node_ip_address(),
    }


def _version(compute: Compute) -> str:
    """A digest of the library's code, of what the studies share, and of the modules beside the function's own."""
    source = inspect.getsourcefile(compute)
    assert source is not None
    modules = [path for folder in (__file__, source) for path in sorted(Path(folder).parent.glob("*.py"))]
    return digest([code_version(), *(sha256(path) for path in modules)])
