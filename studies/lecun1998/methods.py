"""The methods of section III, each from the training rows to the digits that it predicts for the test images.

The images, the sizes and the procedure of a method are the paper's and are defined here; how long and how fast it
learns is in its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models.lenet1998 import LeNet4
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.fitting import fit, pixels, predicted
from studies.common.ledger import Config
from studies.lecun1998 import boosting, kernels, linear, neighbours, tangent
from studies.lecun1998.databases import deslanted_squares, prepared, reduced_squares


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of figure 9."""

    model: str
    """Key of the network in MODELS."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor."""
    images: str = "regular"
    """Database of section III.A that the network learns from: regular, deslanted or reduced."""


NETWORKS = {  # those that train longest first
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
CONTROLS = {
    "virtual SVM poly 9, control": "virtual SVM poly 9, distortions",
    "tangent distance, 16x16, control": "tangent distance, 16x16",
}
"""For the controls of a system, which have its method but another setting, the system."""
NUM_REDUCED = 1460
"""Vectors of the reduced set: with 400 pixels and 45 decisions each, 650,000 multiply-adds as in the paper."""

Found = dict[str, NDArray[np.uint8]]
"""Predicted digits of the test images, uint8 `(N,)`, for each of a run's systems, by `system, variant`."""
Metrics = dict[str, Any]


def _linear(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    variant, inputs, queries = _rows(config, training, test)
    weights = linear.softmax(linear.with_bias(inputs), _labels(training), **_descent(config))
    return {f"linear (1-layer), {variant}": _digits(linear.with_bias(queries) @ weights)}, {}


def _pairwise(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    variant, inputs, queries = _rows(config, training, test)
    weights = linear.pairwise(linear.with_bias(inputs), _labels(training), **_descent(config))
    return {f"pairwise linear, {variant}": _digits(linear.pairwise_scores(linear.with_bias(queries), weights))}, {}


def _quadratic(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    variant, inputs, queries = _rows(config, training, test)
    products = linear.Products(inputs, num_components=40)
    weights = linear.softmax(products(inputs), _labels(training), **_descent(config))
    return {f"40 PCA + quadratic, {variant}": _digits(products(queries) @ weights)}, {}


def _radial(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    variant, inputs, queries = _rows(config, training, test)
    units = linear.Gaussians(inputs, training.labels, num_units=100, width=config["width"], seed=config["seed"])
    weights = linear.least_squares(units(inputs), _labels(training), ridge=config["ridge"])
    return {f"1000 RBF + linear, {variant}": _digits(units(queries).double() @ weights)}, {}


def _neighbours(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    variant, templates, queries = _rows(config, training, test)
    rows = neighbours.nearest(queries, templates, num_neighbours=config["num_neighbours"])
    return {f"K-NN Euclidean, {variant}": neighbours.vote(_labels(training)[rows])}, {}


def _tangent(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    templates, queries = (
        ndimage.gaussian_filter(reduced_squares(split, centre=config["centre"]), (0, config["blur"], config["blur"]))
        for split in (training, test)
    )
    options = {name: config[name] for name in ("smoothing", "num_candidates", "num_neighbours")}
    rows = tangent.nearest(queries, templates, **options)
    name = "tangent distance, 16x16"
    return {f"{name}, control" if config["is_control"] else name: neighbours.vote(_labels(training)[rows])}, {}


def _virtual(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    is_deslanted, degrees = config["images"] == "deslanted", config["degrees"]
    name = "virtual SVM poly 9, control" if config["is_control"] else "virtual SVM poly 9, distortions"
    ink, queries = (deslanted_squares(split) if is_deslanted else pixels(split) for split in (training, test))
    first, virtual = _machines(config, ink, training.labels, degrees=degrees)
    return {name: virtual.predict(kernels.unit(queries))}, {
        "num_vectors": {name: len(virtual.vectors)},
        "num_first": len(first.vectors),
        "first_error": error_of(first.predict(kernels.unit(queries)), test),
    }


def _reduced(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    queries = kernels.unit(deslanted_squares(test))
    first, virtual = _machines(config, deslanted_squares(training), training.labels, degrees=[4, 5])
    smaller = kernels.reduced(virtual, num_vectors=NUM_REDUCED, num_steps=config["num_steps"], seed=config["seed"])
    machines = {"SVM poly 4, deslanted": first, "reduced-set SVM poly 5, deslanted": smaller}
    return {name: machine.predict(queries) for name, machine in machines.items()}, {
        "num_vectors": {name: len(machine.vectors) for name, machine in machines.items()},
        "num_virtual": len(virtual.vectors),
        "virtual_error": error_of(virtual.predict(queries), test),
    }


def _machines(
    config: Config, ink: NDArray[np.float32], labels: NDArray[np.uint8], *, degrees: Sequence[int]
) -> tuple[kernels.Machine, kernels.Machine]:
    """Return two machines of these `degrees`: the second learns from the support vectors of the first and their shifts.

    Burges & Schoelkopf 1997, section 3. `ink` is float32 `(N, H, W)`, `labels` uint8 `(N,)`.
    """
    first = kernels.train(kernels.unit(ink), labels, degree=degrees[0], penalty=config["penalty"])
    moved, own = kernels.shifted(ink[first.rows]), np.tile(labels[first.rows], 5)
    return first, kernels.train(kernels.unit(moved), own, degree=degrees[1], penalty=config["penalty"])


def _network_run(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    name = config["name"]
    training, test = (prepared(split, NETWORKS[name].images) for split in (training, test))
    model, _ = fit(_recipe(config), training=training, watched=test.first(1000))
    return {name: predicted(model, test)}, {"train_error": error_of(predicted(model, training), training)}


def _lenet4(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    """Return the digits of LeNet-4, and with K-NN or a local classifier in place of its last layer (III.C.8)."""
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
    }, {"train_error": error_of(predicted(model, training), training)}


@torch.inference_mode()
def hidden(model: LeNet4, split: NormalizedSplit) -> Tensor:
    """Return the output of the last hidden layer, float32 `(N, 120)` on the CPU, for the images of `split`."""
    device = next(model.parameters()).device
    parts = torch.split(to_device(split, device=device).images, 250)
    return torch.cat([model.features(part).cpu() for part in parts])


def _boosted(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[Found, Metrics]:
    networks, num_patterns = boosting.train(
        _recipe(config),
        training=training,
        watched=test.first(1000),
        num_passes=config["num_passes"],
        num_epochs=config["later_epochs"],
    )
    metrics = {
        "num_patterns": num_patterns,
        "single_errors": [error_of(predicted(each, test), test) for each in networks],
    }
    return {config["name"]: boosting.added(networks, test).argmax(1).astype(np.uint8)}, metrics


METHODS: dict[str, Callable[[Config, NormalizedSplit, NormalizedSplit], tuple[Found, Metrics]]] = {
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
        precision="float32",  # with so few feature maps bfloat16 is no faster
        seed=config["seed"],
        **config["training"],
    )


def _rows(config: Config, training: NormalizedSplit, test: NormalizedSplit) -> tuple[str, Tensor, Tensor]:
    """Return the variant's name in the table, and the ink of both splits, float32 `(N, pixels)` from 0 to 1."""
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


def error_of(digits: NDArray[np.uint8], split: NormalizedSplit) -> float:
    """Return the percentage of the rows of `split` for which the predicted digit, uint8 `(N,)`, is wrong."""
    return round(100 * float((digits != split.labels).mean()), 4)


def _descent(config: Config) -> dict[str, Any]:
    return {name: config[name] for name in ("decay", "num_iterations")}
