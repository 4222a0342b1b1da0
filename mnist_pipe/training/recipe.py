"""The recipe of a training run: every setting that defines it, apart from its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that define a training run, apart from its data.

    >>> recipe = Recipe(model="mlp", optimizer="adam", learning_rate=0.01, batch_size=128, num_epochs=3)
    >>> recipe.schedule
    'one_cycle'
    >>> Recipe(**recipe.to_dict()) == recipe
    True
    """

    model: str
    """Name of the model, a key of MODELS."""
    model_params: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the model."""
    optimizer: str
    """Name of the optimizer, a key of OPTIMIZERS."""
    learning_rate: float
    """Peak learning rate of the schedule."""
    weight_decay: float = 0.0
    """Weight decay of weights; biases and norms do not decay."""
    batch_size: int
    """Number of images per step, over all workers."""
    num_epochs: int
    """Number of passes over the training split."""
    schedule: str = "one_cycle"
    """Name of the learning-rate schedule, a key of SCHEDULES."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread evenly over the classes, in [0, 1]."""
    rotation_degrees: float = 0.0
    """Largest random rotation in either direction, in degrees."""
    translation_pixels: float = 0.0
    """Largest random shift along each axis, in pixels."""
    average_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights; 0 disables it and keeps the last weights."""
    balance: str = "none"
    """What makes up for classes with few rows: `none`, `weights` of the loss or `sampling` of the rows."""
    precision: str = "auto"
    """Precision of the products of a training step: `auto`, `float32`, `tf32` or `bfloat16`."""
    seed: int = 0
    """Seed of the weights and of every random draw in training."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON values; `Recipe(**d)` is the inverse."""
        return asdict(self)


def recipe_of(
    point: Mapping[str, Any], *, found: Mapping[str, Any], models: Mapping[str, dict[str, Any]], **run: Any
) -> Recipe:
    """Return the `Recipe` of a recipe in params.yaml, with the values that a search found in place of its own.

    Args:
        point: the recipe of params.yaml.
        found: the values that a search found, by field; they take precedence over `point`.
        models: constructor arguments of the models other than the recipe's own; searched ones take precedence.
        run: values of the other fields.
    """
    values = {**point, **found, **run}
    own = point["model_params"] if values["model"] == point["model"] else models.get(values["model"], {})
    values["model_params"] = {**own, **found.get("model_params", {})}
    names = {field.name for field in fields(Recipe)}
    return Recipe(**{key: value for key, value in values.items() if key in names})
