"""The report's network with and without augmentation, and each improvement that it proposes, as training recipes.

Agrawal 2025, *Handwritten Digit Recognition Using CNN Report* (seed 004). Nothing is chosen here: sizes and rates are
those of the report or of pytorch/examples, or were fixed before any test image was seen. Where the report leaves a
choice open, the others are trained as controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mnist_pipe.data import augment
from mnist_pipe.data.facts import Background
from mnist_pipe.data.splits import SIDE, NormalizedSplit
from mnist_pipe.evaluation.metrics import confusion_matrix
from mnist_pipe.evaluation.significance import mcnemar
from mnist_pipe.params.schema import BatchSize, Epochs, Section
from mnist_pipe.training import loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
from studies.common import fitting
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run
from studies.common.significance import combined

CONTROL, UNMOVED, EXAMPLE = "report", "no augmentation", "pytorch/examples"
IMPROVEMENTS = ("dropout", "decay", "batch norm", "resnet", "together")
LONGER = "longer"
"""The report's training for as many epochs as the trainings whose learning rate falls."""
BILINEAR = "bilinear"
"""The report's training with images that are moved as in the rest of the project."""
OTHER_BATCHES = {"batches of 32": 32, "batches of 128": 128}
CONTROLS = (LONGER, BILINEAR, *OTHER_BATCHES)


class Params(Section):
    """The section `cnn` of `studies/params.yaml`."""

    num_seeds: Annotated[int, Field(ge=2, le=100)]
    batch_size: BatchSize
    """Rows of a batch; the report does not give it, and 64 is that of pytorch/examples."""
    num_epochs: Epochs
    """Epochs of the report's training, 5 in the report, and of the improvements that do not train for longer."""
    decay_epochs: Epochs
    """Epochs of the training whose learning rate falls to zero."""
    example_epochs: Epochs | None
    """Epochs of pytorch/examples, which publishes 14; null leaves it out."""
    dropout: Annotated[float, Field(gt=0, lt=1)]
    """Share of the dense units that is dropped; of the pooled features it is half of that; 0.5 in pytorch/examples."""
    train_rows: Annotated[int, Field(ge=100)] | None
    """Number of training rows, which are the first ones; null takes all 60,000, as the report does."""


def recipes(params: Params) -> dict[str, Recipe]:
    """Return the recipes that are trained, by name, with seed 0."""
    control = Recipe(
        model="cnn",
        optimizer="adam",
        learning_rate=0.001,
        batch_size=params.batch_size,
        num_epochs=params.num_epochs,
        schedule="constant",
        rotation_degrees=10.0,
        translation_pixels=0.1 * SIDE,
    )
    unmoved = replace(control, rotation_degrees=0.0, translation_pixels=0.0)
    dropout = {"dropout": params.dropout}
    longer: dict[str, Any] = {"schedule": "cosine", "num_epochs": params.decay_epochs}
    found = {
        CONTROL: control,
        UNMOVED: unmoved,
        "dropout": replace(control, model_params=dropout),
        "decay": replace(control, **longer),
        "batch norm": replace(control, model_params={"batch_norm": True}),
        "resnet": replace(control, model="resnet"),
        "together": replace(control, model="resnet", model_params=dropout, **longer),  # ResNet has batch norm anyway
        LONGER: replace(control, num_epochs=params.decay_epochs),
        BILINEAR: control,
        **{name: replace(control, batch_size=size) for name, size in OTHER_BATCHES.items()},
    }
    if params.example_epochs is not None:
        found[EXAMPLE] = replace(
            unmoved,
            model_params={**dropout, "padding": False},
            optimizer="adadelta",
            learning_rate=1.0,
            schedule="staircase",
            num_epochs=params.example_epochs,
        )
    return found


def plan(params: Params) -> list[Config]:
    """Return a configuration for every recipe and seed, the longest trainings first."""
    configs = [
        {"training": name, "train_rows": params.train_rows, **replace(recipe, seed=seed).to_dict()}
        for name, recipe in recipes(params).items()
        for seed in range(params.num_seeds)
    ]
    return sorted(configs, key=lambda config: -config["num_epochs"])


