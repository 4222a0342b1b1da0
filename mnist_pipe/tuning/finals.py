"""The final of a search: its best configurations, each trained in full with several seeds.

The best of many trials owes its rank partly to chance: to its seed, and to the few rows and epochs of a trial. Here
each of the best configurations is trained as the stage `train` would, and chosen by its mean accuracy on validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from mnist_pipe.atomic import digest
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.params.schema import SearchParams
from mnist_pipe.tuning.ledger import TrialRecord, rank
from mnist_pipe.tuning.search import Defaults, Session, search
from mnist_pipe.tuning.space import start_points


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A configuration of the search, and its runs in the final."""

    trial: TrialRecord
    """The trial of the search that found it."""
    runs: tuple[TrialRecord, ...]
    """One run for each seed."""

    @property
    def scores(self) -> list[float]:
        """The validation accuracy of each run, in [0, 1]; 0 if it diverged."""
        return [max(0.0, run.score) for run in self.runs]

    @property
    def mean(self) -> float:
        """The mean of the scores."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float:
        """The standard deviation of the scores; 0 with one seed."""
        return stdev(self.scores) if len(self.runs) > 1 else 0.0

    @property
    def loss(self) -> float:
        """The mean validation loss after the last epoch, in nats; infinite if a run diverged."""
        return fmean(run.history[-1]["validation_loss"] if run.score >= 0 else math.inf for run in self.runs)


def best_finalist(finalists: Sequence[Finalist]) -> Finalist:
    """Return the one with the highest mean; ties go to the lower mean loss, then to the earlier trial."""
    return max(finalists, key=lambda one: (one.mean, -one.loss, -one.trial.trial))


def seeds_of(params: SearchParams) -> list[int]:
    """Return the seeds of the final, none of which is that of the search."""
    return [(params.seed + number) % 2**32 for number in range(1, params.final_seeds + 1)]


def name_of(search: str, seed: int) -> str:
    """Return the name under which the runs with `seed` are recorded, in the final of the search of that name."""
    return f"{search}-seed-{seed}"


def final(
    records: Sequence[TrialRecord],
    params: SearchParams,
    *,
    defaults: Defaults,
    training: NormalizedSplit,
    validation: NormalizedSplit,
    session: Session,
    on_run: Callable[[TrialRecord, int, TrialRecord], None] = lambda *_: None,
) -> list[Finalist]:
    """Train the best `final_candidates` configurations with `final_seeds` seeds each, and return them, the best first.

    The runs of a seed are a search of their own, without proposals; they resume as those of a search do.

    Args:
        records: the trials of the search.
        params: the section `search` of params.yaml.
        defaults: the settings that are not searched; the number of epochs is that of the recipe.
        training: the rows that every run trains on, those of the recipe.
        validation: the rows that every run is scored on.
        session: the cluster, the storage, and the search's name there.
        on_run: called as each run ends, with the trial that found the configuration, the seed and the run.

    Raises:
        PipelineError: with one of the seeds no run ended with a finite loss.
    """
    ranked = {digest(record.config): record for record in sorted(records, key=rank) if record.score >= 0}
    chosen = sorted(ranked.values(), key=rank, reverse=True)[: params.final_candidates]
    recipe = defaults.recipe.model_dump()
    points = [
        point
        for record in chosen
        for point in start_points({**recipe, "model_params": {}, **record.config}, space=params.space)
    ]
    changes = {"algorithm": "random", "scheduler": "fifo", "num_trials": len(points)}
    full = params.model_copy(update={**changes, "num_epochs": defaults.recipe.num_epochs})
    runs: list[list[TrialRecord]] = []
    for seed in seeds_of(params):

        def ended(run: TrialRecord, seed: int = seed) -> None:
            on_run(chosen[run.trial - 1], seed, run)

        runs.append(
            search(
                full.model_copy(update={"seed": seed}),
                defaults=defaults,
                training=training,
                validation=validation,
                session=replace(session, name=name_of(session.name, seed)),
                points=points,
                on_trial=ended,
            )
        )
    finalists = [Finalist(trial=record, runs=own) for record, own in zip(chosen, zip(*runs, strict=True), strict=True)]
    return sorted(finalists, key=lambda one: (-one.mean, one.loss, one.trial.trial))
