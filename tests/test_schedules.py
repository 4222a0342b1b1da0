"""Test the learning-rate schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mnist_pipe.training.schedules import SCHEDULES, WARM_UP, cosine, one_cycle, staircase, triangle

GRID = [step / 1000 for step in range(1001)]


def test_the_triangle_rises_and_falls_linearly() -> None:
    assert [triangle(progress) for progress in (0, WARM_UP / 2, WARM_UP, (1 + WARM_UP) / 2, 1)] == [0, 0.5, 1, 0.5, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_between_zero_and_the_peak(name: str) -> None:
    values = [SCHEDULES[name](progress) for progress in GRID]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1.0)


def test_one_cycle_rises_to_the_peak_then_falls_to_zero() -> None:
    values = [one_cycle(progress) for progress in GRID]
    top = int(WARM_UP * 1000)
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_is_continuous() -> None:
    values = [one_cycle(progress) for progress in GRID]
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.005


def test_the_cosine_falls_from_the_peak_to_zero() -> None:
    assert [cosine(progress) for progress in (0, 1 / 3, 0.5, 2 / 3, 1)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("num_steps", [1, 7, 937])
def test_the_staircase_over_14_epochs_agrees_with_torchs_step_lr(num_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(14):
        for step in range(num_steps):
            progress = (epoch * num_steps + step) / (14 * num_steps)
            assert staircase(progress) == pytest.approx(optimizer.param_groups[0]["lr"]), (epoch, step)
        optimizer.step()
        oracle.step()
