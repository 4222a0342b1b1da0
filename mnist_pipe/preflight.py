"""Checks that run before any work starts: names, parameters, number of workers, and where the results go."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mnist_pipe import atomic, command_line, hardware, paths
from mnist_pipe.cluster import dvc_stages, storage
from mnist_pipe.data import parquet, sources
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.errors import InputError, PipelineError, UnavailableError
from mnist_pipe.local import doctor
from mnist_pipe.models import MODELS
from mnist_pipe.params import loader
from mnist_pipe.params.schema import FORMATS, IngestParams, Params
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.schedules import SCHEDULES
from mnist_pipe.tuning.samplers import SAMPLERS
from mnist_pipe.tuning.schedulers import SCHEDULERS

RECORDED = ("search", "register", "report")
"""Stages that write to the registry."""
TRAINED = ("search", "train")
"""Stages that compute for minutes what is compared with the champion in the end."""
NEEDED_BYTES = 1_000_000_000
"""Free disk space, in bytes, that a stage needs: 100 MB for all outputs, the rest for Ray's session and MLflow."""


def load_params(path: Path) -> Params:
    """Read and check `path` by `loader.load`, with the names in MODELS, OPTIMIZERS, SCHEDULERS and their like.

    Raises:
        InputError: the file breaks rules; the message has one line for each error.
    """
    names: dict[str, Collection[str]] = {
        "models": MODELS,
        "optimizers": OPTIMIZERS,
        "schedules": SCHEDULES,
        "datasets": [*sources.SOURCES, *FORMATS],
        "published": sources.SOURCES,
        "samplers": SAMPLERS,
        "schedulers": SCHEDULERS,
    }
    return loader.load(path, names=names)


def sections(params: Params, names: Iterable[str]) -> dict[str, Any]:
    """Return the JSON-like value of each dotted name of params.yaml; `recipe` is the whole of the chosen recipe."""
    values = params.model_dump(mode="json", by_alias=True)
    values["recipe"] = values["recipes"][params.recipe]
    return {name: functools.reduce(operator.getitem, name.split("."), values) for name in names}


def check_workers(
    key: str,
    requested: int | str | Sequence[int],
    *,
    num_cpus: int,
    num_gpus: int,
    use_gpu: bool | str = "auto",
    where: str = "this machine",
) -> None:
    """Raise InputError if more workers are required than there are CPUs or GPUs; Ray would wait without end.

    Args:
        key: the dotted key of params.yaml that the message names.
        requested: the number of workers, `auto`, or an elastic range `[low, high]`, of which only `low` is required.
        num_cpus: the number of CPUs available.
        num_gpus: the number of GPUs available; each also needs a CPU.
        use_gpu: whether each worker needs a GPU; `auto` uses GPUs if there are any.
        where: the place that has these CPUs and GPUs, for the message.

    Raises:
        InputError: there are too few CPUs or GPUs; the message names the key and the number available.
        UnavailableError: there is no CPU at all, because no node has joined the cluster yet.
    """
    if not num_cpus:
        fix = "start deploy/node on a machine that trains"
        raise UnavailableError.missing("no node with CPUs", state="has joined Ray", where=where, fix=fix)
    if use_gpu is True and not num_gpus:
        rule, fix = "be auto or false without a GPU", "`mnist-pipe doctor` says why torch uses none"
        raise InputError.invalid(paths.PARAMS, "train.use_gpu", rule, got=f"true, while {where} has none", fix=fix)
    available, kind = num_cpus, "CPU"
    if num_gpus and use_gpu is not False:
        available, kind = min(num_gpus, num_cpus), "GPU"
    least = 0 if requested == "auto" else requested if isinstance(requested, int) else int(requested[0])
    if least > available:
        rule = f"be at most {available}, the number of {kind}s of {where}"
        fix = "lower it or connect a larger cluster with RAY_ADDRESS"
        if kind == "GPU" and where == "this machine":
            fix += ", or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs"
        raise InputError.invalid(paths.PARAMS, key, rule, got=requested, fix=fix)


def check_own(params: Params, *, root: Path) -> None:
    """Check that the path of the user's own images exists, for any data set: without it, DVC does not run `ingest`.

    Raises:
        InputError: there is no such path.
    """
    path = params.ingest.path
    if "://" not in path and not (root / path).exists():
        rule = "be an existing file or folder, because DVC watches it"
        raise InputError.invalid(paths.PARAMS, "ingest.path", rule, got=repr(path), fix="create it")


