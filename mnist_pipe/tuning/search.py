"""Hyper-parameter search with Ray Tune: Optuna proposes, ASHA stops, a ledger remembers.

Where no proposal and no trial's length depends on another trial, which is `random` with `fifo`, all proposals are drawn
at once, and those of one shape train together where that is faster: see `vmapped`.

The ledger is one JSON file for each finished trial, in the storage as soon as it ends. A search that was killed and
runs again asks Optuna for the same proposals (same seed) and a trial that the ledger knows reports its recorded epochs
at once, so the sampler and the scheduler see exactly what they saw before. Tune's own state is pickle, written in
place; it is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
import ray
import torch
from ray import tune
from ray.air._internal import usage
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.ray_session import Cluster, attempts, check_storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.errors import PipelineError, describe
from mnist_pipe.fingerprint import code_version
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.tuning.trial import MEMBERS, METRIC, PACK, Trial, config_of, proposals_of, trial_recipe
from mnist_pipe.tuning.vmapped import packs

_FIGURES = (METRIC, "validation_loss", "train_loss", "train_accuracy", "diverged")  # of an epoch, as far as it has them


class Space(Protocol):
    """What `params.yaml` holds under `search.space`; see `params.SpaceParams`."""

    @property
    def model(self) -> Sequence[str]: ...
    @property
    def optimizer(self) -> Sequence[str]: ...
    @property
    def learning_rate(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def weight_decay(self) -> Sequence[float]: ...
    @property
    def batch_size(self) -> Sequence[int]: ...
    @property
    def rotation_degrees(self) -> Sequence[float]: ...
    @property
    def translation_pixels(self) -> Sequence[float]: ...


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial that has ended."""

    trial: int
    """In the order of the proposals, from 1."""
    status: str
    """finished, stopped (by the scheduler), diverged or failed."""
    config: dict[str, Any]
    """What was searched: one value for each key of `Space`."""
    history: list[dict[str, float]]
    """One entry an epoch, as `loop.train` yields them."""
    address: str = ""
    """Of the machine where it ended."""

    @property
    def score(self) -> float:
        """Validation accuracy after the last epoch; -1 where there is none that counts."""
        if self.status in ("diverged", "failed") or not self.history:
            return -1.0
        return self.history[-1][METRIC]