def run(config: Config, splits: Splits) -> Result:
    """Train one recipe and evaluate it on the test split after each epoch; nothing is chosen by that.

    `epochs` has an entry for each epoch: `train_loss` and `train_accuracy` are means over the epoch in training mode,
    as in the report; `test_loss` and `test_accuracy` are measured after it. `known_loss` and `known_accuracy` are those
    of the last model on as many training rows as the test split has, unmoved, so that the two can be compared.

    The intermediate result is `digits`, the predictions for the test split.
    """
    recipe = Recipe(**{name: value for name, value in config.items() if name not in ("training", "train_rows")})
    training, test = fitting.whole(splits).first(config["train_rows"]), splits["test"]
    learner = loop.Network if config["training"] == BILINEAR else Torchvision
    model, history = fit(recipe, learner=learner, training=training, test=test)
    known = to_device(training.first(len(test.labels)), device=fitting.device())
    known_loss, known_accuracy = loop.evaluate(model, known)
    metrics = {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": [{name: round(value, 6) for name, value in epoch.items()} for epoch in history],
        "known_loss": round(known_loss, 6),
        "known_accuracy": round(known_accuracy, 6),
    }
    return Result(metrics=metrics, intermediate={"digits": "".join(map(str, fitting.predicted(model, test)))})


class Torchvision(loop.Network):
    """Learner that moves images as torchvision's RandomRotation and RandomAffine do, which the report names.

    By default they take the nearest pixel, and a translation is rounded to whole pixels.
    """

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: loop.Batch) -> Tensor:
        """Move the images, then run a step of `loop.Network`."""
        if moves is not None:
            images = moved(images, moves, background=batch.background)
        return super().step(images, labels, moves=None, batch=batch)


def moved(images: Tensor, moves: Tensor, *, background: Background) -> Tensor:
    """Rotate and shift float32 images `(N, 1, H, W)` by `moves`, `(N, 3)`, to the nearest pixel and by whole pixels."""
    whole = torch.cat([moves[:, :1], moves[:, 1:].round()], dim=1)
    return augment.affine(images, whole, background=background, mode="nearest")


def fit(
    recipe: Recipe, *, learner: type[loop.Network], training: NormalizedSplit, test: NormalizedSplit
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train by `recipe` with the class `learner`; return the model and the metrics of each epoch."""
    model, optimizer = loop.new_run(recipe, device=fitting.device())
    rows, others = (to_device(split, device=fitting.device()) for split in (training, test))
    history = []
    for _, metrics in loop.epochs(learner(recipe, model=model, optimizer=optimizer), recipe, training=rows):
        train_loss, train_accuracy = metrics.tolist()
        test_loss, test_accuracy = loop.evaluate(model, others)
        history.append(
            {
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
            }
        )
    return model, history


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return `confusion`, a matrix for each seed of the report's training, `against_control` and `against_longer`.

    The latter two compare other trainings with the report's, and with the report's for as many epochs.
    """
    labels = splits["test"].labels
    return {
        "confusion": [confusion_matrix(labels, digits).tolist() for digits in _digits(done, CONTROL)],
        "against_control": {
            name: _against(done, name, CONTROL, labels) for name in (UNMOVED, *IMPROVEMENTS, *CONTROLS)
        },
        "against_longer": {name: _against(done, name, LONGER, labels) for name in ("decay", "together")},
    }


def _against(done: Sequence[Run], name: str, control: str, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what the training `name` gains over `control`, in points of test accuracy by seed, and how surely.

    `p_value` combines the p-values of the seeds' McNemar tests, which are on the same images.
    """
    pairs = list(zip(_digits(done, name), _digits(done, control), strict=True))
    p_values = [mcnemar(digits == labels, others == labels).p_value for digits, others in pairs]
    gains = [100 * float(np.mean(digits == labels) - np.mean(others == labels)) for digits, others in pairs]
    return {
        "gains": [round(gain, 4) for gain in gains],
        "p_values": [float(f"{p_value:.4g}") for p_value in p_values],
        "p_value": float(f"{combined(p_values):.4g}"),
    }


def _digits(done: Sequence[Run], name: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the predictions for the test split, uint8 `(N,)`, of each seed of the training `name`, in order."""
    for one in of(done, name):
        yield np.frombuffer(one.intermediate["digits"].encode(), np.uint8) - ord("0")


def of(done: Sequence[Run], name: str) -> list[Run]:
    """Return the runs of the training `name`, in the order of their seeds."""
    return sorted((one for one in done if one.config["training"] == name), key=lambda one: int(one.config["seed"]))
