"""The runs of the ladder: each model on the test digits, unmoved and moved, and two models as regressors.

Three experiments test what the lesson says of a linear model beside a convolutional one: on shuffled pixels, with
several templates a class, and on few rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.data import augment
from mnist_pipe.data.splits import NUM_CLASSES, PIXELS, NormalizedSplit
from mnist_pipe.evaluation.significance import mcnemar
from mnist_pipe.models import forward, numerics
from mnist_pipe.params.schema import (
    BatchSize,
    Degrees,
    Epochs,
    LearningRate,
    ModelName,
    OptimizerName,
    Pixels,
    ScheduleName,
    Section,
    Seed,
    Smoothing,
)
from mnist_pipe.training import loop, optimizers
from mnist_pipe.training.batches import DeviceSplit, to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.deskew import slant
from studies.common.fitting import Splits, device, fit, pixels, predicted, whole
from studies.common.ledger import Config, Result, Run
from studies.common.packing import packed, unpacked
from studies.common.significance import combined

NUM_POINTS = 1000
"""Number of points of the scatter plot, which are the first test rows."""
SHOWN, SHOWN_PROTOTYPES = (4, 7), 4
"""Classes whose templates are shown, which the lesson names, and the number of templates a class that is shown."""


class RecipeParams(Section):
    """Training settings of a model, of which learning rate and smoothing were chosen on the validation split.

    They are the best of those tried, at one or two seeds, in 8 epochs unless stated otherwise. The small and the
    standard convnet: Muon at 0.01, 0.03 and 0.06 with a smoothing of 0 and of 0.05. The larger convnet, in 4 epochs:
    the same, but a smoothing of 0 only at 0.03. The convnet on moved images: both smoothings at 0.03. The linear
    classifier: both smoothings with Muon at 0.003 to 0.03 and with Adam at 0.0005 to 0.004. The regressors, without
    smoothing: Adam at 0.0002 to 0.004 for the linear one, and at 0.001 to 0.03 for the convnet, in 6 epochs.
    """

    model: ModelName
    model_params: dict[str, Any]
    optimizer: OptimizerName
    learning_rate: LearningRate
    """Peak of the schedule."""
    label_smoothing: Smoothing = 0.0
    rotation_degrees: Degrees = 0.0
    """Largest random rotation of a training image, in degrees."""
    translation_pixels: Pixels = 0.0
    """Largest random shift of a training image, in pixels."""


class FewParams(Section):
    """Training of classifiers on few rows."""

    classifiers: Annotated[list[str], Field(min_length=2)]
    """Names of `classifiers`, the linear one first."""
    num_rows: Annotated[int, Field(ge=10)]
    """Training rows, which are the first ones."""
    num_epochs: Epochs


class Params(Section):
    """The section `ladder` of `studies/params.yaml`."""

    seeds: Annotated[list[Seed], Field(min_length=3)]
    num_epochs: Epochs
    """Epochs of every model."""
    batch_size: BatchSize
    schedule: ScheduleName
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    classifiers: Annotated[dict[str, RecipeParams], Field(min_length=2)]
    """Rungs of the ladder, by the name under which they are shown."""
    regressors: Annotated[dict[str, RecipeParams], Field(min_length=1)]
    """Models that predict the slant, by the name under which they are shown."""
    shifts: Annotated[list[Annotated[int, Field(ge=0, le=27)]], Field(min_length=1)]
    """Pixels by which the test images are moved in each of the four directions."""
    rotations: Annotated[list[Annotated[float, Field(ge=0, le=180)]], Field(min_length=1)]
    """Degrees by which the test images are turned either way."""
    shuffled: Annotated[list[str], Field(min_length=2)]
    """Names of `classifiers` that are trained on shuffled pixels as well, the linear one first."""
    prototypes: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=2)]
    """Numbers of templates a class, in rising order."""
    few: FewParams


def plan(params: Params) -> list[Config]:
    """Return a configuration for each model and seed, the largest models first."""
    common = params.model_dump(include={"num_epochs", "batch_size", "schedule", "weight_decay"})
    few = {**common, "num_epochs": params.few.num_epochs}
    tasks: list[tuple[str, dict[str, RecipeParams], dict[str, Any], dict[str, Any]]] = [
        ("classify", params.classifiers, common, {"shifts": params.shifts, "rotations": params.rotations}),
        ("regress", params.regressors, common, {}),
        ("shuffled", {name: params.classifiers[name] for name in params.shuffled}, common, {}),
        (
            "few",
            {name: params.classifiers[name] for name in params.few.classifiers},
            few,
            {"num_rows": params.few.num_rows},
        ),
    ]
    configs = [
        {"task": task, "name": name, "seed": seed, "recipe": {**settings, **own.model_dump()}, **more}
        for task, recipes, settings, more in tasks
        for name, own in recipes.items()
        for seed in params.seeds
    ]
    prototypes = [{"task": "prototypes", "numbers": params.prototypes, "seed": seed} for seed in params.seeds]
    return sorted(configs, key=lambda config: (-_num_parameters_at_28(config), config["task"])) + prototypes


def run(config: Config, splits: Splits) -> Result:
    """Train one model, on all 60,000 training rows if the task does not say otherwise; measure it on the test rows."""
    training, test = whole(splits), splits["test"]
    if config["task"] == "prototypes":
        return _by_prototypes(config["numbers"], training=training, test=test, seed=config["seed"])
    recipe = Recipe(**config["recipe"], seed=config["seed"])
    match config["task"]:
        case "regress":
            return _regressed(recipe, training=training, test=test)
        case "shuffled":
            return _learned(recipe, training=shuffled(training), test=shuffled(test))
        case "few":
            return _learned(recipe, training=training.first(config["num_rows"]), test=test)
    return _classified(recipe, training=training, test=test, shifts=config["shifts"], rotations=config["rotations"])


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return the paired tests, the templates beside the average digits, the ink that shifts lose, and the scatter.

    `locality` has for each model how much shuffled pixels cost it, `few` the comparison on few rows, and `prototypes`
    the first seed's templates of `SHOWN`, float16 `(classes, SHOWN_PROTOTYPES, 784)`.
    """
    classifiers, regressors = by_name(done, task="classify"), by_name(done, task="regress")
    mixed, few = by_name(done, task="shuffled"), by_name(done, task="few")
    linear_name, *_ = few
    by_templates = sorted(
        (one for one in done if one.config["task"] == "prototypes"), key=lambda one: one.config["seed"]
    )
    names, test = list(classifiers), splits["test"]
    linear = next(runs[0] for runs in classifiers.values() if runs[0].config["recipe"]["model"] == "linear")
    templates = unpacked(linear.intermediate["templates"], np.float16).reshape(NUM_CLASSES, PIXELS)
    means = class_means(whole(splits))
    return {
        "steps": [
            _compared(classifiers, lower=lower, upper=upper)
            for position, upper in enumerate(names)
            for lower in names[:position]
        ],
        "locality": [{"name": name, **_paired(classifiers[name], runs)} for name, runs in mixed.items()],
        "few": [
            {"lower": linear_name, "upper": name, **_paired(runs, few[linear_name])}
            for name, runs in few.items()
            if name != linear_name
        ],
        "prototypes": by_templates[0].intermediate["prototypes"],
        "templates": packed(templates),
        "likeness": _rounded(likeness(templates.astype(np.float64), means)),
        "nearest_mean_accuracy": float((nearest(test.images, means) == test.labels).mean()),
        "lost_ink": _rounded(lost_ink(pixels(test), shifts=linear.config["shifts"])),
        "scatter": {
            "slant": _rounded(slant(pixels(test.first(NUM_POINTS)))),
            **{
                name: _rounded(unpacked(runs[0].intermediate["predicted"], np.float32)[:NUM_POINTS])
                for name, runs in regressors.items()
            },
        },
    }


