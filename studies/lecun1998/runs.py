"""Section III of LeCun et al. 1998: a run for each system and seed, which gives its error on the test split.

A system's images, sizes and way of working are the paper's and stand here; how long and how fast it learns is in
`studies/params.yaml` and was chosen on the validation split. The runs learn from all 60,000 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mnist_pipe.data.table import NormalizedSplit
from mnist_pipe.models.lenet1998 import LeNet4
from mnist_pipe.params.schema import BatchSize, Degrees, Epochs, LearningRate, OptimizerName, Pixels, Section, Smoothing
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.deskew import deslanted
from studies.common.fitting import fit, pixels, predicted, whole
from studies.common.ledger import Config, Run
from studies.lecun1998 import boosting, cost, kernels, linear, neighbours, tangent

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Training(Section):
    """How a network learns, under one cycle of the learning rate."""

    optimizer: OptimizerName
    learning_rate: LearningRate
    """The peak of the cycle."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    batch_size: BatchSize
    num_epochs: Epochs
    label_smoothing: Smoothing = 0.0
    rotation_degrees: Degrees = 0.0
    """The largest random rotation."""
    translation_pixels: Pixels = 0.0
    """The largest random shift."""


class Params(Section):
    """The study `lecun1998`."""

    num_seeds: Annotated[int, Field(ge=1, le=100)]
    """Of every method that draws; the others run once."""
    networks: dict[str, Training]
    """By system and variant."""
    rubbish: Positive
    """j of equation 9, for LeNet-5's criterion: the penalty of the class without a picture."""
    boosting_passes: Count
    """Distorted copies of the training rows that each of the two later networks is given to choose from."""
    boosting_epochs: Epochs
    """Of the later networks, over the patterns that were chosen."""
    linear_decay: Positive
    """Weight decay of the classifiers that are linear in fixed features, whose inputs are ink from 0 to 1."""
    linear_iterations: Count
    """Of L-BFGS."""
    num_neighbours: Count
    """That vote in K-NN."""
    num_local: Count
    """Neighbours that a local classifier learns from."""
    local_decay: Positive
    rbf_width: Positive
    """Of a Gaussian unit, in the root mean square distance between a row and the nearest unit of its class."""
    rbf_ridge: Positive
    tangent_smoothing: Positive
    """Of the Gaussian before the derivatives, in pixels."""
    tangent_candidates: Count
    """Neighbours in Euclidean distance, to which alone tangent distance is computed."""
    tangent_neighbours: Count
    """Of these, the nearest in tangent distance, which vote."""
    svm_penalty: Positive
    """C: what a row on the wrong side of its margin costs."""
    reduced_steps: Count
    """Of Adam, for the vectors of the reduced set."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of figure 9."""

    model: str
    """A key of MODELS."""
    arguments: dict[str, Any] = field(default_factory=dict)
    images: str = "regular"
    """The database of section III.A: regular, deslanted or reduced."""


NETWORKS = {  # the longest to train first
    "boosted LeNet-4, distortions": Network(model="lenet4"),
    "LeNet-5, distortions": Network(model="lenet5_rbf"),
    "LeNet-5, plain": Network(model="lenet5_rbf"),
    "LeNet-4, plain": Network(model="lenet4"),
    "LeNet-1, 16x16 input": Network(model="lenet1", images="reduced"),
    **{
        f"MLP {'-'.join(map(str, hidden))}-10, {variant}": Network(
            model="mlp", arguments={"hidden": hidden, "activation": "tanh"}
        )
        for variant in ("distortions", "plain")
        for hidden in ([1000], [500, 150], [300, 100], [300])
    },
    "MLP 300-10, deslanted 20x20": Network(
        model="mlp", arguments={"hidden": [300], "activation": "tanh", "crop": 4}, images="deslanted"
    ),
}
NUM_REDUCED = 1460
"""Vectors of the reduced set: with 400 pixels and 45 decisions each, 650,000 multiply-adds as in the paper."""


