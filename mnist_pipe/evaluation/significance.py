"""The exact McNemar test: whether one model is better than another on the same rows."""

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
    """Compare two models on the same rows by the exact McNemar test.

    Only the rows on which exactly one model is right distinguish them; if both were equally good, either would be the
    right one with probability 1/2 (McNemar 1947; exact form: Dietterich 1998, section 3.1). If there is no such row,
    the p-value is 1.

    Args:
        first_correct: whether the first model is right, bool `(N,)`.
        second_correct: whether the second model is right, bool `(N,)`.
        alternative: `two-sided` tests whether the models differ, `greater` whether the first one is better.
    """
    assert first_correct.shape == second_correct.shape
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((~first_correct & second_correct).sum())
    num_discordant = only_first + only_second
    if alternative == "greater":
        p_value = bdtrc(only_first - 1, num_discordant, 0.5)
    else:  # the distribution is symmetric, so both tails are equal
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
    """The result of the McNemar test of two models: the rows by which model is right, and the p-value."""

    both_right: int
    """Number of rows on which both models are right."""
    only_first: int
    """Number of rows on which only the first model is right."""
    only_second: int
    """Number of rows on which only the second model is right."""
    both_wrong: int
    """Number of rows on which both models are wrong."""
    alternative: Alternative
    p_value: float
    """Probability that equally good models differ at least as much, in the direction of `alternative`."""
