"""Learning-rate schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mnist_pipe.training.schedules import SCHEDULES, WARM_UP, one_cycle, triangle

GRID = [step / 1000 for step in range(1001)]


def test_the_triangle_is_straight_up_and_straight_down() -> None:
    assert [triangle(progress) for progress in (0, WARM_UP / 2, WARM_UP, (1 + WARM_UP) / 2, 1)] == [0, 0.5, 1, 0.5, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_stays_within_zero_and_the_peak(name: str) -> None:
    values = [SCHEDULES[name](progress) for progress in GRID]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1.0)


def test_one_cycle_rises_to_the_peak_then_falls_to_zero() -> None:
    values = [one_cycle(progress) for progress in GRID]
    top = int(WARM_UP * 1000)
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_has_no_jump() -> None:
    values = [one_cycle(progress) for progress in GRID]
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.005
