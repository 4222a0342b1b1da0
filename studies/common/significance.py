"""Combination of several tests of one claim on the same rows into one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def combined(p_values: Sequence[float]) -> float:
    """Return one p-value for K tests of the same claim on the same rows, which are not independent.

    Whatever the dependence of the tests, K/k times the k-th smallest p-value is a valid p-value, for a k that was fixed
    beforehand (Rüger 1978). Here k is that of the median.
    """
    middle = math.ceil(len(p_values) / 2)
    return min(1.0, len(p_values) / middle * sorted(p_values)[middle - 1])
