"""Data-parallel training on Ray with `TorchTrainer`."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.cluster.ray_session import Scale, attempts, check_code, check_storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, one_line
from mnist_pipe.fingerprint import code_version
from mnist_pipe.training import checkpoint, sync_batchnorm
from mnist_pipe.training.batches import Batches, Ranks, to_device
from mnist_pipe.training.loop import START, DivergedError, Position, new_run, progress_line, train
from mnist_pipe.training.process_group import NodeConfig
from mnist_pipe.training.progress import Exported, Forward, Listener, Progress
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.streaming import Shards, Stream

_PREEMPTION_POLL_SECONDS = 2.0
"""Polling interval, in seconds, for nodes that are about to leave; Ray gives such a node 30 s."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of a finished training run."""

    history: list[dict[str, float]]
    """Metrics of each epoch, as `loop.train` yields them."""
    addresses: list[str]
    """IP addresses of the workers of the last attempt, by rank."""


def fit(
    recipe: Recipe,
    *,
    training: NormalizedSplit | Shards,
    validation: NormalizedSplit,
    name: str,
    storage: Storage,
    state: Path,
    scale: Scale,
    progress: Progress,
) -> TrainingResult:
    """Train `recipe` with Ray Train, resume from the best valid checkpoint, and copy the last one to `state`.

    Checkpoints go to `ray/<name>.<attempt>` in the storage. Ray itself could resume under one name, but from a snapshot
    file that it writes in place: a kill during that write would make the name unusable. Therefore each attempt has a
    new name and resumes from this project's own, verified checkpoints.

    Without workers (`scale.max_workers` is 0) the loop runs in this process, in Ray Train's local mode. That is for
    debugging: the last checkpoint is kept only in `state`, and the run cannot resume.

    Args:
        recipe: everything that defines the run, apart from its data.
        training: `Shards`, which each worker streams from their files, or a split, which goes through Ray's object
            store so that only this process reads files.
        validation: the validation split, which is small and always goes through Ray's object store.
        name: the name of the run; the checkpoint with the most progress of all attempts under it is resumed.
        storage: the storage of the checkpoints.
        state: the folder into which the last checkpoint is copied.
        scale: the number of workers, and the resources of each.
        progress: the callbacks for events of the run.

    Raises:
        DivergedError: the loss is no longer finite.
        CorruptDataError: a page of `training` does not match its checksum.
        UnavailableError: the cluster has several nodes, but no storage that all of them reach is set.
        InputError: a batch has fewer images than there are workers.
        PipelineError: the workers failed more often than they may be restarted.
    """
    check_storage(scale.num_nodes)
    if recipe.batch_size < scale.max_workers:
        rule = f"be at least the number of workers, {scale.max_workers}"
        fix = "raise search.space.batch_size or lower train.num_workers"
        raise InputError.invalid("train", "batch_size", rule, got=recipe.batch_size, fix=fix)
    is_local = scale.max_workers == 0
    resume_from = None if is_local else restore(storage, name=name, into=state)
    num_images = training.num_rows if isinstance(training, Shards) else len(training.labels)
    progress = Exported(progress, exporter=Exporter(stage="train", run=name), num_images=num_images)
    rows = training if isinstance(training, Shards) else ray.put(training)
    validation_rows = ray.put(validation)
    del training, validation  # Ray's object store holds them, so this process need not
    with Listener(progress, is_local=is_local) as listener:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "recipe": recipe.to_dict(),
                "training": rows,
                "validation": validation_rows,
                "storage": storage,
                "resume_from": resume_from,
                "local_state": state if is_local else None,
                "events": listener.events,
                "num_threads": scale.cpus_per_worker,
                "preemptible": scale.num_nodes > 1,
                "code": code_version(),
            },
            torch_config=NodeConfig(),
            scaling_config=ScalingConfig(
                num_workers=_num_workers(scale),
                use_gpu=scale.use_gpu,
                resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.use_gpu else {})},
                # Gradients cross the network once a step: on GPUs that takes longer than the step itself.
                placement_strategy="PACK" if scale.use_gpu else "SPREAD",
                elastic_resize_monitor_interval_s=20,
            ),
            run_config=RunConfig(
                name=f"{name}.{len(attempts(storage, name))}",
                storage_filesystem=storage.filesystem,
                storage_path=storage.path("ray"),
                # With two checkpoints kept, one of them is complete at every moment.
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                # By default Ray does not retry after a lost worker, and retries without limit after a controller
                # failure. A start of the workers that does not get its resources within 10 s is a controller failure,
                # so with 30 of them a run of fixed size waits 5 min for resources that other jobs occupy.
                failure_config=FailureConfig(max_failures=3, controller_failure_limit=30),
                callbacks=[Forward(listener.events)],
            ),
        )
        try:
            result = _fit(trainer)
        except (ray.exceptions.RayError, TrainingFailedError) as error:
            for known in getattr(error, "worker_failures", {}).values():
                if isinstance(known, PipelineError):
                    raise known from None
            reason = f"failed: {one_line(error)[-300:]}"
            raise PipelineError.missing("the workers", state=reason, where="train") from error
    outcome: dict[str, Any] = result.return_value
    if outcome["diverged"]:
        raise DivergedError(outcome["diverged"])
    if not is_local:
        restored = restore(storage, name=name, into=state)
        assert restored is not None
    return TrainingResult(history=outcome["history"], addresses=listener.addresses)


