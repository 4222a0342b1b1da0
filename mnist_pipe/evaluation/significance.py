"""Whether one model is better than another on the same rows: the exact McNemar test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc  # scipy.stats would take half a second longer to import

Alternative = Literal["two-sided", "greater"]


def mcnemar(
    first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_], *, alternative: Alternative = "two-sided"
) -> PairedComparison:
    """Exact McNemar test on (rows,) truth values of two models on the same rows.

    Only the rows on which the models disagree tell them apart; were both equally good, either would be the right one
    with probability 1/2 (McNemar 1947; exact form: Dietterich 1998, section 3.1). `two-sided` asks whether they differ,
    `greater` whether the first is the better one. Without a disagreement the p-value is 1.
    """
    assert first_correct.shape == second_correct.shape
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((~first_correct & second_correct).sum())
    num_discordant = only_first + only_second
    if alternative == "greater":
        p_value = bdtrc(only_first - 1, num_discordant, 0.5)
    else:  # the distribution is symmetric, so the other tail is as large
        p_value = min(1.0, 2 * bdtr(min(only_first, only_second), num_discordant, 0.5))
    return PairedComparison(
        both_right=int((first_correct & second_correct).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~first_correct & ~second_correct).sum()),
        alternative=alternative,
        p_value=float(p_value),
    )


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Rows by which of two models got them right, and the chance of such a split between equally good ones."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    alternative: Alternative
    p_value: float
