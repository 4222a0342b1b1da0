"""Hyper-parameter search with Ray Tune: Optuna proposes trials, a scheduler stops weak ones, and a ledger records them.

With `random` or `grid`, and `fifo`, no proposal and no trial's length depends on another trial. All proposals are then
drawn at once, and those of one shape train together if that is faster; see `vmapped`.

The ledger is one JSON file for each trial, written to the storage as soon as the trial ends. When a killed search runs
again, Optuna draws the same proposals (same seed), and a trial that is in the ledger reports its recorded epochs at
once. The sampler and the scheduler therefore see exactly what they saw before. Tune's own checkpoint of the search,
which is a pickle written in place, is not needed.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import nlargest
from typing import Any

import numpy as np
import optuna
import ray
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.cluster.ray_session import Cluster, attempts, check_storage
from mnist_pipe.cluster.storage import Storage, hidden_credentials
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.errors import PipelineError
from mnist_pipe.fingerprint import code_version
from mnist_pipe.params.schema import Precision, RecipeParams, SearchParams
from mnist_pipe.tuning import schedulers
from mnist_pipe.tuning.callbacks import Curves, Epochs, Recorder, folder_of
from mnist_pipe.tuning.journal import Journal
from mnist_pipe.tuning.ledger import TrialRecord, ledger_of
from mnist_pipe.tuning.samplers import SAMPLERS
from mnist_pipe.tuning.space import PACK, config_of, grid, propose, row, start_points
from mnist_pipe.tuning.trial import METRIC, Trial, proposals_of, trial_recipe
from mnist_pipe.tuning.vmapped import packs

TRIALS_A_RUN = 1000
"""Number of trials after which a search starts Ray Tune anew: Tune, and a sampler that learns, look at all trials of a
run for each new one, and keep them in memory. A scheduler compares the trials of one run."""
KEPT_TRIALS = 100
"""Number of trials, the best so far, from which a sampler that learns starts the next run."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings of every trial that are not searched."""

    recipe: RecipeParams
    """Recipe whose values apply to the fields outside the search space."""
    models: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Constructor arguments of the models other than the recipe's own."""
    precision: Precision = "auto"
    """Precision of training, as in `Recipe`."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Cluster on which a search runs, and the storage and name under which its trials are recorded."""

    name: str
    """Name of the search in the storage."""
    storage: Storage
    """Storage of the ledger and of Ray's files."""
    available: Cluster
    """Resources of the connected Ray cluster."""


def search(
    params: SearchParams,
    *,
    defaults: Defaults,
    training: NormalizedSplit,
    validation: NormalizedSplit,
    session: Session,
    points: Sequence[Mapping[str, Any]] | None = None,
    on_trial: Callable[[TrialRecord], None] = lambda _: None,
) -> list[TrialRecord]:
    """Run the search and return every trial in the order of the proposals.

    On a cluster that grows, `max_concurrent_trials: auto` runs as many trials as the cluster has room for at every
    moment. With one trial at a time the result is the same in every run. With more, the decisions of a scheduler and
    of a sampler that learns depend on the order in which trials happen to report.

    Args:
        params: the section `search` of params.yaml; `training` is already limited to its `train_rows`.
        defaults: the settings that are not searched.
        training: the rows that every trial trains on.
        validation: the rows that every trial is scored on.
        session: the cluster, the storage of the ledger, and the search's name there.
        points: the first proposals, by Optuna's names of the dimensions; by default those of the grid, or else the
            recipe, if it lies inside the space.
        on_trial: called as each trial ends.

    Raises:
        UnavailableError: the cluster has several nodes, but no storage that all of them reach is set.
        PipelineError: no trial ended with a finite loss.
    """
    available, storage, name = session.available, session.storage, session.name
    check_storage(len(available.nodes))
    concurrent = _concurrent_trials(params.max_concurrent_trials, available=available)
    on_gpu = available.num_gpus > 0
    num_threads = max(1, min(min(available.nodes), available.num_cpus // (concurrent or 1)))
    num_processes = available.num_gpus if on_gpu else available.num_cpus // num_threads
    ledger = ledger_of(name, storage=storage)
    ended = ledger.read()
    known = {digest(record.config): record for record in ended}
    exporter = Exporter(stage="search", run=name)
    epochs = Epochs(exporter, num_images=len(training.labels), known=known.keys())
    # Optuna would log a line for every trial beside the one that this project prints.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe = defaults.recipe.model_dump()
    shared = {
        "known": {key: record.history for key, record in known.items() if record.status != "failed"},
        "num_epochs": params.num_epochs,
        "seed": params.seed,
        "recipe": recipe,
        "models": dict(defaults.models),
        "precision": defaults.precision,
        "num_threads": num_threads,
        # Not what torch sees: without a GPU of its own, a process sees those of the others.
        "device": "cuda" if on_gpu else "cpu",
        "code": code_version(),
    }
    sampler = SAMPLERS[params.algorithm]
    if points is None:
        points = _grid(params, recipe=recipe) if sampler.is_grid else start_points(recipe, space=params.space)
    if sampler.is_grid:
        params = params.model_copy(update={"num_trials": len(points)})
    runs: Iterable[dict[str, Any]]
    """What each run of Tune takes its trials from."""
    if not sampler.learns and params.scheduler == "fifo":
        proposals = draw(params, recipe=recipe, points=points)
        together = _packs(proposals, shared, on_gpu=on_gpu, num_processes=num_processes, facts=training.facts)
        parts = (together[start : start + TRIALS_A_RUN] for start in range(0, len(together), TRIALS_A_RUN))
        runs = ({"param_space": {PACK: tune.grid_search(part)}, "sampling": {"num_samples": 1}} for part in parts)
    else:
        runs = ({"param_space": {}, "sampling": part} for part in samplings(params, recipe=recipe, points=points))
    journal = Journal(name, storage=storage, space=params.space, recipe=recipe, known=ended)

    def end(record: TrialRecord) -> None:
        exporter.trial(record.trial, status=record.status)
        journal.add(record)
        on_trial(record)

    recorder = Recorder(ledger, num_epochs=params.num_epochs, known=known.keys(), on_trial=end)
    named = type(name, (Trial,), {})  # Ray's dashboard shows the class's name as the name of its actors
    trainable = tune.with_parameters(named, training=training, validation=validation, **shared)
    del training, validation  # Ray's object store holds them, so this process need not
    if concurrent is None:
        # One pending trial for each process that may be starting, and one for the next process that becomes free;
        # Tune's default is 1.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_processes + 1)
    # Tune would copy the credentials into each trial's runtime environment, which Ray logs and shows in its dashboard.
    # Every node of a cluster has its own credentials.
    with journal, hidden_credentials(), _numpy_seeded(params.seed), warnings.catch_warnings():
        # Tune takes a sampler that computes for a second, as GP does, for a training in the wrong place.
        warnings.filterwarnings("ignore", message="Define-by-run function passed")
        for run in runs:
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1, "gpu": 1} if on_gpu else {"cpu": num_threads}),
                tune_config=tune.TuneConfig(
                    metric=METRIC,
                    mode="max",
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,  # a new process for each trial would import torch again
                    scheduler=schedulers.build(params),
                    trial_dirname_creator=lambda trial: folder_of(proposals_of(trial.config)[0]),
                    **run["sampling"],
                ),
                param_space=run["param_space"],
                run_config=tune.RunConfig(
                    name=f"{name}.{len(attempts(storage, name))}",
                    storage_filesystem=storage.filesystem,
                    storage_path=storage.path("ray"),
                    # Ray's default is 0, which loses the trial with its node; restart it from its first epoch instead.
                    failure_config=tune.FailureConfig(max_failures=3),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger is the result
                    callbacks=[Curves(partial(row, space=params.space, recipe=recipe)), epochs, recorder],
                    verbose=0,
                ),
            ).fit()
    if not any(record.score >= 0 for record in recorder.records):
        statuses = " or ".join(sorted({record.status for record in recorder.records}))
        what = f"all {len(recorder.records)} trials {statuses}" if statuses else "no trial ended"
        raise PipelineError(f"search: {what}; lower search.space.learning_rate")
    return sorted(recorder.records, key=lambda record: record.trial)