def _fit(trainer: TorchTrainer) -> Result:
    """Return the result of `trainer.fit()`; on Ctrl-C or SIGTERM, let Ray abort the run and release its resources.

    While Ray trains, it handles SIGINT: it aborts the run, calls `sys.exit(0)`, and leaves its handler installed.
    Without the abort the next elastic run waits until the reservation of this one expires, after 180 s.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except (ray.exceptions.RayError, TrainingFailedError):
        raise
    except BaseException as stop:
        # Ray's handler of SIGINT exits with 0 after the abort, that of SIGTERM with 15 and without one.
        is_aborted = isinstance(stop, SystemExit) and not stop.code
        if not is_aborted and is_main and signal.getsignal(signal.SIGINT) is not before:
            with suppress(SystemExit):
                signal.raise_signal(signal.SIGINT)
        if isinstance(stop, SystemExit):
            raise KeyboardInterrupt from None
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


def restore(storage: Storage, *, name: str, into: Path) -> str | None:
    """Copy the checkpoint of `name` with the most progress into the folder `into`, and return its key.

    A checkpoint whose manifest does not match, because a kill interrupted its upload, is skipped. If there is no valid
    checkpoint, return None.
    """
    farthest: tuple[tuple[int, int], str] | None = None
    for attempt in attempts(storage, name):
        for checkpoint_name in storage.names(attempt):
            if not checkpoint_name.startswith("checkpoint_") or checkpoint_name.endswith(".json"):
                continue  # Ray's own files
            key = f"{attempt}/{checkpoint_name}"
            into.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=into.parent) as folder:
                storage.fetch(key, Path(folder))
                try:
                    position = checkpoint.position(Path(folder))
                except CorruptDataError:
                    continue
                if farthest is None or position > farthest[0]:
                    farthest = position, key
                    shutil.rmtree(into, ignore_errors=True)
                    shutil.copytree(folder, into)
    return farthest[1] if farthest else None


def _num_workers(scale: Scale) -> int | tuple[int, int]:
    """Return the argument of `ScalingConfig`: a number of workers, or the bounds of an elastic run."""
    fixed = scale.min_workers == scale.max_workers
    return scale.max_workers if fixed else (scale.min_workers, scale.max_workers)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run the training loop in a Ray Train worker, and return its history and, if it diverged, the error's message."""
    from ray.train.torch import get_device

    check_code(config["code"])
    recipe, context, device = Recipe(**config["recipe"]), ray.train.get_context(), get_device()
    torch.set_num_threads(config["num_threads"])
    ranks = Ranks()
    if context.get_world_size() > 1:
        ranks = Ranks(rank=context.get_world_rank(), size=context.get_world_size(), all_reduce=_all_reduce)
    config["events"].put(("worker", (ranks.rank, ranks.size, ray.util.get_node_ip_address())))
    training: Batches
    if isinstance(config["training"], Shards):
        facts = config["training"].facts
        training = Stream(config["training"], num_epochs=recipe.num_epochs, device=device)
    else:
        split = ray.get(config["training"])
        facts, training = split.facts, to_device(split, device=device)
    validation = to_device(ray.get(config["validation"]), device=device)
    model, optimizer = new_run(recipe, device=device, facts=facts)
    # Ray's dashboard shows what a worker prints as the log of its actor.
    print_line = partial(
        print, f"{context.get_experiment_name()}, worker {ranks.rank + 1} of {ranks.size}:", flush=True
    )
    done = _resume(config, model=model, optimizer=optimizer)
    history = done["history"]
    print_line(f"training {recipe.model} with {recipe.optimizer} from epoch {len(history) + 1}")
    parallel: torch.nn.Module = model
    if ranks.size > 1:
        sync_batchnorm.synchronize(model)
        # No broadcast is needed: with synchronised batch norm, every worker's buffers are already the same.
        parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def save(at: Position, metrics: dict[str, Any]) -> None:
        if ranks.rank > 0:
            ray.train.report(metrics)
            return
        with _checkpoint_folder(config["local_state"]) as folder:
            state = {**vars(at), "history": history}
            checkpoint.save_state(Path(folder), model=model, optimizer=optimizer, progress=state)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        if config["local_state"]:  # in local mode Ray calls no callbacks
            config["events"].put(("report", metrics))

    epochs = train(
        recipe,
        model=parallel,
        optimizer=optimizer,
        training=training,
        validation=validation,
        start=Position(epoch=done["epoch"], step=done["step"], sums=tuple(done["sums"])),
        ranks=ranks,
        after_step=_Preemption(ranks, device=device, save=save) if config["preemptible"] else lambda _: None,
    )
    try:
        for metrics in epochs:
            history.append(metrics)
            print_line(progress_line(metrics, num_epochs=recipe.num_epochs))
            save(Position(epoch=len(history)), metrics)
    except DivergedError as error:
        # A retry would diverge again, so the error is returned as a result and does not fail the worker.
        return {"history": history, "diverged": str(error)}
    return {"history": history, "diverged": None}


