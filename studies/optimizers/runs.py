"""LeNet-5 trained by every optimizer, at a library's defaults and at the best rate of an equal search.

The report (seed 002) gives neither the library nor the learning rates nor the batch size; it cites Keras for its
optimizers, whose constants the column `defaults` has. Its network has ReLU in the dense layers and mentions no
activation behind the convolutions, so they are linear here. The column `tuned` has torch's constants, as in OPTIMIZERS,
and for each optimizer the learning rate that was best on the validation split in a search of equally many rates.
Everything else is the same in both columns and follows Keras as far as Keras specifies it: initial weights by Glorot's
rule, pixels from 0 to 1, batches of 128 as in its own MNIST example, cross-entropy with one-hot targets, a constant
rate.

The controls change one thing of the defaults, to find what explains the report's figures: `rectified` has ReLU behind
the convolutions too, and `first epoch` ends after one; `slower` has SGD at the rate that is the adaptive optimizers'
default; `other start` has torch's initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import numerics
from mnist_pipe.params.schema import BatchSize, Epochs, Section, Seed
from mnist_pipe.training import loop, optimizers
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from studies.common import fitting
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run
from studies.optimizers import side_by_side

MODEL: dict[str, Any] = {"initial": "glorot", "convolutions": "linear"}
"""Constructor arguments of `lenet5`."""
KERAS_DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.01}),
    "momentum": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "adagrad": ("Adagrad", {"lr": 0.001, "initial_accumulator_value": 0.1, "eps": 1e-7}),
    "rmsprop": ("RMSprop", {"lr": 0.001}),  # the class below
    "adadelta": ("Adadelta", {"lr": 0.001, "rho": 0.95, "eps": 1e-7}),
    "adam": ("Adam", {"lr": 0.001, "eps": 1e-7}),
    "amsgrad": ("Adam", {"lr": 0.001, "eps": 1e-7, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.001, "eps": 1e-7, "weight_decay": 0.004}),
    "nadam": ("NAdam", {"lr": 0.001, "eps": 1e-7, "momentum_decay": 1.0}),
    "adamax": ("Adamax", {"lr": 0.001, "eps": 1e-7}),
    "muon": ("Muon", {"lr": 0.001}),  # ours, at the default rate of Keras and torch
}
"""For each optimizer, torch's class and the constants with which it computes what Keras 3 computes by default."""
REPORTED = ("adadelta", "sgd", "adagrad", "rmsprop", "adam")
"""Optimizers of the report, in the order of its table, from the worst to the best."""
QUICK, NUM_QUICK_SEEDS = ("first epoch", "slower"), 5
"""Controls of which a run takes less than a minute, and their number of seeds."""
BY_SHAPE = ("adamw", "muon")
"""Optimizers that treat a matrix differently from a vector, and so cannot take a network's weights as one vector."""
DECAY = {"adamw": 0.01}
"""Weight decay in the column `tuned`: torch's default for AdamW; the other optimizers have none."""

_LOWER = 1 / 3  # OPTIMIZERS has ranges for the peak of a one-cycle schedule; constant rates are best below that
_CLOSE, _STEP = 5, 5  # test accuracy is measured after each of the first epochs, then after every fifth


class Rung(Section):
    """A rung of the search."""

    num_epochs: Epochs
    """Epochs after which the rates are judged."""
    num_rates: Annotated[int, Field(ge=1)]
    """Rates that go on."""


class Params(Section):
    """The section `optimizers` of `studies/params.yaml`."""

    num_epochs: Epochs
    """Epochs of each run; the report has 50."""
    batch_size: BatchSize
    num_seeds: Annotated[int, Field(ge=3, le=100)]
    search_rates: Annotated[int, Field(ge=2, le=1000)]
    """Learning rates that are tried for each optimizer beside its default, from one end of its range to the other."""
    search_rungs: list[Rung]
    """Rungs of the search, those before `num_epochs`, for which the rates that are left train."""
    search_seed: Seed


def plan(params: Params) -> list[Config]:
    """Return a search for each optimizer; the rates are evenly spaced on a logarithmic scale, with the default."""
    return [
        {
            "phase": "search",
            "optimizer": name,
            "learning_rates": _with(constants["lr"], np.geomspace(*rates_of(name), params.search_rates).tolist()),
            "rungs": [
                [rung.num_epochs, rung.num_rates]
                for rung in sorted(params.search_rungs, key=lambda rung: rung.num_epochs)
                if rung.num_epochs < params.num_epochs
            ],
            "num_epochs": params.num_epochs,
            "batch_size": params.batch_size,
            "seed": params.search_seed,
        }
        for name, (_, constants) in KERAS_DEFAULTS.items()
    ]