def search(
    *,
    space: Space,
    training: NormalizedSplit,
    validation: NormalizedSplit,
    available: Cluster,
    storage: Storage,
    name: str,
    num_trials: int,
    num_epochs: int,
    algorithm: str,
    scheduler: str,
    reduction_factor: int,
    max_concurrent_trials: int | str,
    seed: int,
    recipe: Mapping[str, Any],
    model_params: Mapping[str, dict[str, Any]],
    points: Sequence[Mapping[str, Any]] | None = None,
    on_trial: Callable[[TrialRecord], None] = lambda _: None,
) -> list[TrialRecord]:
    """Run the search and return every trial in the order of the proposals; `on_trial` is called as each ends.

    The first trials are `points`, by the names that Optuna has for `space`: see `_propose`. Where there are none, the
    first is `recipe` itself, an operating point as `params.RecipeParams` has it, where `space` holds it. All keep what
    of it is not searched, apart from its length.

    Where machines come and go `auto` runs as many trials as there is room for, at every moment. With one trial at a
    time the result is the same from run to run. With more, ASHA and TPE decide by the order in which trials happen to
    report.

    Raises:
        EnvironmentFault: several machines without a storage that all of them reach.
        PipelineError: no trial ended with a finite loss.
    """
    check_storage(len(available.nodes))
    concurrent = _concurrent_trials(max_concurrent_trials, available=available)
    on_gpu = available.num_gpus > 0
    num_threads = max(1, min(min(available.nodes), available.num_cpus // (concurrent or 1)))
    num_processes = available.num_gpus if on_gpu else available.num_cpus // num_threads
    known = {digest(record.config): record for record in read_ledger(storage, name)}
    sampler = optuna.samplers.RandomSampler(seed) if algorithm == "random" else optuna.samplers.TPESampler(seed=seed)
    book = _Ledger(storage, name, num_epochs=num_epochs, known=known, on_trial=on_trial)
    # Optuna's own line for every trial would come on top of ours.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = {
        "known": {key: record.history for key, record in known.items() if record.status != "failed"},
        "num_epochs": num_epochs,
        "seed": seed,
        "recipe": dict(recipe),
        "model_params": dict(model_params),
        "num_threads": num_threads,
        "code": code_version(),
    }
    if points is None:
        points = _start_points(recipe, space=space)
    if algorithm == "random" and scheduler == "fifo":
        proposals = _draw(num_trials, space=space, points=points, sampler=sampler)
        together = _packs(proposals, given, on_gpu=on_gpu, num_processes=num_processes)
        param_space = {PACK: tune.grid_search(together)}
        sampling: dict[str, Any] = {"num_samples": 1}
    else:
        propose = partial(_propose, space=space)
        param_space = {}
        sampling = {
            "num_samples": num_trials,
            "search_alg": OptunaSearch(
                space=propose, points_to_evaluate=list(map(dict, points)), sampler=sampler, metric=METRIC, mode="max"
            ),
        }
    trainable = tune.with_parameters(Trial, training=training, validation=validation, **given)
    del training, validation  # Ray has them
    trainable.__name__ = name  # which Ray's dashboard shows as the name of its actors
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": 1} if on_gpu else {"cpu": num_threads}),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a new process for each trial would import torch again
            scheduler=_scheduler(scheduler, num_epochs=num_epochs, reduction_factor=reduction_factor),
            trial_dirname_creator=lambda trial: _folder(proposals_of(trial.config)[0]),
            **sampling,
        ),
        param_space=param_space,
        run_config=tune.RunConfig(
            name=f"{name}.{len(attempts(storage, name))}",
            storage_filesystem=storage.filesystem,
            storage_path=storage.path("ray"),
            # Stock 0: a trial would be lost with its machine. It starts again from its first epoch.
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger is what a search leaves
            callbacks=[_Curves(), book],
            verbose=0,
        ),
    )
    # Tune would hand each trial our credentials in its runtime environment, which Ray logs and shows in its dashboard.
    # Every machine of a cluster has its own.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update({name for name in os.environ if name.startswith("AWS_")})
    if concurrent is None:
        # For every process that may be starting, and one for the next that becomes free. Stock 1, which takes turns.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_processes + 1)
    usage.tag_callbacks = lambda _: False  # Ray's telemetry, which is off, would import mlflow to count callbacks: 1 s
    tuner.fit()
    if not any(record.score >= 0 for record in book.records):
        got = ", ".join(sorted({record.status for record in book.records})) or "no trial"
        fix = "look at the learning rates in search.space"
        raise PipelineError(describe("search", "one trial at least", "end with a finite loss", got=got, fix=fix))
    return sorted(book.records, key=lambda record: record.trial)


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """The highest validation accuracy; of equals the lower validation loss, then the earlier."""
    return max(records, key=lambda r: (r.score, -r.history[-1]["validation_loss"] if r.score >= 0 else 0.0, -r.trial))


def read_ledger(storage: Storage, name: str) -> list[TrialRecord]:
    """The trials of the search `name` that had ended; a file that is no record is passed over."""
    records = []
    for file in storage.names(ledger_key(name)):
        try:
            records.append(TrialRecord(**storage.read_json(f"{ledger_key(name)}/{file}")))
        except (ValueError, TypeError):
            continue
    return records


def ledger_key(name: str) -> str:
    """The folder of the storage where the finished trials of the search `name` are."""
    return f"trials/{name}"


