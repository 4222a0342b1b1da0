"""An exponential moving average of the weights (Polyak & Juditsky 1992), which is evaluated and kept in their place.

It lives in the optimizer's state, so that a checkpoint holds it as it holds momentum.
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
    """Take the weights of this step in; the first step's are where it starts."""
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
    """The model with its averaged weights for the time of the block; without an average, as it is."""
    swap(optimizer)
    try:
        yield
    finally:
        swap(optimizer)


def swap(optimizer: torch.optim.Optimizer) -> None:
    """Exchange the weights and their average, where there is one."""
    for parameter in _parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        if KEY in state:
            parameter.data, state[KEY] = state[KEY], parameter.data


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
