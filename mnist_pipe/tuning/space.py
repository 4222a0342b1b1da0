"""The search space: how a proposal is drawn, where the recipe lies in the space, and how a trial is shown.

All of this follows from `search.space` and from the declaration of each field in `RecipeParams`. A dimension that
depends on another choice has its own name in Optuna, such as `learning_rate.adam` or `model_params.mlp.hidden`, and is
drawn only if that choice is made.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.params.schema import SEARCHED, Space
from mnist_pipe.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import optuna

PACK = "pack"
"""Key of a Tune config that holds the proposals that train together."""
MAX_GRID = 100_000
"""Largest number of points of a grid, all of which are in memory; no search has more trials."""
ALWAYS_SHOWN = ("model", "optimizer", "learning_rate")
"""Fields that the table of trials always has, whether they are searched or not."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Dimension of the search space: one value that a proposal draws."""

    name: str
    """Name of the dimension in Optuna."""
    field: str
    """Field of the recipe that the value sets."""
    argument: str = ""
    """Constructor argument of the model that the value sets, if `field` is `model_params`."""
    domain: Sequence[Any]
    """Values to choose from, or `[low, high]`."""
    by: str
    """Kind of the dimension, `choice`, `range` or `log`, as in `Searched`."""

    def draw(self, trial: optuna.Trial) -> Any:
        """Return the value that Optuna suggests."""
        if self.by == "choice":
            return self.known(trial.suggest_categorical(self.name, list(map(known_to_optuna, self.domain))))
        return trial.suggest_float(self.name, *self.domain, log=self.by == "log")

    def known(self, value: Any) -> Any:
        """Return the value of the domain that Optuna knows as `value`."""
        return {known_to_optuna(one): one for one in self.domain}[value] if self.by == "choice" else value

    def values(self, num: int) -> list[Any]:
        """Return what a grid tries, as Optuna knows it: every choice, or `num` evenly spaced values of the range."""
        if self.by == "choice":
            return [known_to_optuna(value) for value in self.domain]
        low, high = self.domain
        if num == 1:
            return [math.sqrt(low * high) if self.by == "log" else (low + high) / 2]
        spaced = np.geomspace if self.by == "log" else np.linspace
        return sorted(set(spaced(low, high, num).tolist()))  # `[low, low]` has one value

    def holds(self, value: Any) -> bool:
        """Return whether `value` can be drawn."""
        if self.by == "choice":
            return value in self.domain
        return bool(self.domain[0] <= value <= self.domain[1])


def propose(trial: optuna.Trial, *, space: Space, recipe: Mapping[str, Any], before: int = 0) -> dict[str, Any]:
    """Draw a proposal: the searched values by field of a recipe, and the trial's number, from 1, as `trial`.

    `before` is added to the trial's number in its Optuna study.
    """
    config: dict[str, Any] = {}
    for dimension in _dimensions(space, recipe=recipe, config=config):
        _set(config, dimension, dimension.draw(trial))
    return {"trial": before + trial.number + 1, **config}


