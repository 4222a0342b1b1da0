"""Learning-rate schedules: pure functions from progress in [0, 1] to a multiple of the peak learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.25


def constant(progress: float) -> float:  # noqa: ARG001
    """Return 1: the peak learning rate throughout."""
    return 1.0


def one_cycle(progress: float) -> float:
    """Return the multiple of a linear warm-up over the first quarter, then a cosine to zero.

    One-cycle schedule of Smith & Topin 2018, arXiv:1708.07120.
    """
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def triangle(progress: float) -> float:
    """Return the multiple of a linear rise from zero over the first quarter, then a linear fall to zero.

    >>> [triangle(progress) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / WARM_UP if progress < WARM_UP else (1 - progress) / (1 - WARM_UP)


def cosine(progress: float) -> float:
    """Return the multiple of half a cosine from the peak to zero.

    Schedule of Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def staircase(progress: float) -> float:
    """Return the multiple of fourteen equally long steps, each 0.7 times the one before.

    This is `StepLR` with gamma 0.7 over 14 epochs, as in pytorch/examples.
    """
    return 0.7 ** min(math.floor(14 * progress + 1e-9), 13)  # at the start of epoch k, 14 * (k / 14) may round below k


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "one_cycle": one_cycle,
    "triangle": triangle,
    "cosine": cosine,
    "staircase": staircase,
}
