"""Exponential moving average of the weights (Polyak & Juditsky 1992), which is evaluated and saved in their place.

The average is part of the optimizer's state, so a checkpoint holds it in the same way as momentum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

KEY = "average"


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, *, decay: float) -> None:
    """Update the average of each parameter with the weights of this step; the first step's weights initialise it."""
    parameters, averages = [], []
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        if KEY not in state:
            state[KEY] = parameter.detach().clone(memory_format=torch.preserve_format)
        parameters.append(parameter)
        averages.append(state[KEY])
    get_ema_multi_avg_fn(decay)(averages, parameters, len(averages))  # type: ignore[no-untyped-call]


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Give the model its averaged weights within the block; if there is no average, leave the model as it is."""
    swap(optimizer)
    try:
        yield
    finally:
        swap(optimizer)


def swap(optimizer: torch.optim.Optimizer) -> None:
    """Exchange each parameter's weights and their average, if there is one."""
    for parameter in _parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        if KEY in state:
            parameter.data, state[KEY] = state[KEY], parameter.data


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