def check_files(params: IngestParams) -> None:
    """Check the user's own images in the current folder, but for what only decoding a picture tells.

    Raises:
        InputError: they are not those of the format.
        CorruptDataError: a file is damaged.
    """
    if params.dataset in FORMATS and "://" not in params.path:
        from mnist_pipe.data import ingestion

        ingestion.checked(params, path=params.path)


def facts_of_data(root: Path) -> Facts:
    """Return the facts about the training split; MNIST's if there is none, of which the stage says what is wrong."""
    try:
        return Facts.of(parquet.read_provenance(root / paths.TRAINING_SPLITS["train"]))
    except PipelineError:
        return MNIST


def doubt_about_validation(params: Params, *, root: Path) -> str:
    """Return why the gates cannot decide on the validation split, or an empty string if they can.

    The errors of the baseline tell: no model can be shown as better than one that is wrong on a few rows alone. They
    are known once `baseline` has run, which is before the search.
    """
    from mnist_pipe.registry import gates

    try:
        accuracy = atomic.read_json(root / paths.BASELINE_REPORT)["validation_accuracy"]
        num_rows = atomic.read_json(root / paths.DATA_REPORT)["rows"]["validation"]
    except (PipelineError, LookupError, TypeError):
        return ""  # the stage says what is wrong with its input
    limit, num_errors = params.register_.max_p_value_against_baseline, round((1 - accuracy) * num_rows)
    if num_errors >= gates.errors_needed(limit):
        return ""
    doubt = gates.too_few_errors("the baseline", num_errors, num_rows=num_rows, max_p_value=limit)
    return (
        f"{paths.SPLITS['validation']}: {doubt}; a candidate becomes the champion only if it is right on all rows. Add "
        "images, or raise normalize.validation_rows or register.max_p_value_against_baseline"
    )


def check_params(params: Params) -> None:
    """Check the number of workers in every section against this machine, by `check_workers`.

    If RAY_ADDRESS names a cluster, check nothing: its resources are unknown until the flow connects to it and checks.

    Raises:
        InputError: a section requires more workers or GPUs than this machine has.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return
    cpus, gpus = hardware.num_cpus(), hardware.num_gpus()
    train = params.train
    check_workers("train.num_workers", train.num_workers, use_gpu=train.use_gpu, num_cpus=cpus, num_gpus=gpus)
    concurrent = params.search.max_concurrent_trials
    check_workers("search.max_concurrent_trials", concurrent, num_cpus=cpus, num_gpus=gpus)


def check_gpus(stage: str) -> None:
    """Check that torch can use this machine's GPUs; print why a stage that trains uses none in spite of a driver.

    If RAY_ADDRESS names a cluster, check nothing: `ray_session.connected` asks its nodes.

    Raises:
        UnavailableError: torch is built for GPUs but cannot use them.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return
    found = hardware.check_gpus()
    if stage in TRAINED and hardware.driver_cuda() and not hardware.num_gpus():
        command_line.show(f"gpu: {found}", error=True)


def check_names(root: Path) -> None:
    """Check that the paths of the project and of temporary files are such that the libraries can use them.

    Raises:
        UnavailableError: one is not.
    """
    doctor.check_path(root)
    doctor.check_temporary_folder()


def check_places(root: Path, stage: str, *, on_cluster: bool) -> None:
    """Check that what a stage computes can be kept, before it computes for minutes.

    That is the GPUs, the disk, the folders of its outputs, DVC's cache, the shared storage, the registry and its
    champion. On the cluster the GPUs are those of the nodes, and the registry is the worker's.

    Raises:
        PipelineError: one of them cannot be used.
    """
    if not on_cluster:
        check_gpus(stage)
    doctor.check_disk(root, needed_bytes=NEEDED_BYTES)
    (root / paths.STATE).mkdir(exist_ok=True)
    outputs = dvc_stages.read(root)[stage].outputs
    for folder in {root / paths.STATE, *((root / output).parent for output in outputs)}:
        if folder.is_dir():
            doctor.check_writable(folder)
    doctor.check_cache(root)
    if os.environ.get(storage.VARIABLE) and not on_cluster:  # `trigger` checks it itself
        storage.project_storage(root).check()
    if stage in RECORDED and not on_cluster:
        from mnist_pipe.registry import store

        store.check(root)
    if stage in TRAINED and not on_cluster:
        from mnist_pipe.registry import registration

        registration.check_champion(root)