def _with(default: float, rates: Sequence[float]) -> list[float]:
    return sorted([default, *(rate for rate in rates if not math.isclose(rate, default))])


def rates_of(optimizer: str) -> tuple[float, float]:
    """Return the lowest and the highest learning rate that are searched for a constant schedule."""
    low, high = OPTIMIZERS[optimizer].learning_rate
    return low * _LOWER, high


def plan_columns(params: Params, done: Sequence[Run]) -> list[Config]:
    """Return the configurations of all columns and controls.

    A run trains all optimizers of one column, from one start and on the same batches.
    """
    defaults: dict[str, float] = {name: constants["lr"] for name, (_, constants) in KERAS_DEFAULTS.items()}
    reported = {name: defaults[name] for name in REPORTED}
    column = {"num_epochs": params.num_epochs, "batch_size": params.batch_size, "constants": "keras", **MODEL}
    columns: dict[str, Config] = {
        "defaults": {"learning_rates": defaults},
        "tuned": {"learning_rates": best_rates(done), "constants": "torch"},
        "rectified": {"learning_rates": reported, "convolutions": "relu"},
        "first epoch": {"learning_rates": {"sgd": defaults["sgd"]}, "convolutions": "relu", "num_epochs": 1},
        "slower": {"learning_rates": {"sgd": defaults["adam"]}},
        "other start": {"learning_rates": {name: defaults[name] for name in ("sgd", "adam")}, "initial": "torch"},
    }
    quick = max(params.num_seeds, NUM_QUICK_SEEDS)
    return [
        {"phase": phase, **column, **own, "seed": seed}
        for phase, own in columns.items()
        for seed in range(quick if phase in QUICK else params.num_seeds)
    ]


def best_rates(done: Sequence[Run]) -> dict[str, float]:
    """Return each optimizer's rate with the highest validation accuracy at the end; of equals, the lowest loss."""
    found = {}
    for run in done:
        if run.config["phase"] == "search":
            last = run.result["rungs"][-1]
            scored = zip(last["validation_accuracy"], last["train_loss"], last["learning_rates"], strict=True)
            found[run.config["optimizer"]] = max(scored, key=lambda member: _score(*member[:2]))[2]
    return found


def _score(accuracy: float, loss: float | None) -> tuple[float, float]:
    """Return what is highest for the best member; a loss that is not finite is None, and the worst."""
    return (-1.0, 0.0) if loss is None else (accuracy, -loss)


def run(config: Config, splits: Splits) -> Result:
    """Search one optimizer's rate, or train the optimizers of a column side by side."""
    return search(config, splits) if config["phase"] == "search" else train(config, splits)


def search(config: Config, splits: Splits) -> Result:
    """Search by successive halving (Jamieson & Talwalkar 2016), on the training split, judged on the validation split.

    The result has for each of the `rungs` its epoch, and the `learning_rates`, `train_loss` in nats and
    `validation_accuracy` of the members that have come so far.
    """
    training, validation = (_on_unit_scale(splits[name]) for name in ("train", "validation"))
    name, rates = config["optimizer"], config["learning_rates"]
    recipe = _recipe({**config, **MODEL}, optimizer=name, rate=rates[0])
    nets, _ = _networks(recipe, number=len(rates))
    steppers = [
        optimizer_of(name, nets.member(index, whole=name not in BY_SHAPE), rate=rate, constants="torch")
        for index, rate in enumerate(rates)
    ]
    rows, others = (to_device(split, device=fitting.device()) for split in (training, validation))
    rungs, done = [], 0
    for num_epochs, number in [*config["rungs"], [config["num_epochs"], 1]]:
        start, until = loop.Position(epoch=done), replace(recipe, num_epochs=num_epochs)
        own = [steppers[member] for member in nets.members]
        *_, last = side_by_side.train(nets, own, training=rows, recipe=until, start=start)
        losses = [_rounded(loss) for loss in last]
        accuracies = [round(accuracy, 6) for accuracy in side_by_side.accuracies(nets, others)]
        rungs.append(
            {
                "epoch": num_epochs,
                "learning_rates": [rates[member] for member in nets.members],
                "train_loss": losses,
                "validation_accuracy": accuracies,
            }
        )
        best = sorted(zip(map(_score, accuracies, losses), nets.members, strict=True), reverse=True)
        nets.members, done = sorted(member for _, member in best[:number]), num_epochs
    return Result(metrics={"rungs": rungs})