def shuffled(split: NormalizedSplit) -> NormalizedSplit:
    """Return the split with the pixels of every image in the same random order."""
    order = np.random.default_rng(0).permutation(PIXELS)
    images = split.images.reshape(-1, PIXELS)[:, order].reshape(split.images.shape)
    return replace(split, images=images)


def by_name(done: Sequence[Run], *, task: str) -> dict[str, list[Run]]:
    """Return the runs of each model, one per seed: by size, with the models trained on moved images last."""
    named: dict[str, list[Run]] = {}
    own = (one for one in done if one.config["task"] == task)
    for one in sorted(own, key=lambda one: (is_moved(one.config), one.result["parameters"], one.config["seed"])):
        named.setdefault(one.config["name"], []).append(one)
    return named


def is_moved(config: Config) -> bool:
    """Return whether the model was trained on moved images."""
    recipe = config["recipe"]
    return bool(recipe["rotation_degrees"] or recipe["translation_pixels"])


def num_parameters(model: str, model_params: Mapping[str, Any], *, side: int, pooled: bool = False) -> int:
    """Return the number of weights and biases of a linear model or convnet for images of side x side grey pixels.

    With `pooled` the convnet's classifier reads the mean of each feature map in place of each of its values.
    """
    if model == "linear":
        return side * side * NUM_CLASSES + NUM_CLASSES
    assert model == "convnet"
    assert not model_params.keys() - {"channels", "convolutions"}
    total, inputs = 0, 1
    for outputs in model_params["channels"]:
        for _ in range(model_params.get("convolutions", 1)):
            total += 9 * inputs * outputs + 2 * outputs  # 3x3 filters, then the norm's gain and shift
            inputs = outputs
        side //= 2
    values = inputs if pooled else inputs * side * side
    return total + values * NUM_CLASSES + NUM_CLASSES


