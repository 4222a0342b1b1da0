"""The runs of section III of LeCun et al. 1998: one for each system and seed, which gives its error on the test split.

The systems themselves are in `methods`. How long and how fast they learn is in `studies/params.yaml` and was chosen on
the validation split. The runs learn from all 60,000 rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mnist_pipe.evaluation.significance import mcnemar
from mnist_pipe.params.schema import BatchSize, Degrees, Epochs, LearningRate, OptimizerName, Pixels, Section, Smoothing
from studies.common.fitting import Splits, whole
from studies.common.ledger import Config, Result, Run
from studies.common.packing import packed, unpacked
from studies.common.significance import combined
from studies.lecun1998 import cost
from studies.lecun1998.methods import CONTROLS, METHODS, NETWORKS, error_of

QUICK = ("MLP", "LeNet")
"""First letters of the networks of which a run takes a minute or so."""
TRADITIONAL = ("linear", "pairwise", "K-NN", "40 PCA", "1000 RBF", "tangent", "SVM", "reduced-set", "virtual")
CONVOLUTIONAL = ("LeNet-1", "LeNet-4, ", "LeNet-5", "boosted")
"""First letters of the systems that are no networks, and of those that are convolutional ones with their own output."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Training(Section):
    """Training settings of a network, under one cycle of the learning rate."""

    optimizer: OptimizerName
    learning_rate: LearningRate
    """Peak of the cycle."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    batch_size: BatchSize
    num_epochs: Epochs
    label_smoothing: Smoothing = 0.0
    rotation_degrees: Degrees = 0.0
    """Largest random rotation, in degrees."""
    translation_pixels: Pixels = 0.0
    """Largest random shift, in pixels."""


class TangentParams(Section):
    """Settings of tangent distance."""

    centre: Literal["mass", "box"]
    """What is in the middle of an image: the digit's centre of mass, or that of its box."""
    blur: Width
    """Width of the Gaussian blur of the images, in pixels."""
    smoothing: Width
    """Width of a further Gaussian blur before the derivatives, in pixels."""
    num_candidates: Count
    """Nearest neighbours in Euclidean distance, the only ones to which tangent distance is computed."""
    num_neighbours: Count
    """Neighbours that vote: those of the candidates that are nearest in tangent distance."""


class Params(Section):
    """The section `lecun1998` of `studies/params.yaml`."""

    num_seeds: Annotated[int, Field(ge=1, le=100)]
    """Number of seeds of a method that draws at random; the others run once."""
    num_quick_seeds: Annotated[int, Field(ge=1, le=100)]
    """The same of those methods in `QUICK`, a run of which takes a minute or so."""
    networks: dict[str, Training]
    """Training settings of each network, by system and variant."""
    rubbish: Positive
    """j of equation 9, for LeNet-5's criterion: the penalty of the class without a bitmap."""
    boosting_passes: Count
    """Distorted copies of the training rows from which the patterns of each of the two later networks are selected."""
    boosting_epochs: Epochs
    """Epochs of the later networks, over the patterns that were selected."""
    linear_decay: Positive
    """Weight decay of the classifiers that are linear in fixed features, whose inputs are ink from 0 to 1."""
    linear_iterations: Count
    """Iterations of L-BFGS."""
    num_neighbours: Count
    """Neighbours that vote in K-NN."""
    num_local: Count
    """Neighbours that a local classifier learns from."""
    local_decay: Positive
    """Weight decay of a local classifier."""
    rbf_width: Positive
    """Width of a Gaussian unit, in root mean square distances between a row and the nearest unit of its class."""
    rbf_ridge: Positive
    """Ridge penalty of the least squares behind the Gaussian units."""
    tangent: Annotated[list[TangentParams], Field(min_length=1)]
    """Settings of tangent distance; the first is that of the table, the others are controls."""
    svm_penalty: Positive
    """C of the support vector machines: the cost of a row on the wrong side of its margin."""
    reduced_steps: Count
    """Steps of Adam for the vectors of the reduced set."""


