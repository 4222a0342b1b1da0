"""Test the p-value of several tests of one claim."""

from __future__ import annotations

import numpy as np
import pytest

from studies.common.significance import combined


def test_the_combined_p_value_agrees_with_a_calculation_by_hand() -> None:
    assert combined([0.03]) == 0.03
    assert combined([0.5, 0.001, 0.02]) == pytest.approx(1.5 * 0.02)
    assert combined([0.9, 0.8, 1.0]) == 1.0


def test_the_combined_p_value_keeps_its_level_for_dependent_tests() -> None:
    random = np.random.default_rng(0)
    alone, shared = random.random((20_000, 3)), np.repeat(random.random((20_000, 1)), 3, axis=1)
    for p_values in (alone, shared):
        rate = np.mean([combined(list(three)) < 0.05 for three in p_values])
        assert rate <= 0.053  # 0.05 plus two standard errors