def plan(params: Params, done: Sequence[Run]) -> list[Config]:  # noqa: ARG001
    """Everything at once: no run depends on another."""
    seeds = range(params.num_seeds)
    descent = {"decay": params.linear_decay, "num_iterations": params.linear_iterations, "seed": 0}
    vote = {"num_neighbours": params.num_neighbours, "seed": 0}
    width = {"width": params.rbf_width, "ridge": params.rbf_ridge}
    planes = {
        "smoothing": params.tangent_smoothing,
        "num_candidates": params.tangent_candidates,
        "num_neighbours": params.tangent_neighbours,
    }
    return [
        {"method": "virtual", "penalty": params.svm_penalty, "seed": 0},
        {"method": "reduced", "penalty": params.svm_penalty, "num_steps": params.reduced_steps, "seed": 0},
        *(_network(params, name, seed) for name in NETWORKS for seed in seeds),
        {"method": "tangent", **planes, "seed": 0},
        *({"method": "radial", **width, "seed": seed} for seed in seeds),
        *({"method": "neighbours", "images": images, **vote} for images in ("regular", "deslanted")),
        {"method": "quadratic", **descent},
        {"method": "pairwise", **descent},
        *({"method": "linear", "images": images, **descent} for images in ("regular", "deslanted")),
    ]


def _network(params: Params, name: str, seed: int) -> Config:
    config = {"method": "network", "name": name, "training": params.networks[name].model_dump(), "seed": seed}
    if name.startswith("LeNet-5"):
        config["rubbish"] = params.rubbish
    if name.startswith("LeNet-4"):
        local = {"num_local": params.num_local, "decay": params.local_decay}
        config |= {"method": "LeNet-4", "num_neighbours": params.num_neighbours, **local}
    if name.startswith("boosted"):
        more = {"num_passes": params.boosting_passes, "later_epochs": params.boosting_epochs}
        config |= {"method": "boosted", **more}
    return config


Found = dict[str, NDArray[np.uint8]]
"""The digits that each of a run's systems takes the test images for, by `system, variant`."""
Figures = dict[str, Any]


def run(config: Config, splits: Mapping[str, NormalizedSplit]) -> dict[str, Any]:
    """The error of each of the run's systems in percent of the test split, and what else there is to tell."""
    torch.set_num_threads(1)
    training, test = whole(splits), splits["test"]
    found, figures = METHODS[config["method"]](config, training, test)
    return {"errors": {name: _error(digits, test) for name, digits in found.items()}, **figures}


def conclude(done: Sequence[Run], splits: Mapping[str, NormalizedSplit]) -> dict[str, Any]:  # noqa: ARG001
    """What each system costs, by `system, variant`: variables and multiply-adds for an image."""
    costs = {name: cost.of_network(network.model, network.arguments) for name, network in NETWORKS.items()}
    variables, products = costs["LeNet-4, plain"]
    costs["boosted LeNet-4, distortions"] = (3 * variables, 3 * products)
    costs["LeNet-4 + K-NN, plain"] = (variables + 120 * cost.ROWS, products + 120 * cost.ROWS)
    for each in done:
        config, result = each.config, each.result
        match config["method"]:
            case "tangent":
                costs |= cost.classical(num_candidates=config["num_candidates"])
            case "LeNet-4":
                fitted = config["num_local"] * 120**2 + 120**3 // 3
                costs["LeNet-4 + local learning, plain"] = (variables, products + 120 * cost.ROWS + fitted)
            case "virtual" | "reduced" as method:
                num_pixels = cost.PIXELS if method == "virtual" else cost.SQUARE
                for name, number in result["num_vectors"].items():
                    costs[name] = cost.of_machine(number, num_pixels=num_pixels)
    return {"costs": costs}


def prepared(split: NormalizedSplit, images: str) -> NormalizedSplit:
    """The split with the images of one of the three databases of section III.A, each in a 28x28 frame."""
    if images == "regular":
        return split
    if images == "deslanted":  # the paper's are 20x20; what is around them here is empty
        ink = np.pad(deslanted_squares(split), ((0, 0), (4, 4), (4, 4)))
    else:
        assert images == "reduced"  # by 22/28, which makes the digit's 20 pixels 16
        ink = np.pad(resized(pixels(split), side=22), ((0, 0), (3, 3), (3, 3)))
    mean, std = (np.float32(split.provenance[name]) for name in ("mean", "std"))
    return replace(split, images=(ink - mean) / std)


