"""Test the study `optimizers`: networks computed together equal separate ones, and the defaults are Keras's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.models import numerics
from mnist_pipe.models.lenet5 import AveragedConv2d
from mnist_pipe.training import loop
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from studies.common.ledger import Run
from studies.optimizers import figures, findings, results, runs, side_by_side
from studies.optimizers.runs import KERAS_DEFAULTS, Params, Rung
from tests.support import ray_data
from tests.support.studies import check_rendered, legend, measured, points, recorded
from tests.support.training import CPU, blobs

Array = NDArray[np.float64]
RUNGS = [Rung(num_epochs=epochs, num_rates=rates) for epochs, rates in ((2, 2), (1, 3), (7, 1))]
PARAMS = Params(num_epochs=7, batch_size=32, num_seeds=3, search_rates=3, search_rungs=RUNGS, search_seed=0)
SPLITS = {
    name: ray_data.split(rows, seed=seed)
    for seed, (name, rows) in enumerate({"train": 200, "validation": 50, "test": 100}.items())
}


def new(*seeds: int, convolutions: Literal["relu", "linear"] = "linear") -> list[nn.Module]:
    """Return one LeNet-5 for each seed."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(models.build("lenet5", **{**runs.MODEL, "convolutions": convolutions}))
    return found


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


def test_glorots_first_weights_are_within_their_bound_and_fill_it() -> None:
    # A convolution's fans are its inputs and its outputs, each times its 25 kernel weights.
    fans = {"0": (25, 6 * 25), "3": (6 * 25, 16 * 25), "7": (400, 120), "9": (120, 84), "11": (84, 10)}
    torch.manual_seed(0)
    layers = dict(models.build("lenet5", initial="glorot").layers.named_children())  # type: ignore[union-attr]
    for name, sizes in fans.items():
        bound = math.sqrt(6 / sum(sizes))
        assert 0.95 * bound < layers[name].get_parameter("weight").abs().max() <= bound
        assert not layers[name].get_parameter("bias").any()


def test_linear_convolutions_have_no_activation_before_their_pools() -> None:
    first, second = blobs(4).images, blobs(4, seed=1).images
    for convolutions, is_linear in (("linear", True), ("relu", False)):
        torch.manual_seed(0)
        layers = models.build("lenet5", convolutions=convolutions).layers
        assert isinstance(layers, torch.nn.Sequential)
        features = layers[: 3 if convolutions == "linear" else 7]
        of_none = features(torch.zeros_like(first))
        error = features(first + second) - features(first) - features(second) + of_none
        assert bool(error.abs().max() < 1e-5) == is_linear


def test_an_averaged_convolution_is_a_convolution_and_a_pool() -> None:
    images = torch.randn(3, 2, 10, 12, generator=torch.Generator().manual_seed(0))
    as_one = AveragedConv2d(2, 4, 5, padding=1)
    apart = F.avg_pool2d(F.conv2d(images, as_one.weight, as_one.bias, padding=1), 2)
    torch.testing.assert_close(as_one(images), apart)