def config_of(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the searched values of a proposal, by field of a recipe, without the trial's number and Optuna's names."""
    return {key: value for key, value in proposal.items() if key in SEARCHED}


def number_of(config: Mapping[str, Any]) -> int:
    """Return the number of the trial, or of the first of a pack, that a Tune config holds."""
    return int(config.get(PACK, [config])[0]["trial"])


def grid(recipe: Mapping[str, Any], *, space: Space, num_points: int) -> list[dict[str, Any]]:
    """Return every combination of values by Optuna's names, with `num_points` values of each range.

    A combination has only the dimensions that its choices have, so that none occurs twice.

    Raises:
        InputError: there are more than `MAX_GRID` combinations.
    """

    def extend(point: dict[str, Any], config: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        dimension = next(islice(_dimensions(space, recipe=recipe, config=config), depth, None), None)
        if dimension is None:
            yield point
            return
        for value in dimension.values(num_points):
            chosen = copy.deepcopy(config)
            _set(chosen, dimension, dimension.known(value))
            yield from extend({**point, dimension.name: value}, chosen, depth + 1)

    points = list(islice(extend({}, {}, 0), MAX_GRID + 1))
    if len(points) > MAX_GRID:
        fix = "lower search.grid_points or name fewer values"
        raise InputError.invalid("search.space", "the grid", f"have at most {MAX_GRID:,} points", got="more", fix=fix)
    return points


def start_points(recipe: Mapping[str, Any], *, space: Space) -> list[dict[str, Any]]:
    """Return the recipe as the only first point, by Optuna's names, or no point if it lies outside the space."""
    point = {}
    for dimension in _dimensions(space, recipe=recipe, config=recipe):
        values = recipe
        if dimension.argument:
            values = {**models.defaults(recipe["model"]), **recipe["model_params"]}
        value = values[dimension.argument or dimension.field]
        value = list(value) if isinstance(value, tuple) else value  # the default of an argument may be a tuple
        if not dimension.holds(value):
            return []
        point[dimension.name] = known_to_optuna(value)
    return [point]


def row(config: Mapping[str, Any], *, space: Space, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's cells in the table of trials: a column for each searched field and for `ALWAYS_SHOWN`."""
    cells: dict[str, Any] = {}
    for field in SEARCHED:
        if field == "model_params":
            arguments = sorted({argument for domains in space.get(field, {}).values() for argument in domains})
            own = config.get(field, {})
            cells |= {f"{field}.{argument}": own.get(argument) for argument in arguments}
        elif field in space or field in ALWAYS_SHOWN:
            cells[field] = config.get(field, recipe[field])
    return cells


def columns(space: Space, *, recipe: Mapping[str, Any]) -> dict[str, Dimension]:
    """Return, by column of `row`, a dimension with every value that a trial of the search may have there."""
    found: dict[str, Dimension] = {}
    choices = {
        name: space.get(name, [recipe[name]]) for name in ("model", *(h.each for h in SEARCHED.values() if h.each))
    }
    for config in (dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())):
        for one in _dimensions(space, recipe=recipe, config=config):
            name = f"{one.field}.{one.argument}" if one.argument else one.field
            both = [*(found[name].domain if name in found else ()), *one.domain]
            merged = [value for index, value in enumerate(both) if value not in both[:index]]
            found[name] = replace(one, domain=merged if one.by == "choice" else [min(both), max(both)])
    return found


def _dimensions(space: Space, *, recipe: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Dimension]:
    """Yield the dimensions to draw, in the order of the fields.

    A dimension may depend on an earlier choice: it is taken from `config`, which holds the values drawn so far, or from
    `recipe` if the field is not searched.
    """
    for field, how in SEARCHED.items():
        if field not in space:
            continue
        domain = space[field]
        if how.by == "arguments":
            model = config.get("model", recipe["model"])
            for argument, own in domain.get(model, {}).items():
                by = models.searched(model)[argument].by
                yield Dimension(name=f"{field}.{model}.{argument}", field=field, argument=argument, domain=own, by=by)
        elif how.each:
            chosen = config.get(how.each, recipe[how.each])
            own = domain.get(chosen, OPTIMIZERS[chosen].learning_rate)
            yield Dimension(name=f"{field}.{chosen}", field=field, domain=own, by=how.by)
        else:
            yield Dimension(name=field, field=field, domain=domain, by=how.by)


def _set(config: dict[str, Any], dimension: Dimension, value: Any) -> None:
    if dimension.argument:
        config.setdefault(dimension.field, {})[dimension.argument] = value
    else:
        config[dimension.field] = value


def known_to_optuna(value: Any) -> Any:
    """Return `value` in a type that Optuna accepts as a choice: a list becomes JSON text."""
    return json.dumps(value) if isinstance(value, list) else value
