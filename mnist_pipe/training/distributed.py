"""Training on Ray: one cluster to join or to start, and data-parallel training with `TorchTrainer`."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe import machine
from mnist_pipe.data.table import read_normalized
from mnist_pipe.errors import InputError, PipelineError, describe, one_line
from mnist_pipe.training import batchnorm, checkpoint
from mnist_pipe.training.loop import DivergedError, Recipe, World, new_run, resident, train

_OBJECT_STORE_BYTES = 500_000_000
"""The data set is 172 MB as float32; Ray's default is 30 % of the memory."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the Ray that this process is connected to has."""

    num_cpus: int
    num_gpus: int
    address: str


_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # stock 2: an epoch takes one poll at least
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # stock 600: so long a hung worker goes unnoticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoard is named explicitly; CSV and JSON beside it are unread
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted search resumes from the ledger, so it need not save
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's pickled state is not used
}


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Join the Ray that RAY_ADDRESS names, otherwise start one on loopback for the time of the block."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}  # workers log to files; progress comes by `on_epoch`
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        context = ray.init(address=address, **quiet)
    else:
        context = ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    try:
        resources = ray.cluster_resources()
        yield Cluster(
            num_cpus=int(resources.get("CPU", 0)),
            num_gpus=int(resources.get("GPU", 0)),
            address=str(context.address_info["address"]),
        )
    finally:
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many workers of which kind."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: int


def scale(available: Cluster, *, num_workers: int | str, use_gpu: bool | str) -> Scale:
    """`auto` is every GPU of the cluster, or one CPU worker on all the processors of this machine."""
    gpu = available.num_gpus > 0 if use_gpu == "auto" else bool(use_gpu)
    if num_workers == "auto":
        num_workers = available.num_gpus if gpu else 1
    workers = int(num_workers)
    cpus = 1 if gpu else max(1, min(available.num_cpus, machine.num_cpus()) // workers)
    return Scale(num_workers=workers, use_gpu=gpu, cpus_per_worker=cpus)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished training run."""

    history: list[dict[str, float]]
    """One entry an epoch, as `loop.train` yields them."""
    state: Path
    """The folder of the last checkpoint, readable by `checkpoint.load_state`."""


def fit(
    recipe: Recipe,
    *,
    data: Path,
    name: str,
    storage: Path,
    scale: Scale,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
) -> TrainingResult:
    """Train `recipe` on the Parquet splits in `data` with Ray Train, from the newest valid checkpoint of `name` on.

    Checkpoints go to `storage/<name>.<attempt>`. Ray would resume under one name by itself, from a snapshot file that
    it writes in place; a kill within that write would make the name unusable. A fresh name for each attempt, and our
    own, verified checkpoints do not depend on it. `on_epoch` is called in a thread of this process.

    Raises:
        DivergedError: the loss is no longer finite.
        InputError: the batch does not divide among the workers.
        PipelineError: the workers failed more often than they may be restarted.
    """
    from ray.train.torch import TorchTrainer

    if recipe.batch_size % scale.num_workers:
        rule = f"be a multiple of the {scale.num_workers} workers"
        raise InputError(
            describe(
                "train",
                "batch_size",
                rule,
                got=recipe.batch_size,
                fix="set search.space.batch_size or train.num_workers",
            )
        )
    storage = storage.resolve()
    attempts = list(storage.glob(f"{name}.*"))
    newest = checkpoint.newest_valid(list(storage.glob(f"{name}.*/checkpoint_*")))
    progress = Queue(actor_options={"num_cpus": 0})
    follower = threading.Thread(target=_follow, args=(progress, on_epoch), daemon=True, name="training-progress")
    follower.start()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.to_dict(),
            "data": str(data.resolve()),
            "resume_from": str(newest) if newest else None,
            "num_threads": scale.cpus_per_worker,
            "progress": progress,
        },
        scaling_config=ScalingConfig(
            num_workers=scale.num_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{name}.{len(attempts)}",
            storage_path=str(storage),
            # Two are kept, so that one is whole at every moment.
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # The stock values are no retry for a lost worker and endless ones for the controller.
            failure_config=FailureConfig(max_failures=3, controller_failure_limit=2),
        ),
    )
    try:
        result = trainer.fit()
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as fault:
        cause = one_line(fault)[-300:]
        raise PipelineError(describe("train", "the workers", "finish", got=cause)) from fault
    finally:
        progress.put(None)
        follower.join(timeout=5)
    outcome: dict[str, Any] = result.return_value
    if outcome["diverged"]:
        raise DivergedError(outcome["diverged"])
    last = checkpoint.newest_valid(list(storage.glob(f"{name}.*/checkpoint_*")))
    assert last is not None
    return TrainingResult(history=outcome["history"], state=last)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    from ray.train.torch import get_device

    recipe, context, device = Recipe(**config["recipe"]), ray.train.get_context(), get_device()
    torch.set_num_threads(config["num_threads"])
    world = World()
    if context.get_world_size() > 1:
        world = World(rank=context.get_world_rank(), size=context.get_world_size(), sum=_all_reduce)
    training = resident(read_normalized(Path(config["data"]) / "train.parquet"), device=device)
    validation = resident(read_normalized(Path(config["data"]) / "validation.parquet"), device=device)
    model, optimizer = new_run(recipe, device=device)
    history: list[dict[str, float]] = []
    # Ray's own is newer: it was reported within this attempt, before a worker was lost.
    latest = ray.train.get_checkpoint()
    if latest is not None:
        with latest.as_directory() as folder:
            history = checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)["history"]
    elif config["resume_from"]:
        history = checkpoint.load_state(Path(config["resume_from"]), model=model, optimizer=optimizer)["history"]
    parallel: torch.nn.Module = model
    if world.size > 1:
        batchnorm.synchronize(model, device=device)
        parallel = DistributedDataParallel(model)
    epochs = train(
        recipe,
        model=parallel,
        optimizer=optimizer,
        training=training,
        validation=validation,
        first_epoch=len(history),
        world=world,
    )
    try:
        for metrics in epochs:
            history.append(metrics)
            if world.rank > 0:
                ray.train.report(metrics)
                continue
            with tempfile.TemporaryDirectory() as folder:
                progress = {"epoch": len(history), "history": history}
                checkpoint.save_state(Path(folder), model=model, optimizer=optimizer, progress=progress)
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
            # Only now, with the checkpoint in storage: an epoch that is shown is never trained again.
            config["progress"].put(metrics)
    except DivergedError as fault:
        # A retry would diverge again, so this is a result and not a failure.
        return {"history": history, "diverged": str(fault)}
    return {"history": history, "diverged": None}


def progress_line(metrics: dict[str, float], *, num_epochs: int) -> str:
    """One epoch as a person reads it."""
    return (
        f"epoch {metrics['epoch']}/{num_epochs}: train loss {metrics['train_loss']:.4f}, "
        f"validation loss {metrics['validation_loss']:.4f}, validation accuracy {metrics['validation_accuracy']:.2%}"
    )


def _follow(progress: Queue, on_epoch: Callable[[dict[str, float]], None]) -> None:
    while (metrics := progress.get()) is not None:
        on_epoch(metrics)


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