@pytest.mark.parametrize("rows", [1, 5, 32])
@pytest.mark.parametrize("convolutions", ["linear", "relu"])
def test_stacked_networks_agree_with_single_ones(convolutions: Literal["relu", "linear"], rows: int) -> None:
    networks, data = new(0, 1, 2, convolutions=convolutions), blobs(rows)
    together = side_by_side.LeNets(networks, convolutions=convolutions, dtype=torch.float32)
    logits = together.logits(data.images)
    F.cross_entropy(logits, data.labels.expand(3, -1), reduction="sum").backward()
    for index, network in enumerate(networks):
        alone = network(data.images)
        F.cross_entropy(alone, data.labels, reduction="sum").backward()
        torch.testing.assert_close(logits[index].T, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.weights.grad[index], gradient(network), rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_only_the_chosen_members_are_computed_and_learn() -> None:
    networks, data = new(0, 1, 2), blobs(32)
    whole, part = (side_by_side.LeNets(networks, convolutions="linear", dtype=torch.float32) for _ in range(2))
    part.members = [0, 2]
    torch.testing.assert_close(part.logits(data.images), whole.logits(data.images)[[0, 2]])
    F.cross_entropy(part.logits(data.images), data.labels.expand(2, -1), reduction="sum").backward()
    assert part.weights.grad is not None
    assert [bool(row.any()) for row in part.weights.grad] == [True, False, True]
    assert side_by_side.accuracies(part, data) == [side_by_side.accuracies(whole, data)[member] for member in (0, 2)]


def test_stacked_networks_in_bfloat16_are_as_exact_as_autocast() -> None:
    network, data = new(0)[0], blobs(256)
    together = side_by_side.LeNets([network], convolutions="linear", dtype=torch.bfloat16)
    F.cross_entropy(together.logits(data.images)[0].T, data.labels).backward()
    F.cross_entropy(network(data.images), data.labels).backward()
    exact = gradient(network)
    network.zero_grad()
    with numerics.autocast("bfloat16", CPU):
        logits = network(data.images).float()
    F.cross_entropy(logits, data.labels).backward()
    ours, theirs = (float((found - exact).norm()) for found in (together.weights.grad[0], gradient(network)))  # type: ignore[index]
    assert 0 < ours < 2 * theirs


def test_optimizers_trained_side_by_side_agree_with_the_training_loop() -> None:
    names, training, validation = list(KERAS_DEFAULTS), blobs(200), blobs(100, seed=1)
    recipes = [
        Recipe(
            model="lenet5",
            model_params=runs.MODEL,
            optimizer=name,
            learning_rate=runs.rates_of(name)[0],
            batch_size=32,
            num_epochs=3,
            schedule="constant",
            weight_decay=runs.DECAY.get(name, 0.0),
            precision="float32",
            seed=4,
        )
        for name in names
    ]
    model, _ = loop.new_run(recipes[0], device=CPU)
    nets = side_by_side.LeNets([model] * len(names), convolutions="linear", dtype=torch.float32)
    steppers = [
        runs.optimizer_of(
            recipe.optimizer,
            nets.member(index, whole=name not in runs.BY_SHAPE),
            rate=recipe.learning_rate,
            constants="torch",
        )
        for index, (name, recipe) in enumerate(zip(names, recipes, strict=True))
    ]
    epochs = [
        (losses, side_by_side.accuracies(nets, validation))
        for losses in side_by_side.train(nets, steppers, training=training, recipe=recipes[0])
    ]
    for index, recipe in enumerate(recipes):
        network, optimizer = loop.new_run(recipe, device=CPU)
        history = loop.train(recipe, model=network, optimizer=optimizer, training=training, validation=validation)
        for (losses, accuracies), alone in zip(epochs, history, strict=True):
            assert losses[index] == pytest.approx(alone["train_loss"], rel=1e-4), recipe.optimizer
            assert accuracies[index] == pytest.approx(alone["validation_accuracy"], abs=0.011), recipe.optimizer


def sgd(momentum: float) -> Callable[..., Array]:
    def step(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:  # noqa: ARG001
        s["m"] = momentum * s.get("m", 0) - 0.01 * g
        return w + s["m"]

    return step


def adagrad(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:  # noqa: ARG001
    s["a"] = s.get("a", 0.1) + g**2
    return w - 0.001 * g / np.sqrt(s["a"] + 1e-7)


def rmsprop(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:  # noqa: ARG001
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    return w - 0.001 * g / np.sqrt(s["v"] + 1e-7)


def adadelta(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:  # noqa: ARG001
    s["g"] = 0.95 * s.get("g", 0) + 0.05 * g**2
    delta = -np.sqrt(s.get("d", 0) + 1e-7) / np.sqrt(s["g"] + 1e-7) * g
    s["d"] = 0.95 * s.get("d", 0) + 0.05 * delta**2
    return w + 0.001 * delta


def adam(*, amsgrad: bool = False, decay: float = 0.0) -> Callable[..., Array]:
    def step(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:
        w = w - 0.001 * decay * w
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
        s["max"] = np.maximum(s.get("max", 0), s["v"])
        rate = 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return w - rate * s["m"] / (np.sqrt(s["max"] if amsgrad else s["v"]) + 1e-7)

    return step


def nadam(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:
    now, following = (0.9 * (1 - 0.5 * 0.96**n) for n in (t, t + 1))
    s["u"] = s.get("u", 1.0) * now
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    m = following * s["m"] / (1 - s["u"] * following) + (1 - now) * g / (1 - s["u"])
    return w - 0.001 * m / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-7)


def adamax(w: Array, g: Array, t: int, s: dict[str, Any]) -> Array:
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), np.abs(g))
    return w - 0.001 * s["m"] / ((1 - 0.9**t) * (s["u"] + 1e-7))


# Each maps (weights, gradient, step from 1, state) to weights, as `update_step` of keras/src/optimizers in Keras 3.15.
# Muon is left out: Keras's, unlike ours, optimizes the first and the last layer with Adam.
KERAS: dict[str, Callable[..., Array]] = {
    "sgd": sgd(0.0),
    "momentum": sgd(0.9),
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adadelta": adadelta,
    "adam": adam(),
    "amsgrad": adam(amsgrad=True),
    "adamw": adam(decay=0.004),
    "nadam": nadam,
    "adamax": adamax,
}


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_the_default_settings_agree_with_keras(name: str, scale: float) -> None:
    generator = np.random.default_rng(0)
    start = 0.1 * generator.normal(size=100)
    vector = nn.Parameter(torch.tensor(start))
    rate = KERAS_DEFAULTS[name][1]["lr"]
    optimizer = runs.optimizer_of(name, nn.ParameterList([vector]), rate=rate, constants="keras")
    weights, state = start, dict[str, Any]()
    for step in range(1, 51):
        slope = scale * generator.normal(size=100) * generator.choice([0.1, 1.0])
        weights = KERAS[name](weights, slope, step, state)
        vector.grad = torch.tensor(slope)
        optimizer.step()
    # Keras adds Adam's epsilon before the bias correction of the second moment, and torch after it.
    tolerance = 0.01 if name in ("adam", "amsgrad", "adamw") else 1e-5
    error = np.linalg.norm(vector.detach().numpy() - weights)
    assert error < tolerance * np.linalg.norm(weights - start)


def test_every_optimizer_is_registered_and_has_a_label() -> None:
    assert set(KERAS_DEFAULTS) == set(results.NAMES) == set(OPTIMIZERS) - {"nesterov"}
    assert {name: constants["lr"] for name, (_, constants) in KERAS_DEFAULTS.items()} == {
        **dict.fromkeys(KERAS_DEFAULTS, 0.001),
        "sgd": 0.01,
        "momentum": 0.01,
    }


def searched() -> list[Run]:
    """Return a search for each optimizer, in which the rate in the middle of the range is the best at the end."""
    found = []
    for config in runs.plan(PARAMS):
        low, high = runs.rates_of(config["optimizer"])
        rates = [low, math.sqrt(low * high)]
        last = {"epoch": 7, "learning_rates": rates, "train_loss": [0.1, 0.1], "validation_accuracy": [0.96, 0.97]}
        found.append(Run(config=config, result={"rungs": [last]}))
    return found


def computed(finals: dict[str, dict[str, float]]) -> list[Run]:
    """Return all runs of a study with the last accuracies `finals`, 0.99 by default, plus 0.0004 for each seed."""
    done = searched()
    for config in runs.plan_columns(PARAMS, done):
        result: dict[str, Any] = {"epochs": [1, 5], "parameters": 61_706}
        for name in config["learning_rates"]:
            last = finals.get(config["phase"], {}).get(name, 0.99) + 0.0004 * (config["seed"] - 1)
            result[name] = {"train_loss": [2.0, None], "test_accuracy": [0.3, round(last, 6)]}
        done.append(Run(config=config, result=result))
    return done


def rendered(done: Sequence[Run]) -> str:
    found = measured(done)
    return findings.render_findings(found, findings.rows(found))


def test_the_plan_covers_every_column_optimizer_and_seed() -> None:
    configs = runs.plan_columns(PARAMS, searched())
    assert {config["phase"] for config in configs} == {*results.PHASES, *results.CONTROL_LABELS}
    phases: dict[str, Iterable[str]] = {
        "defaults": KERAS_DEFAULTS,
        "tuned": KERAS_DEFAULTS,
        "rectified": runs.REPORTED,
        "first epoch": ["sgd"],
        "slower": ["sgd"],
        "other start": ["sgd", "adam"],
    }
    for phase, names in phases.items():
        members = sorted((name, c["seed"]) for c in configs if c["phase"] == phase for name in c["learning_rates"])
        assert members == sorted(
            (name, seed) for name in names for seed in range(5 if phase in ("first epoch", "slower") else 3)
        )
    assert runs.plan_columns(PARAMS, computed({"defaults": {}, "tuned": {}})) == configs
    changed = {c["phase"]: (c["convolutions"], c["initial"], c["constants"], c["num_epochs"]) for c in configs}
    assert changed == {
        "defaults": ("linear", "glorot", "keras", 7),
        "tuned": ("linear", "glorot", "torch", 7),
        "rectified": ("relu", "glorot", "keras", 7),
        "first epoch": ("relu", "glorot", "keras", 1),
        "slower": ("linear", "glorot", "keras", 7),
        "other start": ("linear", "torch", "keras", 7),
    }


def test_the_best_rate_has_the_highest_accuracy_then_the_lowest_loss_and_did_not_diverge() -> None:
    last = {
        "learning_rates": [0.1, 0.2, 0.3, 0.4],
        "validation_accuracy": [0.9, 0.95, 0.95, 0.99],
        "train_loss": [0.1, 0.3, 0.2, None],
    }
    found = Run(config={"phase": "search", "optimizer": "adam"}, result={"rungs": [last]})
    assert runs.best_rates([found]) == {"adam": 0.3}


def test_the_rates_of_a_search_are_spaced_evenly_over_the_range_with_the_default() -> None:
    for config in runs.plan(PARAMS):
        low, high = runs.rates_of(config["optimizer"])
        default = KERAS_DEFAULTS[config["optimizer"]][1]["lr"]
        assert default in config["learning_rates"]
        wanted = [low, math.sqrt(low * high), high]
        assert all(any(math.isclose(rate, one) for rate in config["learning_rates"]) for one in wanted)
        assert len(config["learning_rates"]) == 4 - any(math.isclose(default, one) for one in wanted)


def test_a_search_halves_its_rates_and_the_winner_is_as_if_trained_alone() -> None:
    config = next(config for config in runs.plan(PARAMS) if config["optimizer"] == "momentum")
    rungs = runs.run(config, SPLITS).metrics["rungs"]
    assert [(rung["epoch"], len(rung["learning_rates"])) for rung in rungs] == [
        (1, len(config["learning_rates"])),
        (2, 3),
        (7, 2),
    ]
    for earlier, later in itertools.pairwise(rungs):
        scores = dict(zip(earlier["learning_rates"], earlier["validation_accuracy"], strict=True))
        dropped = set(scores) - set(later["learning_rates"])
        assert max(scores[rate] for rate in dropped) <= min(scores[rate] for rate in later["learning_rates"])
    rate, loss = rungs[-1]["learning_rates"][0], rungs[-1]["train_loss"][0]
    alone = runs.run({**config, "learning_rates": [rate], "rungs": []}, SPLITS).metrics["rungs"]
    assert alone[-1]["train_loss"] == [pytest.approx(loss, rel=1e-3)]


def test_a_run_is_deterministic_and_ends_with_the_networks_accuracy() -> None:
    config: dict[str, Any] = {
        "phase": "defaults",
        "constants": "keras",
        **runs.MODEL,
        "learning_rates": {"adam": 0.001, "muon": 0.001, "rmsprop": 0.001},
        "num_epochs": 6,
        "batch_size": 32,
        "seed": 1,
    }
    computed_once = runs.run(config, SPLITS)
    assert computed_once == runs.run(config, SPLITS)
    result = computed_once.metrics
    assert result["epochs"] == [1, 2, 3, 4, 5, 6]
    assert result["parameters"] == 61_706
    for name in config["learning_rates"]:
        assert len(result[name]["train_loss"]) == len(result[name]["test_accuracy"]) == 6
        assert result[name]["train_loss"][-1] < result[name]["train_loss"][0]
        assert result[name]["test_accuracy"][-1] * 100 == pytest.approx(round(result[name]["test_accuracy"][-1] * 100))


def test_a_diverging_member_does_not_change_the_others() -> None:
    config = {"phase": "tuned", "constants": "torch", **runs.MODEL, "num_epochs": 1, "batch_size": 32, "seed": 0}
    wild, tame = ({**config, "learning_rates": {"sgd": rate, "adam": 0.001}} for rate in (1e20, 0.01))
    first, second = (runs.run(config, SPLITS).metrics for config in (wild, tame))
    assert first["sgd"]["train_loss"] == [None]
    assert first["adam"] == second["adam"]


def test_equal_samples_are_not_distinct() -> None:
    assert findings.welch([1.0, 1.0], [1.0, 1.0]) == 1
    assert findings.num_distinct_pairs([[1.0, 1.0], [1.0, 1.0]], level=0.05) == 0


def test_holms_correction_counts_pairs_until_one_is_not_significant() -> None:
    # The p-values of the three pairs are 0.0001, 0.0001 and about 0.9: two pairs are distinct.
    assert findings.num_distinct_pairs([[0.0, 0.01, 0.02], [0.0, 0.011, 0.02], [9.0, 9.01, 9.02]], level=0.05) == 2


def test_every_published_result_has_a_row_at_default_rates() -> None:
    rows = findings.rows(measured(computed({"defaults": {"adadelta": 0.8}, "tuned": {}})))
    assert len(rows) == 2 * len(KERAS_DEFAULTS) + len(runs.REPORTED) + 4
    compared = {(row.variant, row.published.value) for row in rows if row.published}
    values = {"Adadelta": 85, "SGD": 85.8, "Adagrad": 94, "RMSprop": 98, "Adam": 99}
    assert compared == {
        *((f"{name}, defaults", value) for name, value in values.items()),
        *((f"{name}, defaults, ReLU convolutions", value) for name, value in values.items()),
        *((f"{name}, defaults, torch's first weights", values[name]) for name in ("SGD", "Adam")),
        ("SGD, defaults, ReLU convolutions, one epoch", 85.8),
        ("SGD, defaults, rate of the others", 85.8),
    }
    quick = ("SGD, defaults, ReLU convolutions, one epoch", "SGD, defaults, rate of the others")
    assert all(len(row.values) == (5 if row.variant in quick else 3) for row in rows)


def test_the_findings_follow_the_numbers() -> None:
    reported = {"adadelta": 0.85, "sgd": 0.858, "adagrad": 0.94, "rmsprop": 0.98, "adam": 0.991}
    same = rendered(computed({"defaults": reported, "tuned": {}}))
    assert "from the worst to the best, is the report's." in same
    assert "between all 11 optimizers could be chance." in same
    assert "The default rate explains the report's number. " in same
    assert "The network has 61,706 weights and biases" in same
    other = rendered(computed({"defaults": {**reported, "sgd": 0.985, "adadelta": 0.6}, "tuned": {"adadelta": 0.97}}))
    assert "The order is not the report's" in other
    assert "explains the report's number in part" in rendered(
        computed({"defaults": {**reported, "adadelta": 0.93}, "tuned": {}})
    )
    assert "nothing to explain" in rendered(computed({"defaults": reported, "tuned": {"adadelta": 0.8}}))
    assert "worst: Adadelta, 97" in other
    assert "are measurable: their range is" in other
    assert "by Tukey's test" in other


def test_the_answer_lays_the_ranking_to_default_rates_only_if_searched_ones_halve_its_range() -> None:
    reported = {"adadelta": 0.85, "sgd": 0.858, "adagrad": 0.94, "rmsprop": 0.98, "adam": 0.991}
    for tuned, told in (({}, "is mostly one of default rates"), (reported, "is not mostly one of default rates")):
        found = measured(computed({"defaults": reported, "tuned": tuned}))
        answer = findings.render_answer(found, findings.rows(found))
        assert "5 of the report's 5 accuracies are reproduced" in answer
        assert told in answer


def test_the_finding_on_relu_weighs_every_optimizer() -> None:
    near = {"adadelta": 0.851, "sgd": 0.97, "adagrad": 0.941, "rmsprop": 0.981, "adam": 0.98}
    text = rendered(computed({"defaults": near, "rectified": {**near, "adam": 0.99, "rmsprop": 0.99}}))
    assert "It takes Adam nearer to the report and Adadelta, SGD, Adagrad and RMSprop away from it." in text
    assert "lies 1.00 points from the report without it and 1.00 with it" in text


def test_the_finding_on_sgd_names_what_gives_its_figure_and_what_is_excluded() -> None:
    none = rendered(computed({}))
    assert "No setting gives it together with the other four figures. Possible: " in none
    reported = {"adadelta": 0.85, "sgd": 0.858, "adagrad": 0.94, "rmsprop": 0.98, "adam": 0.991}
    assert "linear convolutions gives it together" in rendered(computed({"defaults": reported}))
    text = rendered(computed({"defaults": {"sgd": 0.97}, "rectified": {"sgd": 0.98}, "first epoch": {"sgd": 0.858}}))
    assert "No setting gives it together with the other four figures. " in text
    assert "Of the settings that were run, ReLU convolutions, one epoch gives it. Likely: " in text
    assert (
        "Excluded as run here: linear convolutions, ReLU convolutions and linear convolutions, rate of the adaptive "
        "optimizers." in text
    )


def test_the_findings_on_the_reports_explanations_follow_the_numbers() -> None:
    text = rendered(computed({"defaults": {"adagrad": 0.94, "sgd": 0.97, "adadelta": 0.86}, "tuned": {}}))
    assert "sparse gradients: at the default rates contradicted (-3.00 points, p < 0.0001)" in text
    assert "at the searched ones not decided (+0.00 points, p = 1)" in text
    assert "simple data: at the default rates holds (+11.00 points, p < 0.0001)" in text
    assert "Adam is robust to the first weights: not decided" in text
    worse = rendered(computed({"tuned": {"adam": 0.97, "rmsprop": 0.985, "sgd": 0.98}}))
    assert "than RMSprop: contradicted (-0.50 points, p =" in worse
    assert "than Adam: holds (+1.00 points, p < 0.0001), training loss " in worse
    moved = rendered(computed({"other start": {"adam": 0.95}}))
    assert "Adam is robust to the first weights: contradicted" in moved


def test_the_finding_on_the_search_names_those_that_end_lower() -> None:
    text = rendered(computed({"tuned": {"adam": 0.987}}))
    assert "Adam ends lower at the chosen rate than at the default, 1 of 1 of them measurably" in text
    assert "No optimizer ends lower" in rendered(computed({}))


def test_the_figures_show_every_optimizer_in_both_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = recorded(monkeypatch)
    found = measured(computed({"defaults": {"adadelta": 0.8}, "tuned": {}}))
    assert list(figures.draw(tmp_path, found)) == list(drawn) == ["figure.png", "curves.png", "losses.png"]
    for name, figure in drawn.items():
        check_rendered(tmp_path / name, figure)
    panel, *_ = drawn["figure.png"].axes
    dots = sum(points(line).shape[1] for line in panel.lines if line.get_marker() != "None")
    assert dots == 2 * len(KERAS_DEFAULTS) + 2 * len(runs.REPORTED) + 4
    columns = [line for line in panel.lines if line.get_marker() != "None"][:3]
    # The axis has 90 % at 1 and 99 % at 2; Adadelta is the first: 85 % published, 80 % and 99 % here.
    assert [points(line)[0, 0] for line in columns] == pytest.approx([0.8239, 0.6990, 2.0], abs=1e-3)
    for name in ("curves.png", "losses.png"):
        panels = drawn[name].axes[: len(results.NAMES)]
        assert [axes.get_title(loc="left") for axes in panels] == list(results.NAMES.values())
        assert all(len(axes.collections) == 2 for axes in panels)  # a band for each column
        for axes in panels:
            curves = axes.lines[:2]
            assert [line.get_label() for line in curves] == ["default rate", "searched rate"]
            assert all(points(line)[0].tolist() == [1, 5] for line in curves)
        expected = [axes.get_title(loc="left") for axes in panels if len(axes.lines) == 3]
        assert expected == ([results.NAMES[key] for key in runs.REPORTED] if name == "curves.png" else [])
    assert legend(drawn["curves.png"]) == ["default rate", "searched rate", "published"]
    assert legend(drawn["losses.png"]) == ["default rate", "searched rate"]