def _concurrent_trials(wanted: int | str, *, available: Cluster) -> int | None:
    """None is as many as there is room for, also when a machine joins."""
    if wanted != "auto":
        return int(wanted)
    return None if available.grows else max(1, available.num_gpus)


def _scheduler(name: str, *, num_epochs: int, reduction_factor: int) -> TrialScheduler:
    if name == "fifo":
        scheduler: TrialScheduler = FIFOScheduler()
    else:
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch", max_t=num_epochs, grace_period=1, reduction_factor=reduction_factor
        )
    scheduler.choose_trial_to_run = _newest_pending
    return scheduler


def _newest_pending(controller: TuneController) -> TuneTrial | None:
    """The trial that gets a process which has become free.

    Tune's choice is the one that waits longest. That one has perhaps a process of its own, which is just starting on a
    machine that joined, and Tune ends it then: trials shorter than such a start would never fill that machine.
    """
    pending = [trial for trial in controller.get_trials() if trial.status == TuneTrial.PENDING]
    return pending[-1] if pending else None


def _propose(trial: optuna.Trial, *, space: Space) -> dict[str, Any]:
    """The space as Optuna draws from it; each optimizer has a learning rate of its own name and range.

    Returns what the proposal holds besides: the trial's number, from 1, and its one learning rate under its one name.
    """
    trial.suggest_categorical("model", list(space.model))
    optimizer = trial.suggest_categorical("optimizer", list(space.optimizer))
    learning_rate = trial.suggest_float(f"learning_rate.{optimizer}", *_rates(optimizer, space=space), log=True)
    trial.suggest_float("weight_decay", *space.weight_decay, log=True)
    trial.suggest_categorical("batch_size", list(space.batch_size))
    trial.suggest_float("rotation_degrees", *space.rotation_degrees)
    trial.suggest_float("translation_pixels", *space.translation_pixels)
    return {"trial": trial.number + 1, "learning_rate": learning_rate}


def _draw(
    num_trials: int, *, space: Space, points: Sequence[Mapping[str, Any]], sampler: optuna.samplers.BaseSampler
) -> list[dict[str, Any]]:
    """The first `num_trials` proposals, `points` before all others."""
    study = optuna.create_study(sampler=sampler)
    for point in points:
        study.enqueue_trial(dict(point))
    trials = [study.ask() for _ in range(num_trials)]
    own = [_propose(trial, space=space) for trial in trials]
    return [{**trial.params, **values} for trial, values in zip(trials, own, strict=True)]


def _packs(
    proposals: Sequence[dict[str, Any]], given: Mapping[str, Any], *, on_gpu: bool, num_processes: int
) -> list[list[dict[str, Any]]]:
    """The proposals as they are trained together, in the order of the first of each; a known one is by itself."""
    new = [proposal for proposal in proposals if digest(config_of(proposal)) not in given["known"]]
    recipes = [trial_recipe(proposal, given) for proposal in new]
    find = partial(packs, recipes, num_processes=num_processes)
    if on_gpu:  # whose memory only a process that has one can tell
        found = ray.get(ray.remote(num_gpus=1)(lambda: find(device=torch.device("cuda"))).remote())
    else:
        found = find(device=torch.device("cpu"))
    known = [[proposal] for proposal in proposals if proposal not in new]
    return sorted(known + [[new[index] for index in pack] for pack in found], key=lambda pack: pack[0]["trial"])


def _rates(optimizer: str, *, space: Space) -> Sequence[float]:
    return space.learning_rate.get(optimizer, OPTIMIZERS[optimizer].learning_rate)


def _folder(proposal: Mapping[str, Any]) -> str:
    return f"trial-{proposal['trial']}"


