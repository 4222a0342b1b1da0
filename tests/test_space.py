"""Test the search space: everything about a searched field of a recipe follows from its one declaration."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnist_pipe import models, preflight
from mnist_pipe.errors import InputError
from mnist_pipe.models import MODELS
from mnist_pipe.params.schema import SEARCHED, RecipeParams, Space
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe, recipe_of
from mnist_pipe.tuning import search
from mnist_pipe.tuning.space import ALWAYS_SHOWN, config_of, row, start_points
from tests.support import ROOT

PARAMS = preflight.load_params(ROOT / "params.yaml")
RECIPE = {**PARAMS.recipes["standard"].model_dump(), "num_epochs": 2}  # no more than a trial of the search may have
DOMAINS: dict[str, Any] = {
    "model": ["mlp", "convnet"],
    "model_params": {"convnet": {"channels": [[16, 32, 64], [8]], "crop": [0, 3]}, "cnn": {"dropout": [0.0, 0.5]}},
    "optimizer": ["adam", "muon"],
    "learning_rate": {"muon": [0.001, 0.1]},
    "weight_decay": [1e-6, 1e-3],
    "batch_size": [128, 256],
    "num_epochs": [1, 2],
    "schedule": ["constant", "triangle"],
    "label_smoothing": [0.0, 0.1],
    "average_decay": [0.0, 0.9],
    "balance": ["none", "weights"],
    "rotation_degrees": [0, 10],
    "translation_pixels": [0, 2],
}
"""Domain of each searched field; it contains the recipe `standard`."""


def drawn(space: Space, *, num_trials: int = 16, points: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the configurations of a random search of `space`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    params = PARAMS.search.model_copy(update={"space": space, "num_trials": num_trials, "algorithm": "random"})
    return [config_of(proposal) for proposal in search.draw(params, recipe=RECIPE, points=points or [])]


def load(folder: Path, space: str) -> Space:
    """Return `search.space` of a params.yaml, validated as the stage `search` does before it starts."""
    text, path = (ROOT / "params.yaml").read_text(), folder / "params.yaml"
    start, end = text.index("  space:"), text.index("\ntrain:")
    path.write_text(f"{text[:start]}  space: {space}\n{text[end:]}")
    loaded = preflight.load_params(path).search.space
    models.check({}, space=loaded.get("model_params"))
    return loaded


def test_every_field_but_seed_and_precision_can_be_searched() -> None:
    assert SEARCHED.keys() == DOMAINS.keys()
    assert SEARCHED.keys() == {field.name for field in fields(Recipe)} - {"seed", "precision"}
    assert SEARCHED.keys() <= RecipeParams.model_fields.keys()


@pytest.mark.parametrize("field", SEARCHED)
def test_any_field_can_be_searched_alone(field: str, tmp_path: Path) -> None:
    space = load(tmp_path, json.dumps({field: DOMAINS[field]}))
    assert space == {field: DOMAINS[field]}
    configs = drawn(space)
    assert all(config.keys() == {field} for config in configs)
    values = [config[field] for config in configs]
    assert len({json.dumps(value) for value in values}) > 1
    (point,) = start_points(RECIPE, space=space)
    assert drawn(space, num_trials=1, points=[point]) == [{field: expected(field)}]
    for config in configs:
        recipe = recipe_of(RECIPE, found=config, models=PARAMS.models)
        changed = {**RECIPE, **config, "model_params": recipe.model_params}
        assert recipe == recipe_of(changed, found={}, models={})
        cells = row(config, space=space, recipe=RECIPE)
        assert cells.keys() - {field} >= {*ALWAYS_SHOWN} - {field}


def expected(field: str) -> Any:
    """Return the recipe's value of a searched field."""
    return {"channels": [16, 32, 64], "crop": 3} if field == "model_params" else RECIPE[field]


def test_all_fields_can_be_searched_together() -> None:
    configs = drawn(DOMAINS, num_trials=64)
    for config in configs:
        low, high = DOMAINS["learning_rate"].get(config["optimizer"], OPTIMIZERS[config["optimizer"]].learning_rate)
        assert low <= config["learning_rate"] <= high
        assert ("model_params" in config) == (config["model"] == "convnet")
        cells = row(config, space=DOMAINS, recipe=RECIPE)
        assert cells["model_params.channels"] == config.get("model_params", {}).get("channels")
        assert cells["batch_size"] == config["batch_size"]
        assert list(cells) == list(row(configs[0], space=DOMAINS, recipe=RECIPE))
    assert {config["model"] for config in configs} == {"mlp", "convnet"}
    assert {config["batch_size"] for config in configs} == {128, 256}  # a choice, though it has two numbers
    assert len({config["weight_decay"] for config in configs}) == len(configs)


