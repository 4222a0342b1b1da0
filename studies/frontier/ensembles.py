"""Averages of networks: how they are formed, and how their members are chosen on labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from mnist_pipe.evaluation.calibration import fit_temperature
from mnist_pipe.evaluation.metrics import compute_metrics

Values = NDArray[np.floating[Any]]
"""Log-probabilities or probabilities of one network or average, floating point `(N, 10)`."""
AVERAGES = ("logarithms", "probabilities", "scaled logarithms", "scaled probabilities")
"""Ways to average networks: their log-probabilities or probabilities, as they are or each scaled by a temperature."""
_MOST_SUBSETS = 100


def part(logs: Values, *, how: str, temperature: float) -> Values:
    """Return what a network with these log-probabilities adds to an average by one of `AVERAGES`."""
    if how.startswith("scaled"):
        logs = log_softmax(logs / temperature, axis=1)
    return np.exp(logs) if how.endswith("probabilities") else logs


def average(parts: Sequence[Values], *, how: str) -> Values:
    """Return the log-probabilities of the average of networks, of each of which `parts` has the `part`."""
    mean = np.mean(parts, axis=0)
    logs: Values = np.log(mean) if how.endswith("probabilities") else log_softmax(mean, axis=1)
    return logs


def brier(logs: Values, labels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the Brier score at the temperature that makes the likelihood highest, and that temperature.

    The score, 0 to 2, tells networks apart that have as many mistakes, and does not reward confidence as such. It is
    bounded, so that a wrong label counts no more than a mistake; by the likelihood a few wrong labels would decide.
    """
    temperature = fit_temperature(logs, labels)
    return compute_metrics(logs / temperature, labels, confidence=0.95, num_bins=15).brier, temperature


def choose(parts: Mapping[str, Values], labels: NDArray[np.uint8], *, how: str, most: int) -> list[str]:
    """Return the names of at most `most` networks whose average has a low `brier` score, the best network first.

    Members are added one by one as long as that lowers the score (forward selection, Caruana et al. 2004).
    """
    members: list[str] = []
    lowest = float("inf")
    while len(members) < min(most, len(parts)):
        scores = {
            name: brier(average([parts[one] for one in (*members, name)], how=how), labels)[0]
            for name in parts
            if name not in members
        }
        best = min(scores, key=lambda name: scores[name])
        if scores[best] >= lowest:
            break
        members.append(best)
        lowest = scores[best]
    return members


def accuracy(values: Values, labels: NDArray[np.uint8]) -> float:
    """Return the share of the rows whose most probable class is their label."""
    return float((values.argmax(1) == labels).mean())


def overlap(first: Sequence[Values], second: Sequence[Values], labels: NDArray[np.uint8]) -> float:
    """Return which share of the mistakes two networks have in common, as the mean over pairs of different ones.

    The share is that of the mean of both networks' mistakes. A pair has one network of `first` and one of `second`,
    which may be the same list.
    """
    pairs = [
        (one.argmax(1) != labels, other.argmax(1) != labels)
        for one, other in product(first, second)
        if one is not other
    ]
    shares = [(2 * (one & other).sum() / max(1, one.sum() + other.sum())) for one, other in pairs]
    return float(np.mean(shares))


def by_size(parts: Sequence[Values], labels: NDArray[np.uint8]) -> list[float]:
    """Return the mean accuracy of averages of 1, 2, … networks, over at most 100 random subsets of each size."""
    generator, number = np.random.default_rng(0), len(parts)
    means = []
    for size in range(1, number + 1):
        subsets: list[Any] = (
            list(combinations(range(number), size))
            if comb(number, size) <= _MOST_SUBSETS
            else [generator.permutation(number)[:size] for _ in range(_MOST_SUBSETS)]
        )
        found = [accuracy(np.mean([parts[i] for i in subset], axis=0), labels) for subset in subsets]
        means.append(round(float(np.mean(found)), 6))
    return means


def vote(digits: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.integer[Any]]:
    """Return the majority of three networks' predictions, `(N,)` each; if all differ, that of the first."""
    first, second, third = digits
    return np.where(second == third, second, first)


def best_vote(kinds: Sequence[Sequence[Values]], labels: NDArray[np.uint8]) -> tuple[float, int]:
    """Return the best accuracy of a vote of three networks of different kinds, and how many votes were tried.

    `kinds` has the networks of each kind. A result that was selected so is none to expect on other rows.
    """
    predictions = [[values.argmax(1) for values in kind] for kind in kinds]
    triples = (three for kinds_of_three in combinations(predictions, 3) for three in product(*kinds_of_three))
    found = [float((vote(three) == labels).mean()) for three in triples]
    return max(found, default=0.0), len(found)


def best_average(kinds: Sequence[Sequence[Values]], labels: NDArray[np.uint8]) -> tuple[float, int]:
    """Return the best accuracy of an average of one network of each kind, and how many averages were tried.

    `kinds` has the `part` of each network. A result that was selected so is none to expect on other rows.
    """
    found = [accuracy(np.mean(own, axis=0), labels) for own in product(*kinds)]
    return max(found), len(found)
