"""LeNet-5 trained by every optimizer, at a library's defaults and at the best rate of an equal search.

The report (seed 002) gives neither the library nor the learning rates nor the batch size; it cites Keras for its
optimizers, whose constants the column `defaults` has. Its network has ReLU in the dense layers and mentions no
activation behind the convolutions, so they are linear here. The column `tuned` has torch's constants, as in OPTIMIZERS,
and for each optimizer the learning rate that was best on the validation split in a search of equally many trials.
Everything else is the same in both columns and follows Keras as far as Keras specifies it: initial weights by Glorot's
rule, pixels from 0 to 1, batches of 128 as in its own MNIST example, cross-entropy with one-hot targets, a constant
rate.

The controls change one thing of the defaults for an optimizer that does not reach the published accuracy by them:
`rectified` has ReLU behind the convolutions too, `slower` has SGD at the rate that is the adaptive optimizers' default.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import numerics
from mnist_pipe.params.schema import BatchSize, Epochs, RecipeParams, SearchParams, Section, Seed
from mnist_pipe.training import loop, optimizers
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from studies.common import fitting
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run
from studies.optimizers import side_by_side

if TYPE_CHECKING:
    from mnist_pipe.cluster.ray_session import Cluster
    from mnist_pipe.cluster.storage import Storage
    from mnist_pipe.tuning.ledger import TrialRecord

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
CONTROLS: dict[str, dict[str, float]] = {"rectified": {"adam": 0.001}, "slower": {"sgd": 0.001}}
"""Learning rates by control and optimizer."""
BY_SHAPE = ("adamw", "muon")
"""Optimizers that treat a matrix differently from a vector, and so cannot take a network's weights as one vector."""
DECAY = {"adamw": 0.01}
"""Weight decay in the column `tuned`: torch's default for AdamW; the other optimizers have none."""

_LOWER = 1 / 3  # OPTIMIZERS has ranges for the peak of a one-cycle schedule; constant rates are best below that
_NO_DECAY = 1e-12  # stands for 0, which the search's logarithmic ranges cannot hold
_CLOSE, _STEP = 5, 5  # test accuracy is measured after each of the first epochs, then after every fifth


class Params(Section):
    """The section `optimizers` of `studies/params.yaml`."""

    num_epochs: Epochs
    """Epochs of each run; the report has 50."""
    batch_size: BatchSize
    num_seeds: Annotated[int, Field(ge=3, le=100)]
    search_trials: Annotated[int, Field(ge=2, le=1000)]
    """Learning rates that are tried for each optimizer, from one end of its range to the other."""
    search_epochs: Epochs
    """Epochs of each trial."""
    search_rows: Annotated[int, Field(ge=100)]
    """Number of training rows of a trial, which are the first ones of the split."""
    search_seed: Seed


def tune(
    params: Params,
    splits: Splits,
    *,
    available: Cluster,
    storage: Storage,
    name: str,
    log: Callable[[str], None],
) -> list[Run]:
    """Search each optimizer's learning rate with Ray Tune, with the same number of trials, epochs and rows for all.

    The trials are one search, whose rates are evenly spaced on a logarithmic scale: six rates drawn at random can miss
    the best part of a range.
    """
    from mnist_pipe.tuning.ledger import best_trial
    from mnist_pipe.tuning.search import Defaults, Session, search

    training, validation = (
        _on_unit_scale(splits["train"].first(params.search_rows)),
        _on_unit_scale(splits["validation"]),
    )
    rates = {name: np.geomspace(*rates_of(name), params.search_trials).tolist() for name in KERAS_DEFAULTS}
    fixed: dict[str, Any] = {
        "model": "lenet5",
        "batch_size": params.batch_size,
        "rotation_degrees": 0.0,
        "translation_pixels": 0.0,
    }
    points = [
        {**fixed, "optimizer": name, f"learning_rate.{name}": rate, "weight_decay": DECAY.get(name, _NO_DECAY)}
        for name, own in rates.items()
        for rate in own
    ]
    started = time.perf_counter()
    recipe = RecipeParams(
        **fixed,
        model_params=MODEL,
        optimizer=points[0]["optimizer"],
        learning_rate=rates[points[0]["optimizer"]][0],
        weight_decay=_NO_DECAY,
        train_rows=None,
        num_epochs=params.search_epochs,
        schedule="constant",
        label_smoothing=0.0,
        average_decay=0.0,
        test_time_augmentation=False,
    )
    trials = search(
        SearchParams(
            num_trials=len(points),
            num_epochs=params.search_epochs,
            train_rows=params.search_rows,
            algorithm="random",  # the points leave nothing to draw
            scheduler="fifo",
            reduction_factor=2,  # only for schedulers that stop trials
            max_concurrent_trials=max(1, available.num_gpus or available.num_cpus),
            seed=params.search_seed,
            space={
                "model": ["lenet5"],
                "optimizer": list(rates),
                "learning_rate": {name: [own[0], own[-1]] for name, own in rates.items()},
                "weight_decay": [_NO_DECAY, max(DECAY.values())],
                "batch_size": [params.batch_size],
                "rotation_degrees": [0.0, 0.0],
                "translation_pixels": [0.0, 0.0],
            },
        ),
        defaults=Defaults(recipe=recipe),
        training=training,
        validation=validation,
        session=Session(name=name, storage=storage, available=available),
        points=points,
    )
    for optimizer in rates:
        winner = best_trial([trial for trial in trials if trial.config["optimizer"] == optimizer])
        log(
            f"{optimizer}: validation accuracy {winner.score:.2%} at learning rate {winner.config['learning_rate']:.2g}"
        )
    seconds = round((time.perf_counter() - started) / len(trials), 2)
    return [_trial(trial, params, seconds=seconds) for trial in trials]