def train(config: Config, splits: Splits) -> Result:
    """Train on all 60,000 rows; return each optimizer's training loss and test accuracy at `epochs`.

    `parameters` is the number of weights and biases of the network.

    The last accuracy is that of the network as `models.lenet5` computes it, in float32; the earlier ones are only
    shown.
    """
    names = list(config["learning_rates"])
    recipe = _recipe(config, optimizer=names[0], rate=config["learning_rates"][names[0]])
    nets, model = _networks(recipe, number=len(names))
    steppers = [
        optimizer_of(name, nets.member(index, whole=name not in BY_SHAPE), rate=rate, constants=config["constants"])
        for index, (name, rate) in enumerate(config["learning_rates"].items())
    ]
    training, test = (
        to_device(_on_unit_scale(split), device=fitting.device()) for split in (fitting.whole(splits), splits["test"])
    )
    epochs, losses, accuracies = [], [], []
    for epoch, loss in enumerate(side_by_side.train(nets, steppers, training=training, recipe=recipe), start=1):
        if epoch <= _CLOSE or epoch % _STEP == 0 or epoch == config["num_epochs"]:
            epochs.append(epoch)
            losses.append(loss)
            accuracies.append(side_by_side.accuracies(nets, test))
    metrics: dict[str, Any] = {"epochs": epochs, "parameters": sum(each.numel() for each in model.parameters())}
    for index, name in enumerate(names):
        _, last = loop.evaluate(nets.copy_to(model, index), test)
        metrics[name] = {
            "train_loss": [_rounded(loss[index]) for loss in losses],
            "test_accuracy": [_rounded(accuracy[index]) for accuracy in accuracies[:-1]] + [_rounded(last)],
        }
    return Result(metrics=metrics)


def _recipe(config: Config, *, optimizer: str, rate: float) -> Recipe:
    """Return the recipe of a run; only the optimizer and its rate differ between its members."""
    return Recipe(
        model="lenet5",
        model_params={name: config[name] for name in MODEL},
        optimizer=optimizer,
        learning_rate=rate,
        schedule="constant",
        **{key: config[key] for key in ("num_epochs", "batch_size", "seed")},
    )


def _networks(recipe: Recipe, *, number: int) -> tuple[side_by_side.LeNets, nn.Module]:
    """Return `number` networks with the same first weights, and one network as `models` builds it."""
    device = fitting.device()
    model, _ = loop.new_run(recipe, device=device)
    dtype = torch.bfloat16 if numerics.computes_bfloat16(device) else torch.float32
    convolutions = recipe.model_params["convolutions"]
    return side_by_side.LeNets([model] * number, convolutions=convolutions, dtype=dtype), model


class RMSprop(torch.optim.Optimizer):
    """RMSprop as in Keras, with epsilon under the root; torch adds it behind the root, which gives other steps.

    Where gradients are smaller than 0.0003, the root of 1e-7, the steps here shrink with them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, rho: float = 0.9, eps: float = 1e-7) -> None:
        super().__init__(parameters, {"lr": lr, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the parameters once from their gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                squares = self.state[parameter].setdefault("square_avg", torch.zeros_like(parameter))
                squares.mul_(group["rho"]).addcmul_(parameter.grad, parameter.grad, value=1 - group["rho"])
                parameter.addcmul_(parameter.grad, (squares + group["eps"]).rsqrt_(), value=-group["lr"])


def optimizer_of(name: str, member: nn.ParameterList, *, rate: float, constants: str) -> torch.optim.Optimizer:
    """Return the optimizer `name` of `member` at `rate`: that of OPTIMIZERS for the constants `torch`, else Keras's."""
    kind, defaults = KERAS_DEFAULTS[name]
    arguments = {**defaults, "lr": rate}
    if constants == "torch" or kind == "Muon":
        return optimizers.build(name, member, learning_rate=rate, weight_decay=DECAY.get(name, 0.0))
    if kind == "RMSprop":
        return RMSprop(list(member), **arguments)
    fused = {"fused": True} if kind in ("SGD", "Adagrad", "Adam", "AdamW") else {"foreach": True}
    constructor: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    return constructor(list(member), **arguments, **fused)


def _on_unit_scale(split: NormalizedSplit) -> NormalizedSplit:
    """Return the split with its pixels from 0 to 1."""
    return replace(split, images=fitting.pixels(split), provenance={**split.provenance, "mean": 0.0, "std": 1.0})


def _rounded(value: float | None) -> float | None:
    """Return the value, rounded to six decimals, or None if it is not finite, as after a divergence."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
