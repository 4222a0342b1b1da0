"""Whether runs reproduce a published number, and whether they bear out a published claim: one rule for all studies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

CONFIDENCE = 0.95
"""Share of the replications whose one further run lies in `prediction_interval`."""
SIGNIFICANCE = 0.05
"""Significance level of every claim: a difference is measurable if its p-value is below this."""

REPRODUCED, BETTER, WORSE, NOT_COMPARABLE = "reproduced", "differs: better", "differs: worse", "not comparable"
WORDS = (REPRODUCED, BETTER, WORSE, NOT_COMPARABLE)
"""Verdicts on a published number, in the order in which they are counted."""
HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "not decided"


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds one further run with a probability of 95 %, given the values of n seeds.

    It is mean ± t(n - 1) s sqrt(1 + 1/n) for normally distributed runs (Hahn & Meeker 1991, section 4.7). A method that
    draws nothing has one value, and its interval is that value.
    """
    mean, number = statistics.fmean(values), len(values)
    if number == 1:
        return mean, mean
    factor = float(t.ppf((1 + CONFIDENCE) / 2, number - 1))
    half = factor * statistics.stdev(values) * math.sqrt(1 + 1 / number)
    return mean - half, mean + half


def of_number(values: Sequence[float], *, published: float, decimals: int, lower_is_better: bool) -> str:
    """Return whether a published number of `decimals` decimals, which stands for one run, is one of ours.

    It is reproduced if a number that rounds to it lies in the prediction interval of our values, one for each seed.
    """
    low, high = prediction_interval(values)
    rounding = 0.5 * 10**-decimals * (1 + 1e-9)  # 1e-9: a difference of exactly half a unit is not lost to binary
    if low - rounding <= published <= high + rounding:
        return REPRODUCED
    return BETTER if (published > high) == lower_is_better else WORSE


def of_claim(effect: float, *, p_value: float) -> str:
    """Return whether a claim that predicts a positive effect holds, is contradicted, or is not decided by the runs.

    `p_value` is two-sided, for the hypothesis that there is no effect.
    """
    if not p_value < SIGNIFICANCE:
        return UNDECIDED
    return HOLDS if effect > 0 else CONTRADICTED
