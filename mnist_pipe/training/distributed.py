"""Data-parallel training on Ray, with `TorchTrainer`."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    TrainControllerState,
)
from ray.util.queue import Queue
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe.cluster import Scale, attempts, check_code, check_storage
from mnist_pipe.data.table import NormalizedSplit
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, describe, one_line
from mnist_pipe.identity import code_version
from mnist_pipe.storage import Storage
from mnist_pipe.training import batchnorm, checkpoint
from mnist_pipe.training.loop import (
    START,
    Batches,
    DivergedError,
    Position,
    Recipe,
    World,
    new_run,
    progress_line,
    resident,
    train,
)
from mnist_pipe.training.stream import Shards, Stream

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
    on_wait: Callable[[None], None] = lambda _: None,
) -> TrainingResult:
    """Train `recipe` with Ray Train, from the newest valid checkpoint of `name` on; its last one is copied to `state`.

    `Shards` are streamed from where they lie; a split goes through Ray's object store, so that only this process reads
    files, and so do the validation rows, which are few.

    Checkpoints go to `ray/<name>.<attempt>` of the storage. Ray would resume under one name by itself, from a snapshot
    file that it writes in place; a kill within that write would make the name unusable. A fresh name for each attempt,
    and our own, verified checkpoints do not depend on it. `on_epoch`, `on_start` with the workers' addresses each time
    they start, `on_save` when a checkpoint was taken because a machine is about to go, and `on_wait` where others have
    the machines, are called in a thread of this process.

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
    # On this machine: elsewhere it could be lost, and every worker with it.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    progress = Queue(actor_options={"num_cpus": 0, "label_selector": here})
    handlers = {"epoch": on_epoch, "start": on_start, "save": on_save, "wait": on_wait}
    follower = threading.Thread(target=_follow, args=(progress, handlers), daemon=True, name="training-progress")
    follower.start()
    trainer = (TorchTrainer if scale.num_nodes > 1 else _LocalTrainer)(
        _worker,
        train_loop_config={
            "recipe": recipe.to_dict(),
            "training": training if isinstance(training, Shards) else ray.put(training),
            "validation": ray.put(validation),
            "storage": storage,
            "resume_from": resume_from,
            "num_threads": scale.cpus_per_worker,
            "preemptible": scale.num_nodes > 1,
            "code": code_version(),
            "progress": progress,
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
            callbacks=[_Wait(progress)],
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
        progress.put(None)
        follower.join(timeout=5)
    outcome: dict[str, Any] = result.return_value
    if outcome["diverged"]:
        raise DivergedError(outcome["diverged"])
    restored = restore(storage, name=name, into=state)
    assert restored is not None
    return TrainingResult(history=outcome["history"], addresses=outcome["addresses"])


class _Controller(TrainController):  # type: ignore[misc]
    def __init__(self, variables: dict[str, str], **arguments: Any) -> None:
        os.environ.update(variables)
        constants.ENV_VARS_TO_PROPAGATE.clear()
        super().__init__(**arguments)


class _LocalTrainer(TorchTrainer):  # type: ignore[misc]
    """For one machine: with fewer processes to start, each of which takes its processors a second or two.

    Stock, controller and workers get variables in a runtime environment, for which no process is at hand; here the
    machine's Ray has them from `services` or `cluster`. And stock an actor cleans up what a dead controller has
    reserved; Ray takes that back itself when the driver ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=here)(_Controller)
        controller = actor.remote(constants.get_env_vars_to_propagate(), **arguments)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Wait(ControllerCallback):  # type: ignore[misc]  # Ray exports no types
    """What Ray's controller does while others have the machines.

    In an elastic run it would ask again without a pause, with a whole processor, and nobody would know what it does.
    """

    def __init__(self, progress: Queue) -> None:
        self._progress, self._waits = progress, 0

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        if not isinstance(current_state, InitializingState | RestartingState | ReschedulingState):
            return
        if current_state is previous_state:  # there was nothing to do
            time.sleep(_WAIT_SECONDS)
            self._waits += 1
        elif isinstance(current_state, ReschedulingState):  # Ray itself has waited, for a run of a fixed size
            self._waits += _WAITS
        if self._waits == _WAITS:
            self._progress.put(("wait", None))


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
    world = World()
    if context.get_world_size() > 1:
        world = World(rank=context.get_world_rank(), size=context.get_world_size(), sum=_all_reduce)
    addresses = _addresses(world)
    if world.rank == 0:
        config["progress"].put(("start", addresses))
    training: Batches
    if isinstance(config["training"], Shards):
        training = Stream(config["training"], seed=recipe.seed, num_epochs=recipe.num_epochs, device=device)
    else:
        training = resident(ray.get(config["training"]), device=device)
    validation = resident(ray.get(config["validation"]), device=device)
    model, optimizer = new_run(recipe, device=device)
    # What a worker prints is its actor's log in Ray's dashboard.
    say = partial(print, f"{context.get_experiment_name()}, worker {world.rank + 1} of {world.size}:", flush=True)
    done = _resume(config, model=model, optimizer=optimizer)
    history = done["history"]
    say(f"{recipe.model} {recipe.optimizer}, from epoch {len(history) + 1} on")
    parallel: torch.nn.Module = model
    if world.size > 1:
        batchnorm.synchronize(model, device=device)
        # Every worker's buffers are the same already: their batch norm is synchronised.
        parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def save(at: Position, metrics: dict[str, Any]) -> None:
        if world.rank > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            progress = {**vars(at), "history": history}
            checkpoint.save_state(Path(folder), model=model, optimizer=optimizer, progress=progress)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        # Only now, with the checkpoint in storage: an epoch that is shown is never trained again.
        config["progress"].put(("save" if at.step else "epoch", metrics))

    epochs = train(
        recipe,
        model=parallel,
        optimizer=optimizer,
        training=training,
        validation=validation,
        start=Position(epoch=done["epoch"], step=done["step"], sums=tuple(done["sums"])),
        world=world,
        is_leaving=_Preemption(world, device=device) if config["preemptible"] else lambda: False,
        save=lambda at: save(at, vars(at)),
    )
    try:
        for metrics in epochs:
            history.append(metrics)
            say(progress_line(metrics, num_epochs=recipe.num_epochs))
            save(Position(epoch=len(history)), metrics)
    except DivergedError as fault:
        # A retry would diverge again, so this is a result and not a failure.
        return {"history": history, "diverged": str(fault), "addresses": addresses}
    return {"history": history, "diverged": None, "addresses": addresses}


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

    def __init__(self, world: World, *, device: torch.device) -> None:
        self._device = device
        self._world, self._steps, self._due, self._asked = world, 0, 1, time.monotonic()
        self._known: set[str] = set()

    def __call__(self) -> bool:
        self._steps += 1
        if self._steps < self._due:
            return False
        now = time.monotonic()
        pace = max(1, round(_ASK_SECONDS * self._due / max(now - self._asked, 1e-3))) if self._world.rank == 0 else 0
        self._due = int(self._world.sum(torch.tensor([float(pace)], device=self._device)).item())
        self._steps, self._asked = 0, now
        info = ray.train.get_preemption_info()
        told = set(info.preempted_node_to_ranks) - self._known if info else set()
        self._known |= told
        return bool(told)


def _addresses(world: World) -> list[str]:
    """Where the workers are, by rank."""
    own = str(ray.util.get_node_ip_address())
    if world.size == 1:
        return [own]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, own)
    return [str(address) for address in found]


def _follow(progress: Queue, handlers: dict[str, Callable[[Any], None]]) -> None:
    while (event := progress.get()) is not None:
        kind, content = event
        handlers[kind](content)


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
