"""Several tests of one claim on the same rows as one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def combined(p_values: Sequence[float]) -> float:
    """One p-value of K tests of the same claim on the same rows, which are not independent.

    Whatever their dependence, K/k times the k-th smallest is one, for a k that was fixed beforehand (Rüger 1978); here
    it is that of the median.
    """
    middle = math.ceil(len(p_values) / 2)
    return min(1.0, len(p_values) / middle * sorted(p_values)[middle - 1])
