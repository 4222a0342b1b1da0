"""Data-parallel training on Ray, with `TorchTrainer`."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe.cluster.ray_session import Scale, attempts, check_code, check_storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, describe, one_line
from mnist_pipe.fingerprint import code_version
from mnist_pipe.training import checkpoint, sync_batchnorm
from mnist_pipe.training.batches import Batches, Ranks, to_device
from mnist_pipe.training.loop import START, DivergedError, Position, new_run, progress_line, train
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.streaming import Shards, Stream

_RUN_ID = "run_id.json"
"""In the folder of an attempt: under which name Ray has reserved its processors."""
_WAIT_SECONDS = 0.5
"""Between two looks at what the cluster has left for us."""
_WAITS = 20
"""So many looks, and somebody is told that we wait."""
_ASK_SECONDS = 2.0
"""Between two questions whether a machine is about to go; Ray gives it 30 s."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished training run."""

    history: list[dict[str, float]]
    """One entry an epoch, as `loop.train` yields them."""
    addresses: list[str]
    """Where the workers of the last attempt were, by rank."""


def fit(
    recipe: Recipe,
    *,
    training: NormalizedSplit | Shards,
    validation: NormalizedSplit,
    name: str,
    storage: Storage,
    state: Path,
    scale: Scale,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    on_start: Callable[[list[str]], None] = lambda _: None,
    on_save: Callable[[dict[str, Any]], None] = lambda _: None,
    on_wait: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train `recipe` with Ray Train, from the newest valid checkpoint of `name` on; its last one is copied to `state`.

    `Shards` are streamed from where they lie; a split goes through Ray's object store, so that only this process reads
    files, and so do the validation rows, which are few.

    Checkpoints go to `ray/<name>.<attempt>` of the storage. Ray would resume under one name by itself, from a snapshot
    file that it writes in place; a kill within that write would make the name unusable. A fresh name for each attempt,
    and our own, verified checkpoints do not depend on it. `on_epoch` is called with the metrics of each epoch whose
    checkpoint is in the storage, `on_start` with the workers' addresses each time they start, `on_save` when a
    checkpoint was taken because a machine is about to go, and `on_wait` where others have the machines.

    Raises:
        DivergedError: the loss is no longer finite.
        CorruptDataError: a page of `training` does not match its checksum.
        EnvironmentFault: several machines without a storage that all of them reach.
        InputError: there are fewer images in a batch than workers.
        PipelineError: the workers failed more often than they may be restarted.
    """
    from ray.train.torch import TorchConfig

    check_storage(scale.num_nodes)
    if recipe.batch_size < scale.max_workers:
        rule = f"be at least the number of workers, {scale.max_workers}"
        fix = "set search.space.batch_size or train.num_workers"
        raise InputError(describe("train", "batch_size", rule, got=recipe.batch_size, fix=fix))
    resume_from = restore(storage, name=name, into=state)
    earlier = attempts(storage, name)
    for attempt in earlier:
        _release(storage.read_json(f"{attempt}/{_RUN_ID}"))
    teller = _Teller(on_epoch=on_epoch, on_start=on_start, on_save=on_save, on_wait=on_wait)
    # Workers would get these in a runtime environment, for which Ray has no process at hand. Theirs was started so.
    constants.ENV_VARS_TO_PROPAGATE.clear()
    rows = training if isinstance(training, Shards) else ray.put(training)
    validation_rows = ray.put(validation)
    del training, validation  # Ray has them
    trainer = _Trainer(
        _worker,
        train_loop_config={
            "recipe": recipe.to_dict(),
            "training": rows,
            "validation": validation_rows,
            "storage": storage,
            "resume_from": resume_from,
            "num_threads": scale.cpus_per_worker,
            "preemptible": scale.num_nodes > 1,
            "code": code_version(),
        },
        torch_config=TorchConfig(timeout_s=60),  # stock 1800: so long a worker waits for one that hangs
        scaling_config=ScalingConfig(
            num_workers=_elastic(scale),
            use_gpu=scale.use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.use_gpu else {})},
            placement_strategy="SPREAD",
            elastic_resize_monitor_interval_s=20,
        ),
        run_config=RunConfig(
            name=f"{name}.{len(earlier)}",
            storage_filesystem=storage.filesystem,
            storage_path=storage.path("ray"),
            # Two are kept, so that one is whole at every moment.
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # The stock values are no retry for a lost worker and endless ones for the controller, whose failures are
            # the 10 s that a start may wait: for 5 min others may have what a run of a fixed size needs.
            failure_config=FailureConfig(max_failures=3, controller_failure_limit=30),
            callbacks=[teller],
        ),
    )
    run_id = trainer.train_run_context.run_id
    storage.write_json(f"ray/{trainer.run_config.name}/{_RUN_ID}", run_id)
    try:
        result = trainer.fit()
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as fault:
        for known in getattr(fault, "worker_failures", {}).values():
            if isinstance(known, PipelineError):
                raise known from None
        cause = one_line(fault)[-300:]
        raise PipelineError(describe("train", "the workers", "finish", got=cause)) from fault
    finally:
        _release(run_id)
    outcome: dict[str, Any] = result.return_value
    if outcome["diverged"]:
        raise DivergedError(outcome["diverged"])
    restored = restore(storage, name=name, into=state)
    assert restored is not None
    return TrainingResult(history=outcome["history"], addresses=teller.addresses)


class _Workers(WorkerGroup):  # type: ignore[misc]  # Ray exports no types
    """Workers whose controller is no actor; stock each gets a handle of it, to ask it for what all have reported.

    Nor do they get the callbacks of the run, which are for the controller: to unpickle them a worker would import what
    they close over, which for ours is Prefect.
    """

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        run = self._train_run_context
        run = replace(run, run_config=replace(run.run_config, callbacks=[]))
        started = [
            worker.actor.init_train_context.remote(
                train_run_context=run,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[number] for name, values in train_context_args.items()},
            )
            for number, worker in enumerate(workers)
        ]
        ray.get(started)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Workers


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train with its controller in this process.

    Stock the controller is an actor, another gives back what a dead controller has reserved, a third hands out Ray Data
    that we do not pass, and what the controller learns needs a queue, a fourth, to come here. Each is a process that
    imports for a second or two before the first worker starts. In this process the controller ends with its run, and
    Ray takes back what the driver has reserved.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = PlacementGroupCleanerCallback | DatasetsCallback
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        controller = _Controller(**arguments)
        # Not `asyncio.run`, which would tell the controller of a Ctrl-C only when it next waits.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(controller.run())
        finally:
            loop.close()
        return controller.get_result()


class _Teller(ControllerCallback, WorkerGroupCallback, ReportCallback):  # type: ignore[misc]
    """Tells what Ray's controller learns."""

    def __init__(
        self,
        *,
        on_epoch: Callable[[dict[str, float]], None],
        on_start: Callable[[list[str]], None],
        on_save: Callable[[dict[str, Any]], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._on_epoch, self._on_start, self._on_save, self._on_wait = on_epoch, on_start, on_save, on_wait
        self._waits = 0
        self.addresses: list[str] = []
        """Where the workers of the last start are, by rank."""

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        workers = sorted(worker_group.get_workers(), key=lambda worker: worker.distributed_context.world_rank)
        self.addresses = [str(worker.metadata.node_ip) for worker in workers]
        self._waits = 0
        self._on_start(self.addresses)

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:  # noqa: ARG002
        """After the checkpoint is in the storage: an epoch that is shown is never trained again."""
        first = metrics[0]
        (self._on_save if "step" in first else self._on_epoch)(first)

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Wait while others have the machines.

        In an elastic run Ray would ask again without a pause, with a whole processor, and nobody would know what it
        does.
        """
        if not isinstance(current_state, InitializingState | RestartingState | ReschedulingState):
            return
        before = self._waits
        if current_state is previous_state:  # there was nothing to do
            time.sleep(_WAIT_SECONDS)
            self._waits += 1
        elif isinstance(current_state, ReschedulingState):  # Ray itself has waited
            self._waits += _WAITS
        if before < _WAITS <= self._waits:
            self._on_wait()


def _release(run_id: str | None) -> None:
    """Give back what Ray Train has reserved for a run.

    It does so itself, but not where its driver is stopped or killed in mid-run. What is reserved an elastic run counts
    as taken, so that one that starts soon after would wait until the reservation is 180 s old.
    """
    with suppress(ValueError, ray.exceptions.RayError):  # the cluster is gone, and its reservations with it
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=5)


def restore(storage: Storage, *, name: str, into: Path) -> str | None:
    """Copy the checkpoint of `name` that got farthest into the folder `into`, and return its key; None without one.

    A checkpoint whose manifest does not hold, because a kill cut it short, is passed over.
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


def _elastic(scale: Scale) -> int | tuple[int, int]:
    fixed = scale.min_workers == scale.max_workers
    return scale.max_workers if fixed else (scale.min_workers, scale.max_workers)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    from ray.train.torch import get_device

    check_code(config["code"])
    recipe, context, device = Recipe(**config["recipe"]), ray.train.get_context(), get_device()
    torch.set_num_threads(config["num_threads"])
    ranks = Ranks()
    if context.get_world_size() > 1:
        ranks = Ranks(rank=context.get_world_rank(), size=context.get_world_size(), all_reduce=_all_reduce)
    training: Batches
    if isinstance(config["training"], Shards):
        training = Stream(config["training"], seed=recipe.seed, num_epochs=recipe.num_epochs, device=device)
    else:
        training = to_device(ray.get(config["training"]), device=device)
    validation = to_device(ray.get(config["validation"]), device=device)
    model, optimizer = new_run(recipe, device=device)
    # What a worker prints is its actor's log in Ray's dashboard.
    say = partial(print, f"{context.get_experiment_name()}, worker {ranks.rank + 1} of {ranks.size}:", flush=True)
    done = _resume(config, model=model, optimizer=optimizer)
    history = done["history"]
    say(f"{recipe.model} {recipe.optimizer}, from epoch {len(history) + 1} on")
    parallel: torch.nn.Module = model
    if ranks.size > 1:
        sync_batchnorm.synchronize(model, device=device)
        # Every worker's buffers are the same already: their batch norm is synchronised.
        parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def save(at: Position, metrics: dict[str, Any]) -> None:
        if ranks.rank > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            progress = {**vars(at), "history": history}
            checkpoint.save_state(Path(folder), model=model, optimizer=optimizer, progress=progress)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    epochs = train(
        recipe,
        model=parallel,
        optimizer=optimizer,
        training=training,
        validation=validation,
        start=Position(epoch=done["epoch"], step=done["step"], sums=tuple(done["sums"])),
        ranks=ranks,
        is_leaving=_Preemption(ranks, device=device) if config["preemptible"] else lambda: False,
        save=lambda at: save(at, vars(at)),
    )
    try:
        for metrics in epochs:
            history.append(metrics)
            say(progress_line(metrics, num_epochs=recipe.num_epochs))
            save(Position(epoch=len(history)), metrics)
    except DivergedError as fault:
        # A retry would diverge again, so this is a result and not a failure.
        return {"history": history, "diverged": str(fault)}
    return {"history": history, "diverged": None}


def _resume(config: dict[str, Any], *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the latest state into the model and its optimizer and return its progress."""
    # Ray's own is newer: it was reported within this attempt, before a worker was lost.
    if latest := ray.train.get_checkpoint():
        with latest.as_directory() as folder:
            return checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)
    if config["resume_from"]:
        with tempfile.TemporaryDirectory() as folder:
            config["storage"].fetch(config["resume_from"], Path(folder))
            return checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)
    return {**vars(START), "history": []}


class _Preemption:
    """Whether a machine of this run has been told to go: true once for each such word, about every two seconds asked.

    To ask is a barrier over all workers, too slow for each step, and all must ask at the same step: so the first worker
    measures, and all take its number of steps until the next time.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device) -> None:
        self._device = device
        self._ranks, self._steps, self._due, self._asked = ranks, 0, 1, time.monotonic()
        self._known: set[str] = set()

    def __call__(self) -> bool:
        self._steps += 1
        if self._steps < self._due:
            return False
        now = time.monotonic()
        pace = max(1, round(_ASK_SECONDS * self._due / max(now - self._asked, 1e-3))) if self._ranks.rank == 0 else 0
        self._due = int(self._ranks.all_reduce(torch.tensor([float(pace)], device=self._device)).item())
        self._steps, self._asked = 0, now
        info = ray.train.get_preemption_info()
        told = set(info.preempted_node_to_ranks) - self._known if info else set()
        self._known |= told
        return bool(told)


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
