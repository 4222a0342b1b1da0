"""The search space: how a proposal is drawn, where the recipe lies in the space, and how a trial is shown.

All of this follows from `search.space` and from the declaration of each field in `RecipeParams`. A dimension that
depends on another choice has its own name in Optuna, such as `learning_rate.adam` or `model_params.mlp.hidden`, and is
drawn only if that choice is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnist_pipe import models
from mnist_pipe.params.schema import SEARCHED, Space
from mnist_pipe.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import optuna

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
            values = {_known_to_optuna(value): value for value in self.domain}
            return values[trial.suggest_categorical(self.name, list(values))]
        return trial.suggest_float(self.name, *self.domain, log=self.by == "log")

    def holds(self, value: Any) -> bool:
        """Return whether `value` can be drawn."""
        if self.by == "choice":
            return value in self.domain
        return bool(self.domain[0] <= value <= self.domain[1])


def propose(trial: optuna.Trial, *, space: Space, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a proposal: the searched values by field of a recipe, and the trial's number, from 1, as `trial`."""
    config: dict[str, Any] = {}
    for dimension in _dimensions(space, recipe=recipe, config=config):
        _set(config, dimension, dimension.draw(trial))
    return {"trial": trial.number + 1, **config}


def config_of(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the searched values of a proposal, by field of a recipe, without the trial's number and Optuna's names."""
    return {key: value for key, value in proposal.items() if key in SEARCHED}


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
        point[dimension.name] = _known_to_optuna(value)
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


def _known_to_optuna(value: Any) -> Any:
    """Return `value` in a type that Optuna accepts as a choice: a list becomes JSON text."""
    return json.dumps(value) if isinstance(value, list) else value