def moved(split: NormalizedSplit, *, degrees: float = 0.0, right: float = 0.0, down: float = 0.0) -> NormalizedSplit:
    """Return the split with every image turned clockwise and then shifted; what enters from outside is paper.

    `right` and `down` are in pixels.
    """
    data = to_device(split, device=torch.device("cpu"))
    move = torch.tensor([[math.radians(degrees), right, down]])
    parts = [
        augment.affine(part, move.expand(len(part), 3), background=data.background)
        for part in torch.split(data.images, 500)
    ]
    return replace(split, images=torch.cat(parts).squeeze(1).numpy())


def regress(recipe: Recipe, *, training: DeviceSplit, targets: Tensor) -> nn.Module:
    """Return the recipe's model with one linear output in place of ten, trained on the squared error to the targets.

    `targets` are float32 `(N,)`, one for each training row.
    """
    model, _ = loop.new_run(recipe, device=device())
    model.output = nn.Linear(cast(nn.Linear, model.output).in_features, 1).to(device())
    optimizer = optimizers.build(
        recipe.optimizer, model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    learner = _Regressor(recipe, model=model, optimizer=optimizer)
    for _ in loop.epochs(learner, recipe, training=replace(training, labels=targets.to(device()))):
        pass
    return model


class _Regressor(loop.Network):
    """A network with one output, which `loop.epochs` trains on the squared error."""

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: loop.Batch) -> Tensor:
        """Make one optimizer step on the squared error, as `loop.Learner` describes, and count no hits.

        `images` are float32 `(B, 1, 28, 28)`; `labels` are the targets, float32 `(B,)`. The result is float32 `(3,)`.
        """
        assert moves is None
        with numerics.autocast(self._recipe.precision, self.device):
            found = self._model(images)
        loss = F.mse_loss(found.float().squeeze(1), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * batch.multiplier
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach() * len(labels), torch.zeros_like(loss), torch.full_like(loss, len(labels))])


