"""Test the verdicts on published numbers and claims against simulated replications."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from studies.common import verdict

NUM_REPLICATIONS = 20_000
ERROR = 0.005
"""Three standard errors of a share of 95 % in as many replications."""


def share_reproduced(random: np.random.Generator, *, num_seeds: int, decimals: int, spread: float = 1.0) -> float:
    """Return how often a published run is reproduced that is drawn as ours are, and then rounded."""
    runs = 50 + spread * random.standard_normal((NUM_REPLICATIONS, num_seeds + 1))
    words = [
        verdict.of_number(ours, published=round(theirs, decimals), decimals=decimals, lower_is_better=True)
        for theirs, *ours in runs.tolist()
    ]
    return words.count(verdict.REPRODUCED) / NUM_REPLICATIONS


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_95_of_100_true_replications_are_reproduced(num_seeds: int) -> None:
    share = share_reproduced(np.random.default_rng(num_seeds), num_seeds=num_seeds, decimals=6)
    assert share == pytest.approx(0.95, abs=ERROR)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_rounding_costs_a_true_replication_nothing(num_seeds: int) -> None:
    assert share_reproduced(np.random.default_rng(1), num_seeds=num_seeds, decimals=0) >= 0.95 - ERROR
    assert share_reproduced(np.random.default_rng(2), num_seeds=num_seeds, decimals=1, spread=0.001) >= 0.95 - ERROR


@pytest.mark.parametrize(
    ("values", "published", "decimals", "lower_is_better", "word"),
    [
        ([1.0, 1.1, 1.2], 1.1, 1, True, "reproduced"),
        ([1.0, 1.1, 1.2], 1.6, 1, True, "reproduced"),  # the interval ends at 1.597
        ([1.0, 1.1, 1.2], 1.7, 1, True, "differs: better"),
        ([1.0, 1.1, 1.2], 0.5, 1, True, "differs: worse"),
        ([98.0, 98.1, 98.2], 97.0, 1, False, "differs: better"),
        ([98.0, 98.1, 98.2], 99.0, 1, False, "differs: worse"),
        ([1.14], 1.1, 1, True, "reproduced"),  # a method that draws nothing: rounding alone
        ([1.15], 1.1, 1, True, "reproduced"),
        ([1.16], 1.1, 1, True, "differs: worse"),
        ([1.16], 1.1, 0, True, "reproduced"),
    ],
)
def test_a_difference_beyond_the_interval_and_the_rounding_has_a_direction(
    values: list[float], published: float, decimals: int, lower_is_better: bool, word: str
) -> None:
    found = verdict.of_number(values, published=published, decimals=decimals, lower_is_better=lower_is_better)
    assert found == word


def test_a_claim_without_an_effect_is_rarely_decided_and_a_strong_one_always() -> None:
    random = np.random.default_rng(3)

    def words(mean: float) -> list[str]:
        samples = mean + random.standard_normal((5000, 5))
        return [verdict.of_claim(sample.mean(), p_value=ttest_1samp(sample, 0).pvalue) for sample in samples]

    nothing = words(0.0)
    assert 1 - nothing.count(verdict.UNDECIDED) / len(nothing) == pytest.approx(verdict.SIGNIFICANCE, abs=0.01)
    assert words(20.0).count(verdict.HOLDS) == words(-20.0).count(verdict.CONTRADICTED) == 5000


def test_a_p_value_that_is_not_a_number_decides_nothing() -> None:
    assert verdict.of_claim(1.0, p_value=float("nan")) == verdict.UNDECIDED