def test_the_shipped_space_gives_the_recorded_proposals_and_columns() -> None:
    """Compare with numbers that were computed before every field became searchable."""
    params = PARAMS.search
    points = start_points(RECIPE, space=params.space)
    proposals = search.draw(params.model_copy(update={"algorithm": "random"}), recipe=RECIPE, points=points)
    assert [list(proposal) for proposal in proposals[:2]] == [
        [
            "model",
            "optimizer",
            f"learning_rate.{optimizer}",
            "weight_decay",
            "batch_size",
            "rotation_degrees",
            "translation_pixels",
            "trial",
            "learning_rate",
        ]
        for optimizer in ("muon", "adamw")
    ]
    assert config_of(proposals[1]) == {
        "model": "lenet5",
        "optimizer": "adamw",
        "learning_rate": 0.0043593844147586215,
        "weight_decay": 5.059803874660435e-05,
        "batch_size": 128,
        "rotation_degrees": 5.14152878208228,
        "translation_pixels": 1.332619845547938,
    }
    assert ",".join(row(config_of(proposals[1]), space=params.space, recipe=RECIPE)) == (
        "model,optimizer,learning_rate,weight_decay,batch_size,rotation_degrees,translation_pixels"
    )


@pytest.mark.parametrize("name", MODELS)
def test_any_constructor_argument_can_be_searched(name: str, tmp_path: Path) -> None:
    for argument, how in models.searched(name).items():
        default = models.defaults(name)[argument]
        domain = [default, default] if how.by == "range" else [list(default) if isinstance(default, tuple) else default]
        space = load(tmp_path, json.dumps({"model": [name], "model_params": {name: {argument: domain}}}))
        (config,) = drawn(space, num_trials=1)
        assert models.build(name, **recipe_of(RECIPE, found=config, models={}).model_params)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "{lable_smoothing: [0, 0.1]}",
            "search.space.lable_smoothing must be a known key, but got 'lable_smoothing'; did you mean "
            "'label_smoothing'?",
        ),
        (
            "{test_time_augmentation: [true, false]}",
            "search.space.test_time_augmentation must be a known key, but got 'test_time_augmentation'; ",
        ),
        ("{num_epochs: [0, 1]}", "search.space.num_epochs[0] must be >= 1, but got 0"),
        ("{num_epochs: [1, 99]}", "search.space.num_epochs must be at most search.num_epochs, which is 3, but got 99"),
        ("{batch_size: 128}", "search.space.batch_size must be a list, but got 128"),
        (
            "{label_smoothing: [0, 0.1, 0.2]}",
            "search.space.label_smoothing must have 2 or fewer entries, but got [0, 0.1, 0.2]",
        ),
        (
            "{rotation_degrees: [9, 5]}",
            "search.space.rotation_degrees must be [low, high] with low <= high, but got [9, 5]; swap them",
        ),
        ("{learning_rate: [0.1, 1]}", "search.space.learning_rate must be a mapping, but got [0.1, 1]"),
        ("{learning_rate: {adm: [0.1, 1]}}", "search.space.learning_rate.adm must be one of adadelta, adagrad, adam, "),
        ("{schedule: [triangel]}", "search.space.schedule[0] must be one of "),
        ("{model_params: {mpl: {hidden: [[3]]}}}", "search.space.model_params.mpl must be one of cnn, convnet, "),
        (
            "{model_params: {mlp: {hiden: [[3]]}}}",
            "search.space.model_params.mlp.hiden must be a known key, but got 'hiden'; did you mean 'hidden'?",
        ),
        (
            "{model_params: {mlp: {hidden: [[3], [4, 0]]}}}",
            "search.space.model_params.mlp.hidden[1][1] must be >= 1, but got 0",
        ),
        (
            "{model_params: {mlp: {hidden: [15, 30]}}}",
            "search.space.model_params.mlp.hidden[0] must be a list, but got 15",
        ),
        (
            "{model_params: {cnn: {dropout: [0.5, 0.1]}}}",
            "search.space.model_params.cnn.dropout must be [low, high] with low <= high, but got [0.5, 0.1]; swap them",
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_or_domain_is_one_line(space: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, space)
    first = str(caught.value).splitlines()[0]
    assert first.partition(": ")[2].startswith(message)


def test_a_recipe_outside_the_space_is_no_start_point() -> None:
    assert start_points(RECIPE, space={"batch_size": [64]}) == []
    assert start_points(RECIPE, space={"rotation_degrees": [0.0, 5.0]}) == []
    assert start_points(RECIPE, space={"model_params": {"convnet": {"crop": [0]}}}) == []
    assert start_points(RECIPE, space={"model_params": {"convnet": {"convolutions": [1, 2]}}}) == [
        {"model_params.convnet.convolutions": 1}  # the constructor's default
    ]