def deslanted_squares(split: NormalizedSplit) -> NDArray[np.float32]:
    """(rows, 20, 20) ink of the second database: what is around the centre of mass."""
    return deslanted(pixels(split))[:, 4:24, 4:24]


def resized(images: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
    """(n, side, side) of (n, height, width) images, each pixel the mean of those that fall into it."""
    parts = torch.split(torch.from_numpy(images).unsqueeze(1), 2000)
    smaller = [F.interpolate(part, size=(side, side), mode="bilinear", antialias=True) for part in parts]
    found: NDArray[np.float32] = torch.cat(smaller).squeeze(1).numpy()
    return found


def _linear(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    variant, inputs, queries = _rows(config, training, test)
    weights = linear.softmax(linear.with_bias(inputs), _labels(training), **_descent(config))
    return {f"linear (1-layer), {variant}": _digits(linear.with_bias(queries) @ weights)}, {}


def _pairwise(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    variant, inputs, queries = _rows(config, training, test)
    weights = linear.pairwise(linear.with_bias(inputs), _labels(training), **_descent(config))
    return {f"pairwise linear, {variant}": _digits(linear.pairwise_scores(linear.with_bias(queries), weights))}, {}


def _quadratic(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    variant, inputs, queries = _rows(config, training, test)
    products = linear.Products(inputs, num_components=40)
    weights = linear.softmax(products(inputs), _labels(training), **_descent(config))
    return {f"40 PCA + quadratic, {variant}": _digits(products(queries) @ weights)}, {}


def _radial(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    variant, inputs, queries = _rows(config, training, test)
    units = linear.Gaussians(inputs, training.labels, num_units=100, width=config["width"], seed=config["seed"])
    weights = linear.least_squares(units(inputs), _labels(training), ridge=config["ridge"])
    return {f"1000 RBF + linear, {variant}": _digits(units(queries).double() @ weights)}, {}


def _neighbours(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    variant, templates, queries = _rows(config, training, test)
    rows = neighbours.nearest(queries, templates, num_neighbours=config["num_neighbours"])
    return {f"K-NN Euclidean, {variant}": neighbours.vote(_labels(training)[rows])}, {}


def _tangent(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    # The 16x16 in the middle; a few digits lose an end of a stroke.
    templates, queries = (resized(pixels(split), side=22)[:, 3:19, 3:19] for split in (training, test))
    options = {name: config[name] for name in ("smoothing", "num_candidates", "num_neighbours")}
    rows = tangent.nearest(queries, templates, **options)
    return {"tangent distance, 16x16": neighbours.vote(_labels(training)[rows])}, {}


def _virtual(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    name, queries = "virtual SVM poly 9, distortions", kernels.unit(pixels(test))
    first, virtual = _machines(config, pixels(training), training.labels, degree=9)
    return {name: virtual.predict(queries)}, {
        "num_vectors": {name: len(virtual.vectors)},
        "num_first": len(first.vectors),
        "first_error": _error(first.predict(queries), test),
    }


def _reduced(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    queries = kernels.unit(deslanted_squares(test))
    first, virtual = _machines(config, deslanted_squares(training), training.labels, degree=5)
    smaller = kernels.reduced(virtual, num_vectors=NUM_REDUCED, num_steps=config["num_steps"], seed=config["seed"])
    machines = {"SVM poly 4, deslanted": first, "reduced-set SVM poly 5, deslanted": smaller}
    return {name: machine.predict(queries) for name, machine in machines.items()}, {
        "num_vectors": {name: len(machine.vectors) for name, machine in machines.items()},
        "num_virtual": len(virtual.vectors),
        "virtual_error": _error(virtual.predict(queries), test),
    }


def _machines(
    config: Config, ink: NDArray[np.float32], labels: NDArray[np.uint8], *, degree: int
) -> tuple[kernels.Machine, kernels.Machine]:
    """Section III.C.11: a machine of degree 4, and a virtual one that learns from what supports it and the shifts."""
    first = kernels.train(kernels.unit(ink), labels, degree=4, penalty=config["penalty"])
    moved, own = kernels.shifted(ink[first.rows]), np.tile(labels[first.rows], 5)
    return first, kernels.train(kernels.unit(moved), own, degree=degree, penalty=config["penalty"])


def _network_run(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    name = config["name"]
    training, test = (prepared(split, NETWORKS[name].images) for split in (training, test))
    model, _ = fit(_recipe(config), training=training, watched=test.first(1000))
    return {name: predicted(model, test)}, {}


def _lenet4(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    """LeNet-4, and with neighbours, or a classifier made for each image, in place of its last layer (III.C.8)."""
    model, _ = fit(_recipe(config), training=training, watched=test.first(1000))
    assert isinstance(model, LeNet4)
    features, queries = (hidden(model, split) for split in (training, test))
    labels = _labels(training)
    near = neighbours.nearest(queries, features, num_neighbours=config["num_neighbours"])
    local = neighbours.local_linear(
        queries, features, labels, num_neighbours=config["num_local"], decay=config["decay"]
    )
    return {
        "LeNet-4, plain": predicted(model, test),
        "LeNet-4 + K-NN, plain": neighbours.vote(labels[near]),
        "LeNet-4 + local learning, plain": _digits(local),
    }, {}


@torch.inference_mode()
def hidden(model: LeNet4, split: NormalizedSplit) -> Tensor:
    """(rows, 120) what the last hidden layer makes of the images."""
    device = next(model.parameters()).device
    parts = torch.split(to_device(split, device=device).images, 250)
    return torch.cat([model.features(part).cpu() for part in parts])


def _boosted(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Figures]:
    networks, num_patterns = boosting.train(
        _recipe(config),
        training=training,
        watched=test.first(1000),
        num_passes=config["num_passes"],
        num_epochs=config["later_epochs"],
    )
    figures = {
        "num_patterns": num_patterns,
        "single_errors": [_error(predicted(each, test), test) for each in networks],
    }
    return {config["name"]: boosting.added(networks, test).argmax(1).astype(np.uint8)}, figures


METHODS: dict[str, Callable[[Config, NormalizedSplit, NormalizedSplit], tuple[Found, Figures]]] = {
    "linear": _linear,
    "pairwise": _pairwise,
    "quadratic": _quadratic,
    "radial": _radial,
    "neighbours": _neighbours,
    "tangent": _tangent,
    "virtual": _virtual,
    "reduced": _reduced,
    "network": _network_run,
    "LeNet-4": _lenet4,
    "boosted": _boosted,
}


def _recipe(config: Config) -> Recipe:
    network = NETWORKS[config["name"]]
    criterion = {name: config[name] for name in ("rubbish",) if name in config}
    return Recipe(
        model=network.model,
        model_params=network.arguments | criterion,
        precision="float32",  # with so few maps bfloat16 is no faster
        seed=config["seed"],
        **config["training"],
    )


def _rows(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[str, Tensor, Tensor]:
    """The variant's name in the table, and the (rows, pixels) ink of both splits, from 0 to 1."""
    is_deslanted = config.get("images") == "deslanted"
    rows = [
        torch.from_numpy(deslanted_squares(split) if is_deslanted else pixels(split)).flatten(1)
        for split in (training, test)
    ]
    return "deslanted" if is_deslanted else "plain", rows[0], rows[1]


def _labels(split: NormalizedSplit) -> Tensor:
    return torch.from_numpy(split.labels.astype(np.int64))


def _digits(scores: Tensor) -> NDArray[np.uint8]:
    digits: NDArray[np.uint8] = scores.argmax(1).numpy().astype(np.uint8)
    return digits


def _error(digits: NDArray[np.uint8], split: NormalizedSplit) -> float:
    return round(100 * float((digits != split.labels).mean()), 4)


def _descent(config: Config) -> dict[str, Any]:
    return {name: config[name] for name in ("decay", "num_iterations")}
