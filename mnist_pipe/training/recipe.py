"""What decides a training run, apart from its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from its data.

    >>> recipe = Recipe(model="mlp", optimizer="adam", learning_rate=0.01, batch_size=128, num_epochs=3)
    >>> recipe.schedule
    'one_cycle'
    >>> Recipe(**recipe.to_dict()) == recipe
    True
    """

    model: str
    """A key of MODELS."""
    model_params: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the model."""
    optimizer: str
    """A key of OPTIMIZERS."""
    learning_rate: float
    """The peak of the schedule."""
    weight_decay: float = 0.0
    batch_size: int
    """Images a step over all workers together."""
    num_epochs: int
    schedule: str = "one_cycle"
    """A key of SCHEDULES."""
    label_smoothing: float = 0.0
    rotation_degrees: float = 0.0
    """The largest random rotation."""
    translation_pixels: float = 0.0
    """The largest random shift."""
    average_decay: float = 0.0
    """What a step leaves of the moving average of the weights; 0 keeps none and takes the last weights."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON and Ray take it; `Recipe(**d)` is the way back."""
        return asdict(self)


def recipe_of(
    point: Mapping[str, Any], *, found: Mapping[str, Any], models: Mapping[str, dict[str, Any]], **run: Any
) -> Recipe:
    """The operating point `point`, a recipe of params.yaml, with what a search `found` in place of its own.

    `models` has the constructor arguments of the models that are not the recipe's own; those that were searched come
    before them. `run` sets the other fields.
    """
    values = {**point, **found, **run}
    own = point["model_params"] if values["model"] == point["model"] else models.get(values["model"], {})
    values["model_params"] = {**own, **found.get("model_params", {})}
    names = {field.name for field in fields(Recipe)}
    return Recipe(**{key: value for key, value in values.items() if key in names})
