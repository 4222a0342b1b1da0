"""Learning-rate schedules: pure functions of progress in [0, 1] to a multiple of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.25


def constant(progress: float) -> float:  # noqa: ARG001
    """The peak rate throughout."""
    return 1.0


def one_cycle(progress: float) -> float:
    """Linear warm-up over the first quarter, then a cosine to zero (Smith & Topin 2018, 1708.07120)."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def triangle(progress: float) -> float:
    """Linear from zero over the first quarter, then linear to zero.

    >>> [triangle(progress) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / WARM_UP if progress < WARM_UP else (1 - progress) / (1 - WARM_UP)


def cosine(progress: float) -> float:
    """Half a cosine from the peak to zero (Loshchilov & Hutter 2017, 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def staircase(progress: float) -> float:
    """Fourteen equal steps, each 0.7 of the one before: the 14 epochs of pytorch/examples, `StepLR` with gamma 0.7."""
    return 0.7 ** min(math.floor(14 * progress + 1e-9), 13)  # where an epoch starts, 14 * (k / 14) may round below k


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "one_cycle": one_cycle,
    "triangle": triangle,
    "cosine": cosine,
    "staircase": staircase,
}