def class_means(split: NormalizedSplit) -> NDArray[np.float64]:
    """Return the average image of each class, float64 `(10, 784)`."""
    flat = split.images.reshape(-1, PIXELS)
    return np.stack([flat[split.labels == label].mean(0, dtype=np.float64) for label in range(NUM_CLASSES)])


def likeness(templates: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of each template with the average image of its class, over the pixels: float64 `(10,)`.

    Both are float64 `(10, 784)` and are taken minus their mean over the classes: what all templates have in common adds
    the same to every logit.
    """
    pairs = zip(templates - templates.mean(0), means - means.mean(0), strict=True)
    return np.array([np.corrcoef(template, mean)[0, 1] for template, mean in pairs])


def nearest(images: NDArray[np.float32], means: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the row of `means`, float64 `(M, 784)`, that is nearest to each image, float32 `(N, 28, 28)`: `(N,)`."""
    # |x - m|² without |x|², which is the same for every class
    distances = (means**2).sum(1) - 2 * images.reshape(-1, PIXELS) @ means.T
    rows: NDArray[np.int64] = distances.argmin(1)
    return rows


def lost_ink(images: NDArray[np.float32], *, shifts: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of the ink that each shift moves out of the images, averaged over the four directions.

    `images` are float32 `(N, H, W)`, `shifts` are in pixels, and the result is float64 `(shifts,)`.
    """
    ink = images.sum(0, dtype=np.float64)
    height, width = ink.shape
    rims = [(ink[:k], ink[height - k :], ink[:, :k], ink[:, width - k :]) for k in shifts]
    return np.array([sum(float(rim.sum()) for rim in four) / float(4 * ink.sum()) for four in rims])


def _classified(
    recipe: Recipe,
    *,
    training: NormalizedSplit,
    test: NormalizedSplit,
    shifts: Sequence[int],
    rotations: Sequence[float],
) -> Result:
    """Train a classifier and return its accuracy on the test rows, unmoved, shifted and turned."""
    model, history = fit(recipe, training=training, watched=test)
    correct = predicted(model, test) == test.labels

    def after(*moves: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the share of `moves` after which each image is still recognised, float64 `(N,)`."""
        hits = [predicted(model, moved(test, **move)) == test.labels for move in moves]
        shares: NDArray[np.float64] = np.stack(hits).mean(0)
        return shares

    shifted = [after({"right": k}, {"right": -k}, {"down": k}, {"down": -k}) if k else correct for k in shifts]
    turned = [after({"degrees": angle}, {"degrees": -angle}) if angle else correct for angle in rotations]
    metrics = {
        "parameters": _count(model),
        "train_accuracy": round(history[-1]["train_accuracy"], 6),
        "test_accuracy": round(float(correct.mean()), 6),
        "shifted": _rates(shifted, labels=test.labels),
        "turned": _rates(turned, labels=test.labels),
    }
    intermediate = {"correct": packed(np.packbits(correct))}
    if recipe.model == "linear":
        weight = cast(nn.Linear, model.output).weight
        intermediate["templates"] = packed(weight.detach().cpu().numpy().astype(np.float16))
    return Result(metrics=metrics, intermediate=intermediate)


def _learned(recipe: Recipe, *, training: NormalizedSplit, test: NormalizedSplit) -> Result:
    """Train a classifier and return its accuracy on its training rows, as they are, and on the test rows."""
    model, _ = fit(recipe, training=training, watched=training.first(1))
    correct = predicted(model, test) == test.labels
    metrics = {
        "parameters": _count(model),
        "train_accuracy": round(float((predicted(model, training) == training.labels).mean()), 6),
        "test_accuracy": round(float(correct.mean()), 6),
    }
    return Result(metrics=metrics, intermediate={"correct": packed(np.packbits(correct))})


def _by_prototypes(numbers: Sequence[int], *, training: NormalizedSplit, test: NormalizedSplit, seed: int) -> Result:
    """Return the accuracy of the nearest template on the test rows, by the number of templates a class."""
    accuracies, shown = [], []
    for number in numbers:
        found = prototypes(training, number=number, seed=seed)
        nearest_one = nearest(test.images, found.reshape(-1, PIXELS)) // number
        accuracies.append(float((nearest_one == test.labels).mean()))
        if number == SHOWN_PROTOTYPES:
            shown = [packed(found[label].astype(np.float16)) for label in SHOWN]
    return Result(metrics={"accuracy": _rounded(accuracies)}, intermediate={"prototypes": shown})


def prototypes(split: NormalizedSplit, *, number: int, seed: int) -> NDArray[np.float64]:
    """Return the centres of k-means within each class, float64 `(10, number, 784)`."""
    from sklearn.cluster import KMeans

    flat = split.images.reshape(-1, PIXELS)
    return np.stack(
        [
            KMeans(number, n_init=1, random_state=seed).fit(flat[split.labels == label]).cluster_centers_
            for label in range(NUM_CLASSES)
        ]
    ).astype(np.float64)


def _rates(hits: Sequence[NDArray[Any]], *, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the accuracy at each amount, over all rows and for each class; `hits` has an array `(N,)` per amount."""
    return {
        "accuracy": _rounded([one.mean() for one in hits]),
        "by_class": [_rounded([one[labels == label].mean() for label in range(NUM_CLASSES)]) for one in hits],
    }


def _regressed(recipe: Recipe, *, training: NormalizedSplit, test: NormalizedSplit) -> Result:
    """Train a regressor of the slant and return its errors on the test rows."""
    known, wanted = (slant(pixels(split)) for split in (training, test))
    centre, spread = known.mean(), known.std()
    targets = torch.tensor((known - centre) / spread, dtype=torch.float32)
    model = regress(recipe, training=to_device(training, device=device()), targets=targets)
    found = forward.logits(model, test.images)[:, 0] * spread + centre
    errors = found - wanted
    metrics = {
        "parameters": _count(model),
        "spread": round(float(wanted.std()), 6),
        "r2": round(float(1 - (errors**2).mean() / wanted.var()), 6),
        "rmse": round(float(np.sqrt((errors**2).mean())), 6),
        "mae": round(float(np.abs(errors).mean()), 6),
    }
    return Result(metrics=metrics, intermediate={"predicted": packed(found.astype(np.float32))})


def _compared(classifiers: Mapping[str, Sequence[Run]], *, lower: str, upper: str) -> dict[str, Any]:
    """Return the comparison of the upper model with the lower one, seed by seed."""
    return {"lower": lower, "upper": upper, **_paired(classifiers[upper], classifiers[lower])}


def _paired(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """Return what the `first` runs gain over the `second` ones, seed by seed, with McNemar's tests."""
    pairs = list(zip(second, first, strict=True))
    tests = [mcnemar(_correct(above), _correct(below)) for below, above in pairs]
    return {
        "gains": _rounded([above.result["test_accuracy"] - below.result["test_accuracy"] for below, above in pairs]),
        "only_upper": [test.only_first for test in tests],
        "only_lower": [test.only_second for test in tests],
        "p_values": [float(f"{test.p_value:.6g}") for test in tests],
        "p_value": float(f"{combined([test.p_value for test in tests]):.6g}"),
    }


def _correct(one: Run) -> NDArray[np.bool_]:
    bits = np.unpackbits(unpacked(one.intermediate["correct"], np.uint8))
    return bits.astype(np.bool_)  # the bits that fill up the last byte count as wrong for every model


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _num_parameters_at_28(config: Config) -> int:
    recipe = config["recipe"]
    return num_parameters(recipe["model"], recipe["model_params"], side=28)


def _rounded(values: Sequence[float] | NDArray[np.floating[Any]]) -> list[float]:
    return [round(float(value), 6) for value in values]