def _trial(record: TrialRecord, params: Params, *, seconds: float) -> Run:
    """Return a trial of the search as a run; `seconds` is its share of the search's duration."""
    last = record.history[-1] if record.history else {}
    return Run(
        config={
            "phase": "search",
            **{key: record.config[key] for key in ("optimizer", "learning_rate", "batch_size")},
            "num_epochs": params.search_epochs,
            "num_rows": params.search_rows,
            "seed": params.search_seed,
        },
        result={
            "status": record.status,
            **{key: _rounded(last.get(key)) for key in ("validation_accuracy", "validation_loss")},
        },
        seconds=seconds,
        address=record.address,
    )


def rates_of(optimizer: str) -> tuple[float, float]:
    """Return the lowest and the highest learning rate that are searched for a constant schedule."""
    low, high = OPTIMIZERS[optimizer].learning_rate
    return low * _LOWER, high


def plan(params: Params, done: Sequence[Run]) -> list[Config]:
    """Return the configurations of all columns.

    A run trains all optimizers of one column, from one start and on the same batches.
    """
    defaults: dict[str, float] = {name: constants["lr"] for name, (_, constants) in KERAS_DEFAULTS.items()}
    columns = {"defaults": defaults, "tuned": best_rates(done), **CONTROLS}
    return [
        {
            "phase": phase,
            "learning_rates": rates,
            "num_epochs": params.num_epochs,
            "batch_size": params.batch_size,
            "seed": seed,
        }
        for phase, rates in columns.items()
        for seed in range(params.num_seeds)
    ]


def best_rates(done: Sequence[Run]) -> dict[str, float]:
    """Return each optimizer's rate with the highest validation accuracy; of equals, the one with the lower loss."""
    trials: dict[str, list[Run]] = {}
    for run in done:
        if run.config["phase"] == "search" and run.result["status"] == "finished":
            trials.setdefault(run.config["optimizer"], []).append(run)
    return {
        name: max(own, key=lambda run: (run.result["validation_accuracy"], -run.result["validation_loss"])).config[
            "learning_rate"
        ]
        for name, own in trials.items()
    }


def run(config: Config, splits: Splits) -> Result:
    """Train the optimizers of `config` side by side; return each one's training loss and test accuracy at `epochs`.

    The last accuracy is that of the network as `models.lenet5` computes it, in float32; the earlier ones are only
    shown.
    """
    device = fitting.device()
    training, test = (to_device(_on_unit_scale(splits[name]), device=device) for name in ("train", "test"))
    names, is_linear = list(config["learning_rates"]), config["phase"] != "rectified"
    recipe = Recipe(
        model="lenet5",
        model_params=MODEL if is_linear else {**MODEL, "convolutions": "relu"},
        optimizer=names[0],
        learning_rate=config["learning_rates"][names[0]],
        schedule="constant",
        **{key: config[key] for key in ("num_epochs", "batch_size", "seed")},
    )
    model, _ = loop.new_run(recipe, device=device)
    dtype = torch.bfloat16 if numerics.computes_bfloat16(device) else torch.float32
    kind = side_by_side.LeNets if is_linear else side_by_side.Networks
    nets = kind([model] * len(names), dtype=dtype)
    steppers = [
        optimizer_of(name, nets.member(index, whole=name not in BY_SHAPE), rate=rate, phase=config["phase"])
        for index, (name, rate) in enumerate(config["learning_rates"].items())
    ]
    epochs, losses, accuracies = [], [], []
    for epoch, loss in enumerate(side_by_side.train(nets, steppers, training=training, recipe=recipe), start=1):
        if epoch <= _CLOSE or epoch % _STEP == 0 or epoch == config["num_epochs"]:
            epochs.append(epoch)
            losses.append(loss)
            accuracies.append(side_by_side.accuracies(nets, test))
    metrics: dict[str, Any] = {"epochs": epochs}
    for index, name in enumerate(names):
        _, last = loop.evaluate(nets.copy_to(model, index), test)
        metrics[name] = {
            "train_loss": [_rounded(loss[index]) for loss in losses],
            "test_accuracy": [_rounded(accuracy[index]) for accuracy in accuracies[:-1]] + [_rounded(last)],
        }
    return Result(metrics=metrics)


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


def optimizer_of(name: str, member: nn.ParameterList, *, rate: float, phase: str) -> torch.optim.Optimizer:
    """Return the optimizer `name` of `member` at `rate`: that of OPTIMIZERS in the column `tuned`, else Keras's."""
    kind, constants = KERAS_DEFAULTS[name]
    constants = {**constants, "lr": rate}
    if phase == "tuned" or kind == "Muon":
        return optimizers.build(name, member, learning_rate=rate, weight_decay=DECAY.get(name, 0.0))
    if kind == "RMSprop":
        return RMSprop(list(member), **constants)
    fused = {"fused": True} if kind in ("SGD", "Adagrad", "Adam", "AdamW") else {"foreach": True}
    constructor: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    return constructor(list(member), **constants, **fused)


def _on_unit_scale(split: NormalizedSplit) -> NormalizedSplit:
    """Return the split with its pixels from 0 to 1."""
    return replace(split, images=fitting.pixels(split), provenance={**split.provenance, "mean": 0.0, "std": 1.0})


def _rounded(value: float | None) -> float | None:
    """Return the value, rounded to six decimals, or None if it is not finite, as after a divergence."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
