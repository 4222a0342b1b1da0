"""What a search chooses from: how a proposal is drawn, where the recipe is in it, and how it is shown.

All of it follows from `search.space` and from the one declaration of each field in `RecipeParams`. What depends on
another choice has a name of its own for Optuna, `learning_rate.adam` or `model_params.mlp.hidden`, and is drawn only
where that is chosen.
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
"""The fields that the table of trials has, be they searched or not."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One value that a proposal draws."""

    name: str
    """In Optuna."""
    field: str
    argument: str = ""
    """Of the model, where `field` is `model_params`."""
    domain: Sequence[Any]
    """The values to choose from, or `[low, high]`."""
    by: str
    """choice, range or log, as `Searched` has it."""

    def draw(self, trial: optuna.Trial) -> Any:
        """What Optuna suggests."""
        if self.by == "choice":
            values = {_known_to_optuna(value): value for value in self.domain}
            return values[trial.suggest_categorical(self.name, list(values))]
        return trial.suggest_float(self.name, *self.domain, log=self.by == "log")

    def holds(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        if self.by == "choice":
            return value in self.domain
        return bool(self.domain[0] <= value <= self.domain[1])


def propose(trial: optuna.Trial, *, space: Space, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a proposal, from which `config_of` takes what was searched; it has the trial's number too, from 1."""
    config: dict[str, Any] = {}
    for dimension in _dimensions(space, recipe=recipe, config=config):
        _set(config, dimension, dimension.draw(trial))
    return {"trial": trial.number + 1, **config}


def config_of(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """What a proposal searches, by field of a recipe: without the trial's number and Optuna's names."""
    return {key: value for key, value in proposal.items() if key in SEARCHED}


def start_points(recipe: Mapping[str, Any], *, space: Space) -> list[dict[str, Any]]:
    """The recipe by Optuna's names, if it lies inside the space."""
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
    """A trial's cells in the table of trials: a column for each searched field, and those that are always shown."""
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
    """What is drawn, in the order of the fields; `config` has what was drawn so far, and `recipe` the rest."""
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
    """Optuna takes numbers and text alone: a list as JSON."""
    return json.dumps(value) if isinstance(value, list) else value