def draw(
    params: SearchParams, *, recipe: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return all proposals of a search whose proposals depend on no result; `points` come first."""
    study = optuna.create_study(sampler=SAMPLERS[params.algorithm].build(params.seed))
    for point in points:
        study.enqueue_trial(dict(point))
    trials = [study.ask() for _ in range(params.num_trials)]
    own = [propose(trial, space=params.space, recipe=recipe) for trial in trials]
    return [{**trial.params, **values} for trial, values in zip(trials, own, strict=True)]


def samplings(
    params: SearchParams, *, recipe: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield for each run of Tune its number of samples and its searcher, which knows the best trials of earlier runs.

    A run's is made when it is asked for, after the trials of the run before it have ended; `points` come first.
    """
    seed, kept = params.seed, list[optuna.trial.FrozenTrial]()
    for start in range(0, params.num_trials, TRIALS_A_RUN):
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
        study.add_trials(kept)
        searcher = OptunaSearch(
            space=partial(propose, space=params.space, recipe=recipe, before=start - len(kept)),
            points_to_evaluate=list(map(dict, points[start : start + TRIALS_A_RUN])),
            sampler=SAMPLERS[params.algorithm].build(seed),
            study_name=study.study_name,
            storage=storage,
            metric=METRIC,
            mode="max",
        )
        yield {"num_samples": min(TRIALS_A_RUN, params.num_trials - start), "search_alg": searcher}
        ended = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        best = nlargest(KEPT_TRIALS, ended, key=lambda trial: trial.value or 0.0)
        kept = sorted(best, key=lambda trial: trial.number)  # TPE weighs late trials more
        seed = random.Random(seed).getrandbits(32)


def _grid(params: SearchParams, *, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first `num_trials` points of the grid, in an order that the seed shuffles."""
    points = grid(recipe, space=params.space, num_points=params.grid_points)
    random.Random(params.seed).shuffle(points)
    return points[: params.num_trials]


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for the duration of the block; HyperBand draws each trial's bracket from it."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _concurrent_trials(wanted: int | str, *, available: Cluster) -> int | None:
    """Return the limit of concurrent trials; None runs as many as fit, also when a node joins."""
    if wanted != "auto":
        return int(wanted)
    return None if available.grows else max(1, available.num_gpus)


def _packs(
    proposals: Sequence[dict[str, Any]],
    shared: Mapping[str, Any],
    *,
    on_gpu: bool,
    num_processes: int,
    facts: Facts,
) -> list[list[dict[str, Any]]]:
    """Return the packs of proposals that train together, in the order of the first proposal of each.

    A proposal that the ledger knows is alone in its pack.
    """
    new = [proposal for proposal in proposals if digest(config_of(proposal)) not in shared["known"]]
    recipes = [trial_recipe(proposal, shared) for proposal in new]
    find = partial(packs, recipes, num_processes=num_processes, facts=facts)
    if on_gpu:  # only a process that holds a GPU can read how much memory it has
        found = ray.get(ray.remote(num_gpus=1)(lambda: find(device=torch.device("cuda"))).remote())
    else:
        found = find(device=torch.device("cpu"))
    known = [[proposal] for proposal in proposals if proposal not in new]
    return sorted(known + [[new[index] for index in pack] for pack in found], key=lambda pack: pack[0]["trial"])
