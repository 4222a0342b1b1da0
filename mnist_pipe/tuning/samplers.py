"""The samplers, which propose the trials of a search, by their name in `search.algorithm`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

# Optuna is imported when a sampler is built, so that the names can be checked without it.


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """Factory of one of Optuna's samplers, and what its proposals depend on."""

    build: Callable[[int], optuna.samplers.BaseSampler]
    """Function of the seed that returns the sampler."""
    learns: bool = True
    """Whether a proposal depends on the results of earlier trials; if not, all are drawn at once."""
    is_grid: bool = False
    """Whether the proposals are the points of `space.grid`, which leave the sampler nothing to draw."""


def _random(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed)


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


def _cma_es(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import CmaEsSampler

    # It has no rule for a choice, nor for a dimension that only some trials have: both are drawn at random. Optuna
    # would warn of that in each trial.
    return CmaEsSampler(seed=seed, warn_independent_sampling=False, independent_sampler=_random(seed))


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GPSampler

    # A dimension that only some trials have is drawn at random, as above.
    return GPSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS = {
    "random": SamplerSpec(build=_random, learns=False),
    "tpe": SamplerSpec(build=_tpe),
    "cma-es": SamplerSpec(build=_cma_es),
    "gp": SamplerSpec(build=_gp),
    "grid": SamplerSpec(build=_random, learns=False, is_grid=True),
}
