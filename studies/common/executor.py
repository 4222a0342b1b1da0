"""Execution of one function on many configurations, on Ray's CPUs and GPUs; each run is recorded as soon as it ends."""

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
"""Function that computes one run, given its configuration and the data that all runs share."""


def run_all(
    compute: Compute,
    configs: Sequence[Config],
    *,
    shared: Mapping[str, Any],
    available: Cluster,
    ledger: Ledger[Run],
    on_gpu: Callable[[Config], bool] = lambda _: False,
    on_run: Callable[[Run], None] = lambda _: None,
) -> list[Run]:
    """Return `compute(config, shared)` for each of `configs`, run on one CPU each, and a GPU if it computes on one.

    Runs start in the order given, so the longest should come first; they are returned in that order too. A run that is
    lost with its node starts again.

    Args:
        compute: a function of a module, so that a worker can import it.
        configs: the configurations of the runs.
        shared: what all runs read; each node holds it in memory once.
        available: the CPUs, GPUs and nodes to run on.
        ledger: where runs are recorded; a run that it already has is not computed again.
        on_gpu: whether a run computes on a GPU if there are any. From the others, every GPU of their node is hidden.
        on_run: called as each run ends, but not for those that `ledger` already has.

    Raises:
        UnavailableError: there are several nodes without a storage that all of them reach, or a node has other code.
        Exception: what a run raised; the other runs are abandoned.
    """
    check_storage(len(available.nodes))
    known = {digest(run.config): run for run in ledger.read()}
    code = _version(compute)
    data = ray.put(dict(shared))
    task = ray.remote(num_cpus=1, max_retries=3)(_timed)
    # Ray leaves the variable alone for a task without a GPU, and torch would take the first one.
    hidden = {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": "-1"}}}

    def start(config: Config) -> Any:
        kind = ({"num_gpus": 1} if on_gpu(config) else hidden) if available.num_gpus else {}
        return task.options(name=compute.__module__, **kind).remote(compute, config, data, code=code)

    open_runs = {start(config): config for config in configs if digest(config) not in known}
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
    """Compute one run and return the fields of its `Run` apart from the configuration."""
    check_code(code, found=_version(compute))
    started, worked = time.perf_counter(), time.process_time()
    result = compute(config, shared)
    return {
        "result": result.metrics,
        "intermediate": result.intermediate,
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - worked, 2),
        "address": ray.util.get_node_ip_address(),
    }


def _version(compute: Compute) -> str:
    """Return a digest of the library's code, of `studies/common`, and of the modules beside that of `compute`."""
    source = inspect.getsourcefile(compute)
    assert source is not None
    modules = [path for folder in (__file__, source) for path in sorted(Path(folder).parent.glob("*.py"))]
    return digest([code_version(), *(sha256(path) for path in modules)])
