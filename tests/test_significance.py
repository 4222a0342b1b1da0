"""Test the exact McNemar test against written-out binomial sums."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mnist_pipe.evaluation.significance import Alternative, mcnemar


def truths(
    *, both_right: int = 0, only_first: int = 0, only_second: int = 0, both_wrong: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = [both_right, only_first, only_second, both_wrong]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_the_four_outcomes_of_paired_rows_are_counted() -> None:
    first, second = truths(both_right=5, only_first=3, only_second=2, both_wrong=7)
    order = np.random.default_rng(0).permutation(len(first))
    found = mcnemar(first[order], second[order])
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (5, 3, 2, 7)


@pytest.mark.parametrize(
    ("alternative", "p_value"),
    [
        ("two-sided", 2 * (comb(12, 0) + comb(12, 1) + comb(12, 2)) / 2**12),  # 0.0386
        ("greater", (comb(12, 0) + comb(12, 1) + comb(12, 2)) / 2**12),
    ],
)
def test_mcnemar_of_ten_against_two_agrees_with_a_calculation_by_hand(alternative: Alternative, p_value: float) -> None:
    found = mcnemar(*truths(both_right=80, only_first=10, only_second=2, both_wrong=8), alternative=alternative)
    assert found.p_value == pytest.approx(p_value, rel=1e-12)
    assert found.alternative == alternative


@given(b=st.integers(0, 60), c=st.integers(0, 60), agreeing=st.integers(0, 50))
def test_one_sided_p_values_are_exact_binomial_tails(b: int, c: int, agreeing: int) -> None:
    n = b + c
    tail = sum(comb(n, k) for k in range(b, n + 1)) / 2**n
    found = mcnemar(*truths(only_first=b, only_second=c, both_right=agreeing), alternative="greater")
    assert found.p_value == pytest.approx(tail, rel=1e-9)


@given(b=st.integers(0, 60), c=st.integers(0, 60))
def test_two_sided_p_value_does_not_depend_on_the_order_of_the_models(b: int, c: int) -> None:
    first, second = truths(only_first=b, only_second=c)
    assert mcnemar(first, second).p_value == pytest.approx(mcnemar(second, first).p_value, rel=1e-9)


def test_rows_on_which_both_models_agree_do_not_matter() -> None:
    few = mcnemar(*truths(only_first=9, only_second=4))
    many = mcnemar(*truths(only_first=9, only_second=4, both_right=5000, both_wrong=300))
    assert few.p_value == many.p_value


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_without_a_disagreement_the_p_value_is_1(alternative: Alternative) -> None:
    assert mcnemar(*truths(both_right=10, both_wrong=2), alternative=alternative).p_value == 1.0
