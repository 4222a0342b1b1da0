"""The schedulers, which decide how long a trial of a search trains, by their name in `search.scheduler`.

None of them pauses a trial, so that no trial needs a checkpoint: a search resumes from the histories of its ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_pipe.tuning.space import number_of

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from mnist_pipe.params.schema import SearchParams

# Ray is imported when a scheduler is built, so that the names can be checked without it.


def build(params: SearchParams) -> TrialScheduler:
    """Return the scheduler of a search, which gives a free process to the newest pending trial.

    Tune would choose the oldest pending trial. For that trial, a process may already be starting on a node that joined,
    and Tune would end that process. If trials are shorter than such a start, the node would never be used.
    """
    kind, options = SCHEDULERS[params.scheduler](params)
    return type(f"NewestFirst{kind.__name__}", (kind,), {"choose_trial_to_run": _newest})(**options)


def _newest(_: Any, tune_controller: Any) -> Any:
    # Tune's own rule, and this one before, looks at all trials, so that a trial takes longer the more there were.
    pending = [trial for trial in tune_controller.get_live_trials() if trial.status == trial.PENDING]
    return max(pending, key=lambda trial: number_of(trial.config), default=None)


Choice = tuple[type, dict[str, Any]]
"""One of Tune's classes, and the arguments of its constructor."""


def _asha(params: SearchParams) -> Choice:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler, {
        "time_attr": "epoch",
        "max_t": params.num_epochs,
        "grace_period": 1,
        "reduction_factor": params.reduction_factor,
    }


def _hyperband(params: SearchParams) -> Choice:
    """Return HyperBand as Ray recommends it: asynchronous, as ASHA with all of HyperBand's brackets.

    A trial belongs to one bracket, from the one that stops trials after their first epoch to the one that stops none.
    Ray's synchronous `HyperBandScheduler` would pause trials until their bracket is full.
    """
    kind, options = _asha(params)
    brackets = 1 + int(math.log(params.num_epochs) / math.log(params.reduction_factor))
    return kind, {**options, "brackets": brackets}


def _median(_: SearchParams) -> Choice:
    from ray.tune.schedulers import MedianStoppingRule

    # While there are too few trials to compare with, Tune would pause a trial after each `min_time_slice`.
    return MedianStoppingRule, {"time_attr": "epoch", "grace_period": 1, "min_time_slice": math.inf}


def _fifo(_: SearchParams) -> Choice:
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler, {}


SCHEDULERS: dict[str, Callable[[SearchParams], Choice]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "fifo": _fifo,
}
