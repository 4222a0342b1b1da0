"""What is checked before work starts: names, parameters, workers."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mnist_pipe import hardware, paths
from mnist_pipe.data.sources import SOURCES
from mnist_pipe.errors import InputError, UnavailableError
from mnist_pipe.models import MODELS
from mnist_pipe.params import loader
from mnist_pipe.params.schema import Params
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.schedules import SCHEDULES

NEEDED_BYTES = 1_000_000_000
"""Free space that a stage starts with: every output together is about 100 MB, Ray's session and MLflow the rest."""


def load_params(path: Path) -> Params:
    """`loader.load` with the names that MODELS, OPTIMIZERS, SCHEDULES and SOURCES hold."""
    names: dict[str, Collection[str]] = {
        "models": MODELS,
        "optimizers": OPTIMIZERS,
        "schedules": SCHEDULES,
        "datasets": SOURCES,
    }
    return loader.load(path, names=names)


def sections(params: Params, names: Iterable[str]) -> dict[str, Any]:
    """What params.yaml has under those names, as JSON has it; `recipe` is the whole of the one that is chosen."""
    values = params.model_dump(mode="json", by_alias=True)
    values["recipe"] = values["recipes"][params.recipe]
    return {name: functools.reduce(operator.getitem, name.split("."), values) for name in names}


def check_workers(
    key: str,
    asked: int | str | Sequence[int],
    *,
    num_cpus: int,
    num_gpus: int,
    use_gpu: bool | str = "auto",
    where: str = "this machine",
) -> None:
    """Refuse more workers or GPUs than there are. Ray itself would wait for the missing ones for ever.

    Of an elastic `[low, high]` the low must be there.

    Raises:
        InputError: naming the key and what there is.
        UnavailableError: there is no processor at all: a cluster whose machines have not joined.
    """
    if not num_cpus:
        fix = "start deploy/node on one that trains"
        raise UnavailableError.missing("no node with CPUs", state="has joined Ray", where=where, fix=fix)
    if use_gpu is True and not num_gpus:
        rule = "be auto or false without a GPU"
        raise InputError.invalid(paths.PARAMS, "train.use_gpu", rule, got=f"true, while {where} has none")
    available, kind = (num_gpus, "GPU") if num_gpus and use_gpu is not False else (num_cpus, "CPU")
    least = 0 if asked == "auto" else asked if isinstance(asked, int) else int(asked[0])
    if least > available:
        rule = f"be at most {available}, the number of {kind}s of {where}"
        fix = "lower it or connect a larger cluster with RAY_ADDRESS"
        raise InputError.invalid(paths.PARAMS, key, rule, got=asked, fix=fix)


def check_params(params: Params) -> None:
    """The checks of `check_workers` against this machine, for every section that asks for workers.

    Where RAY_ADDRESS names a cluster, nothing is known yet: the flow asks that cluster.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return
    cpus, gpus = hardware.num_cpus(), hardware.num_gpus()
    train = params.train
    check_workers("train.num_workers", train.num_workers, use_gpu=train.use_gpu, num_cpus=cpus, num_gpus=gpus)
    concurrent = params.search.max_concurrent_trials
    check_workers("search.max_concurrent_trials", concurrent, num_cpus=cpus, num_gpus=gpus)