def _start_points(recipe: Mapping[str, Any], *, space: Space) -> list[dict[str, Any]]:
    """The recipe as a proposal, where the space holds it."""
    rates = _rates(recipe["optimizer"], space=space)
    choices = {key: recipe[key] for key in ("model", "optimizer", "batch_size")}
    ranges = {key: recipe[key] for key in ("weight_decay", "rotation_degrees", "translation_pixels")}
    within = all(value in getattr(space, key) for key, value in choices.items()) and all(
        getattr(space, key)[0] <= value <= getattr(space, key)[1] for key, value in ranges.items()
    )
    if not within or not rates[0] <= recipe["learning_rate"] <= rates[1]:
        return []
    return [{**choices, **ranges, f"learning_rate.{recipe['optimizer']}": recipe["learning_rate"]}]


class _Curve:
    """What TensorBoard's logger asks of a trial, for one proposal."""

    def __init__(self, trial: TuneTrial, proposal: Mapping[str, Any]) -> None:
        self.evaluated_params = config_of(proposal)
        self.local_path = str(Path(trial.local_path).with_name(_folder(proposal)))

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class _Curves(TBXLoggerCallback):  # type: ignore[misc]
    """TensorBoard's files: what was searched, under the names of `Space`, and the figures of each epoch alone."""

    def __init__(self) -> None:
        super().__init__()
        self._curves: dict[TuneTrial, list[_Curve]] = {}

    def log_trial_start(self, trial: TuneTrial) -> None:
        self._curves[trial] = [_Curve(trial, proposal) for proposal in proposals_of(trial.config)]
        for curve in self._curves[trial]:
            super().log_trial_start(curve)

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, Any]) -> None:
        for curve, metrics in zip(self._curves[trial], result.get(MEMBERS, [result]), strict=True):
            shown = {key: metrics[key] for key in _FIGURES if key in metrics}
            super().log_trial_result(iteration, curve, {**shown, "training_iteration": result["training_iteration"]})

    def log_trial_end(self, trial: TuneTrial, failed: bool = False) -> None:
        for curve in self._curves.pop(trial, []):
            super().log_trial_end(curve, failed)


class _Ledger(tune.Callback):  # type: ignore[misc]
    """Collects the trials as they end, and writes each to disk."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        *,
        num_epochs: int,
        known: Mapping[str, TrialRecord],
        on_trial: Callable[[TrialRecord], None],
    ) -> None:
        self.records: list[TrialRecord] = []
        self._storage, self._name = storage, name
        self._num_epochs, self._known, self._on_trial = num_epochs, known, on_trial
        self._histories: dict[tuple[str, int], list[dict[str, float]]] = {}
        self._addresses: dict[str, str] = {}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        keys = ("epoch", "train_loss", "train_accuracy", "validation_loss", METRIC, "diverged")
        self._addresses[trial.trial_id] = str(result["node_ip"])
        for member, metrics in enumerate(result.get(MEMBERS, [result])):
            history = self._histories.get((trial.trial_id, member), [])
            # A trial that lost its machine has started again and reports its first epochs once more.
            earlier = [epoch for epoch in history if epoch["epoch"] < metrics["epoch"]]
            shown = {key: metrics[key] for key in keys if key in metrics}
            self._histories[trial.trial_id, member] = [*earlier, shown]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._end(trial, failed=True)

    def _end(self, trial: Any, *, failed: bool) -> None:
        for member, proposal in enumerate(proposals_of(trial.config)):
            history = self._histories.get((trial.trial_id, member), [])
            diverged = bool(history and history[-1].get("diverged"))
            ended = bool(history and history[-1]["epoch"] >= self._num_epochs)
            status = "failed" if failed else "diverged" if diverged else "finished" if ended else "stopped"
            self._add(
                TrialRecord(
                    trial=proposal["trial"],
                    status=status,
                    config=config_of(proposal),
                    history=history,
                    address=self._addresses.get(trial.trial_id, ""),
                )
            )

    def _add(self, record: TrialRecord) -> None:
        self.records.append(record)
        if digest(record.config) not in self._known:
            self._storage.write_json(f"{ledger_key(self._name)}/{record.trial:05}.json", vars(record))
        self._on_trial(record)
