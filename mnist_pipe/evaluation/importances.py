"""The importance of each searched field for the accuracy of a trial, by functional ANOVA of a random forest.

Method of Hutter, Hoos and Leyton-Brown 2014, as Optuna has it: the share of the variance over the searched space that
one field explains alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mnist_pipe.params.schema import SEARCHED

MIN_TRIALS = 8
"""Smallest number of trials with a score; a forest of fewer says nothing."""
_MAX_TRIALS = 1000
_REPEATS = 10
_FOREST = {"n_trees": 8, "max_depth": 6}  # Optuna's 64 trees of any depth take ten times as long for 200 trials


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of a field, over forests of resampled trials."""

    field: str
    """Column of the table of trials."""
    mean: float
    """Mean share of the variance, in [0, 1]."""
    deviation: float
    """Standard deviation of the share; it covers the chance of the drawn trials and of the forest."""


def importances(trials: Sequence[Mapping[str, str]]) -> list[Importance]:
    """Return the importance of each field that has more than one value, the largest first.

    The forest predicts the accuracy that a trial reached; one that was stopped early counts with its last accuracy.
    It is fitted `_REPEATS` times, each time to as many trials, at most `_MAX_TRIALS`, drawn with replacement. Fields
    that not every trial has, such as the arguments of one model, are left out.

    Args:
        trials: the rows of `reports/trials.csv` that have a score.

    Returns:
        Nothing if there are fewer than `MIN_TRIALS` trials, or none differs from the others.
    """
    columns = {name: [trial[name] for trial in trials] for name in (trials[0] if trials else ())}
    columns = {
        name: cells
        for name, cells in columns.items()
        if name.partition(".")[0] in SEARCHED and "" not in cells and len(set(cells)) > 1
    }
    scores = [float(trial["validation_accuracy"]) for trial in trials]
    if len(trials) < MIN_TRIALS or not columns or len(set(scores)) == 1:
        return []
    import optuna  # takes 0.5 s, which most callers with few trials need not wait

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values: dict[str, Sequence[float | str]] = {}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, cells in columns.items():
        how = SEARCHED[name.partition(".")[0]]
        if how.by in ("range", "log"):
            # Optuna's forest measures a range on a linear scale.
            numbers = [math.log(float(cell)) if how.by == "log" else float(cell) for cell in cells]
            values[name], ends = numbers, (min(numbers), max(numbers))
            distributions[name] = optuna.distributions.FloatDistribution(*ends)
        else:
            values[name] = cells
            distributions[name] = optuna.distributions.CategoricalDistribution(sorted(set(cells)))
    known = [
        optuna.trial.create_trial(
            params={name: values[name][row] for name in values}, distributions=distributions, value=score
        )
        for row, score in enumerate(scores)
    ]
    random = np.random.default_rng(0)
    found = []
    for seed in range(_REPEATS):
        study = optuna.create_study()
        drawn = random.integers(len(known), size=min(len(known), _MAX_TRIALS))
        study.add_trials([known[row] for row in drawn])
        found.append(optuna.importance.FanovaImportanceEvaluator(**_FOREST, seed=seed).evaluate(study))
    shares = {name: [one[name] for one in found] for name in columns}
    result = [
        Importance(field=name, mean=float(np.mean(own)), deviation=float(np.std(own, ddof=1)))
        for name, own in shares.items()
    ]
    return sorted(result, key=lambda one: -one.mean)