def _checkpoint_folder(local_state: Path | None) -> AbstractContextManager[Path | str]:
    """Return a temporary folder for a checkpoint that is uploaded, or in local mode the folder where it stays."""
    return nullcontext(local_state) if local_state else tempfile.TemporaryDirectory()


def _resume(config: dict[str, Any], *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the latest checkpoint, if any, into the model and its optimizer, and return its progress."""
    # Ray's own checkpoint is newer: it was reported within this attempt, before a worker was lost.
    if latest := ray.train.get_checkpoint():
        with latest.as_directory() as folder:
            return checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)
    if config["resume_from"]:
        with tempfile.TemporaryDirectory() as folder:
            config["storage"].fetch(config["resume_from"], Path(folder))
            return checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)
    return {**vars(START), "history": []}


class _Preemption:
    """Callback after each step that saves a checkpoint when a node of this run is about to leave.

    Polling Ray is a barrier over all workers: it is too slow for each step, and all workers must poll at the same step.
    The worker of rank 0 therefore measures the steps per polling interval, and all workers use its number.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device, save: Callable[[Position, dict[str, Any]], None]) -> None:
        self._device, self._save = device, save
        self._ranks, self._steps, self._due, self._polled_at = ranks, 0, 1, time.monotonic()
        self._known: set[str] = set()

    def __call__(self, position: Callable[[], Position]) -> None:
        self._steps += 1
        if self._steps < self._due:
            return
        now = time.monotonic()
        pace = 0
        if self._ranks.rank == 0:
            pace = max(1, round(_PREEMPTION_POLL_SECONDS * self._due / max(now - self._polled_at, 1e-3)))
        self._due = int(self._ranks.all_reduce(torch.tensor([float(pace)], device=self._device)).item())
        self._steps, self._polled_at = 0, now
        info = ray.train.get_preemption_info()
        leaving = set(info.preempted_node_to_ranks) - self._known if info else set()
        self._known |= leaving
        if leaving:
            at = position()
            self._save(at, dict(vars(at)))


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
