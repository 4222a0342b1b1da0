"""The runs of section III of LeCun et al. 1998: one for each system and seed, which gives its error on the test split.

The systems themselves are in `methods`. How long and how fast they learn is in `studies/params.yaml` and was chosen on
the validation split. The runs learn from all 60,000 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from mnist_pipe.params.schema import BatchSize, Degrees, Epochs, LearningRate, OptimizerName, Pixels, Section, Smoothing
from studies.common.fitting import Splits, whole
from studies.common.ledger import Config, Result, Run
from studies.lecun1998 import cost
from studies.lecun1998.methods import METHODS, NETWORKS, error_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


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


class Params(Section):
    """The section `lecun1998` of `studies/params.yaml`."""

    num_seeds: Annotated[int, Field(ge=1, le=100)]
    """Number of seeds of every method that draws at random; the others run once."""
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
    tangent_smoothing: Positive
    """Width of the Gaussian blur before the derivatives, in pixels."""
    tangent_candidates: Count
    """Nearest neighbours in Euclidean distance, the only ones to which tangent distance is computed."""
    tangent_neighbours: Count
    """Neighbours that vote: those of the candidates that are nearest in tangent distance."""
    svm_penalty: Positive
    """C of the support vector machines: the cost of a row on the wrong side of its margin."""
    reduced_steps: Count
    """Steps of Adam for the vectors of the reduced set."""


def plan(params: Params) -> list[Config]:
    """Return all configurations; no run depends on another."""
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


def run(config: Config, splits: Splits) -> Result:
    """Return the error of each of the run's systems, in percent of the test split, and the method's other results."""
    torch.set_num_threads(1)
    training, test = whole(splits), splits["test"]
    found, metrics = METHODS[config["method"]](config, training, test)
    errors = {name: error_of(digits, test) for name, digits in found.items()}
    return Result(metrics={"errors": errors, **metrics})


def conclude(done: Sequence[Run], _: Splits) -> dict[str, Any]:
    """Return what each system costs, by `system, variant`: variables and multiply-adds for an image."""
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