def plan(params: Params) -> list[Config]:
    """Return all configurations; no run depends on another."""
    seeds, quick = range(params.num_seeds), range(params.num_quick_seeds)
    descent = {"decay": params.linear_decay, "num_iterations": params.linear_iterations, "seed": 0}
    vote = {"num_neighbours": params.num_neighbours, "seed": 0}
    width = {"width": params.rbf_width, "ridge": params.rbf_ridge}
    machines = [("regular", [9, 9]), ("regular", [4, 9]), ("deslanted", [9, 9])]
    return [
        *(
            {
                "method": "virtual",
                "is_control": place > 0,
                "images": images,
                "degrees": degrees,
                "penalty": params.svm_penalty,
                "seed": 0,
            }
            for place, (images, degrees) in enumerate(machines)
        ),
        {"method": "reduced", "penalty": params.svm_penalty, "num_steps": params.reduced_steps, "seed": 0},
        *(_network(params, name, seed) for name in NETWORKS for seed in (quick if name.startswith(QUICK) else seeds)),
        *(
            {"method": "tangent", "is_control": place > 0, **own.model_dump(), "seed": 0}
            for place, own in enumerate(params.tangent)
        ),
        *({"method": "radial", **width, "seed": seed} for seed in quick),
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


def run(config: Config, splits: Splits) -> Result:
    """Return the error of each of the run's systems, in percent of the test split, and the method's other results.

    The intermediate result is `right`: for each system whether it reads each image of the test split, packed.
    """
    torch.set_num_threads(1)
    training, test = whole(splits), splits["test"]
    found, metrics = METHODS[config["method"]](config, training, test)
    errors = {name: error_of(digits, test) for name, digits in found.items()}
    right = {name: packed(np.packbits(digits == test.labels)) for name, digits in found.items()}
    return Result(metrics={"errors": errors, **metrics}, intermediate={"right": right})


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return `costs`, `compared` and `controls`.

    `compared` has every pair of systems of which the paper says that one is better, and `controls` each control beside
    its system, in the order of the runs. A comparison has the difference of the errors in points, positive if the first
    is lower, and the two-sided p-value of McNemar's tests on the test split: one for each pair of seeds, combined.
    """
    right: dict[str, list[NDArray[np.bool_]]] = {}
    for each in sorted(done, key=lambda each: int(each.config["seed"])):
        for name, text in each.intermediate["right"].items():
            bits = np.unpackbits(unpacked(text, np.uint8), count=len(splits["test"].labels))
            right.setdefault(name, []).append(bits.astype(bool))
    controls = {name: right.pop(name) for name in [*right] if name in CONTROLS}
    return {
        "costs": _costs(done),
        "compared": [
            {"better": better, "worse": worse, **_compared(right[better], right[worse])}
            for better, worse in claimed(right)
        ],
        "controls": [
            {"worse": CONTROLS[name], **_compared([bits], right[CONTROLS[name]])}
            for name, found in controls.items()
            for bits in found
        ],
    }


def claimed(systems: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of systems, the better one first, by the claims that the study tests."""
    names = list(systems)
    variants = [("distortions", "plain"), ("deslanted", "plain"), ("deslanted 20x20", "plain")]
    pairs = [
        (name, other)
        for name in names
        for better, worse in variants
        if name.endswith(f", {better}") and (other := name.removesuffix(better) + worse) in names
    ]
    pairs += [(name, "LeNet-4, plain") for name in names if name.startswith("LeNet-4 + ")]
    pairs += [
        (name, other)
        for name in names
        for other in names
        if name.startswith(CONVOLUTIONAL) and other.startswith(TRADITIONAL)
    ]
    return pairs


def _compared(better: Sequence[NDArray[np.bool_]], worse: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    number = max(len(better), len(worse))  # a method that draws nothing has one result for all seeds
    pairs = [(better[seed % len(better)], worse[seed % len(worse)]) for seed in range(number)]
    effect = fmean(100 * float(first.mean() - second.mean()) for first, second in pairs)
    p_value = combined([mcnemar(first, second).p_value for first, second in pairs])
    return {"effect": round(effect, 4), "p_value": float(f"{p_value:.4g}")}


def _costs(done: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """Return what each system costs, by `system, variant`: variables and multiply-adds for an image."""
    costs = {name: cost.of_network(network.model, network.arguments) for name, network in NETWORKS.items()}
    variables, products = costs["LeNet-4, plain"]
    costs["boosted LeNet-4, distortions"] = (3 * variables, 3 * products)
    costs["LeNet-4 + K-NN, plain"] = (variables + 120 * cost.ROWS, products + 120 * cost.ROWS)
    for each in done:
        config, result = each.config, each.result
        match config["method"]:
            case "tangent" if not config["is_control"]:
                costs |= cost.classical(num_candidates=config["num_candidates"])
            case "LeNet-4":
                fitted = config["num_local"] * 120**2 + 120**3 // 3
                costs["LeNet-4 + local learning, plain"] = (variables, products + 120 * cost.ROWS + fitted)
            case "virtual" | "reduced":
                num_pixels = cost.PIXELS if config.get("images") == "regular" else cost.SQUARE
                for name, number in result["num_vectors"].items():
                    costs[name] = cost.of_machine(number, num_pixels=num_pixels)
    return costs
