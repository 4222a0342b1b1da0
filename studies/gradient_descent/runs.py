"""The two-layer sigmoid network by the lesson's equations, written out in numpy: no autograd, no optimizer.

D. Ko 2026, *Classifying Handwritten Digits & Gradient Descent* (seed 003); the equation numbers are those of the
lesson. The first dimension of each array is the members: networks of one encoding and one batch size that train side by
side, since a step of batch size 1 is so small that the cost of calling it dominates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnist_pipe.data.splits import NUM_CLASSES, PIXELS
from mnist_pipe.params.schema import Epochs, Section
from studies.common.fitting import Splits, pixels, whole
from studies.common.ledger import Config, Result, Run
from studies.common.packing import packed

Array = NDArray[np.floating[Any]]
_ROWS_AT_ONCE = 1000


class Params(Section):
    """The section `gradient_descent` of `studies/params.yaml`."""

    num_hidden: Annotated[int, Field(ge=1, le=1024)]
    """Number of sigmoid units between the 784 pixels and the outputs."""
    batch_sizes: dict[str, Annotated[int, Field(ge=1)] | None]
    """Rows of a batch, by the name of the batch size; null is the whole training set."""
    num_epochs: dict[str, Epochs]
    """Epochs of a final run, by the name of the batch size: a full batch makes one step per epoch."""
    search_epochs: dict[str, Epochs]
    """Epochs after which the validation accuracy decides on a learning rate, by the name of the batch size."""
    learning_rates: dict[str, Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)]]
    """Learning rates that are tried, by the name of the batch size."""
    num_search_seeds: Annotated[int, Field(ge=1, le=100)]
    """Seeds with which each learning rate is tried."""
    final_fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the learning rate that is left at the end of a run whose rate decays."""
    num_seeds: Annotated[int, Field(ge=3, le=100)]


def codes(encoding: str) -> NDArray[np.float64]:
    """Return what the outputs should be for each digit, float64 `(10, outputs)` (section 2.2)."""
    digits = np.arange(NUM_CLASSES)
    if encoding == "one-hot":
        return np.eye(NUM_CLASSES)
    if encoding == "binary":
        return ((digits[:, None] >> np.arange(3, -1, -1)) & 1).astype(np.float64)
    assert encoding == "ordinal"
    return digits[:, None] / (NUM_CLASSES - 1)  # scaled to the range of a sigmoid, 0 to 1


ENCODINGS = ("one-hot", "binary", "ordinal")


def plan(params: Params) -> list[Config]:
    """Return the searches: for each batch size and encoding, every learning rate and seed for a part of the epochs."""
    seeds = range(params.num_search_seeds)
    return [
        _config(
            params,
            size,
            encoding,
            "search",
            [[rate, "constant", s] for rate in params.learning_rates[size] for s in seeds],
        )
        for size in params.batch_sizes
        for encoding in ENCODINGS
    ]


def plan_finals(params: Params, done: Sequence[Run]) -> list[Config]:
    """Return the final runs: for each batch size and encoding, the best learning rate with every schedule and seed."""
    best = {(run.config["batch"], run.config["encoding"]): best_rate(run) for run in done if is_search(run)}
    kinds = [(schedule, seed) for schedule in ("constant", "decayed") for seed in range(params.num_seeds)]
    return [
        _config(params, size, encoding, "final", [[rate, *kind] for kind in kinds])
        for (size, encoding), rate in best.items()
    ]


def is_search(run: Run) -> bool:
    """Return whether the run searched for a learning rate."""
    return bool(run.config["phase"] == "search")


def best_rate(search: Run) -> float:
    """Return the learning rate with the highest mean accuracy on the validation split; of equals, the lowest."""
    scores = search_scores(search)
    return max(scores, key=lambda rate: (scores[rate], -rate))


def search_scores(search: Run) -> dict[float, float]:
    """Return the mean over seeds of the validation accuracy, in [0, 1], by learning rate."""
    found: dict[float, list[float]] = {}
    for metrics, (rate, _, _) in zip(search.result["members"], search.config["members"], strict=True):
        found.setdefault(rate, []).append(metrics["validation_accuracy"][-1])
    return {rate: fmean(values) for rate, values in found.items()}


def _config(params: Params, size: str, encoding: str, phase: str, members: list[list[Any]]) -> Config:
    return {
        "phase": phase,
        "batch": size,
        "batch_size": params.batch_sizes[size],
        "encoding": encoding,
        "num_hidden": params.num_hidden,
        "num_epochs": (params.search_epochs if phase == "search" else params.num_epochs)[size],
        "final_fraction": params.final_fraction,
        "members": members,
    }


def run(config: Config, splits: Splits) -> Result:
    """Train the members: a search on the training split, the final runs on all 60,000 rows.

    The result has for each member a value before training and after each of the `epochs`: the `cost` on the training
    rows (equation 1), `train_accuracy`, and `validation_accuracy` of a search or `test_accuracy` of a final run.

    The intermediate result is the `weights`: the arrays of `initial` after the last step.
    """
    searching = config["phase"] == "search"
    training = splits["train"] if searching else whole(splits)
    judged = "validation" if searching else "test"
    rates = np.array([rate for rate, _, _ in config["members"]], np.float32)
    decays = np.array([schedule == "decayed" for _, schedule, _ in config["members"]])
    seeds = [seed for _, _, seed in config["members"]]
    targets = codes(config["encoding"]).astype(np.float32)
    images, labels = pixels(training).reshape(-1, PIXELS), training.labels
    others = pixels(splits[judged]).reshape(-1, PIXELS)
    network = initial(seeds, (PIXELS, config["num_hidden"], targets.shape[1]))
    batch_size = config["batch_size"] or len(labels)
    num_epochs = config["num_epochs"]
    every = max(1, num_epochs // 50)  # of 300 epochs every sixth is evaluated
    series: dict[str, list[list[float]]] = {"cost": [], "train_accuracy": [], f"{judged}_accuracy": []}
    epochs = [0]

    def evaluate() -> None:
        cost, accuracy = judge(network, images, labels, targets)
        series["cost"].append(_rounded(cost))
        series["train_accuracy"].append(_rounded(accuracy))
        series[f"{judged}_accuracy"].append(_rounded(judge(network, others, splits[judged].labels, targets)[1]))

    evaluate()
    for epoch in range(num_epochs):
        decayed_rates = rates * np.where(decays, config["final_fraction"] ** (epoch / num_epochs), 1).astype(np.float32)
        for rows in batches(len(labels), batch_size, seeds, epoch):
            step(network, gradient(network, images[rows], targets[labels[rows]]), decayed_rates)
        if (epoch + 1) % every == 0:
            epochs.append(epoch + 1)
            evaluate()
    members = [
        {name: [values[member] for values in found] for name, found in series.items()} for member in range(len(seeds))
    ]
    return Result(
        metrics={"epochs": epochs, "members": members}, intermediate={"weights": [packed(values) for values in network]}
    )


def initial(seeds: Sequence[int], widths: Sequence[int]) -> list[Array]:
    """Return the weights, float32 `(members, inputs, outputs)`, and biases, `(members, 1, outputs)`, of each layer.

    Each member has its own seed. The weights are normal with a standard deviation of 1 / sqrt(inputs), so that no
    sigmoid starts saturated; the biases are 0.
    """
    drawn = [np.random.default_rng(seed) for seed in seeds]
    network: list[Array] = []
    for inputs, outputs in pairwise(widths):
        weights = np.stack([generator.standard_normal((inputs, outputs), np.float32) for generator in drawn])
        network += [weights / np.float32(inputs**0.5), np.zeros((len(seeds), 1, outputs), np.float32)]
    return network


def batches(num_rows: int, batch_size: int, seeds: Sequence[int], epoch: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each mini-batch of an epoch, int64 `(members, batch)`, drawn without replacement.

    A full batch is the same for all members: `(1, rows)`.
    """
    if batch_size == num_rows:
        yield np.arange(num_rows)[None]  # in any order the sum is the same
        return
    order = np.stack([np.random.default_rng([seed, epoch]).permutation(num_rows) for seed in seeds])
    for start in range(0, num_rows - batch_size + 1, batch_size):
        yield order[:, start : start + batch_size]


def activations(network: Sequence[Array], images: Array) -> tuple[Array, Array]:
    """Return the activations of the hidden units, `(members, N, hidden)`, and of the outputs, `(members, N, outputs)`.

    `images` are `(members, N, 784)`, or `(1, N, 784)` if all members see the same. All arrays are floating point.
    """
    weights, biases, output_weights, output_biases = network
    hidden = sigmoid(_products(images, weights) + biases)
    return hidden, sigmoid(hidden @ output_weights + output_biases)


def _products(images: Array, values: Array) -> Array:
    """Return `images @ values` of each member."""
    if len(images) > 1:
        return images @ values
    # One product of large matrices takes less than half as long as one for each member.
    return np.tensordot(images[0], values, axes=(1, 1)).swapaxes(0, 1)


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-z)) of each value, such that large arguments do not overflow."""
    return (np.tanh(values / 2) + 1) / 2


def cost(network: Sequence[Array], images: Array, targets: Array) -> Array:
    """Return the quadratic cost, `(members,)`, of each member (equation 1).

    `images` are floating point `(members, N, 784)`, `targets` `(members, N, outputs)`.
    """
    outputs = activations(network, images)[1]
    found: Array = np.square(targets - outputs).sum((1, 2)) / (2 * outputs.shape[1])
    return found


def gradient(network: Sequence[Array], images: Array, targets: Array) -> list[Array]:
    """Return the gradient of `cost` by each array of `network`, in that array's shape: the mean over the rows.

    Equations 10 and 11. The arguments are those of `cost`.
    """
    hidden, outputs = activations(network, images)
    num_rows = outputs.shape[1]
    # The chain rule of equation 9: da/dz = a (1 - a).
    output_error = (outputs - targets) * outputs * (1 - outputs)
    hidden_error = output_error @ network[2].swapaxes(1, 2) * hidden * (1 - hidden)
    return [
        _products(images.swapaxes(1, 2), hidden_error) / num_rows,
        hidden_error.mean(1, keepdims=True),
        hidden.swapaxes(1, 2) @ output_error / num_rows,
        output_error.mean(1, keepdims=True),
    ]


def step(network: Sequence[Array], gradients: Sequence[Array], rates: Array) -> None:
    """Move each member against its gradient, in place (equations 7 and 12); `rates` are floating point `(members,)`."""
    for values, slopes in zip(network, gradients, strict=True):
        values -= rates[:, None, None] * slopes


def judge(network: Sequence[Array], images: Array, labels: NDArray[np.uint8], targets: Array) -> tuple[Array, Array]:
    """Return the cost and the accuracy of each member, float64 `(members,)` each.

    The predicted digit is the one whose code is nearest to the outputs; with one-hot codes that is the output with the
    largest activation. `images` are floating point `(N, 784)`, `labels` uint8 `(N,)`, and `targets` are the codes,
    `(10, outputs)`.
    """
    costs, hits = np.zeros(len(network[0])), np.zeros(len(network[0]))
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        outputs = activations(network, images[None, rows])[1]
        costs += np.square(targets[labels[rows]] - outputs).sum((1, 2), dtype=np.float64) / 2
        nearest = np.square(outputs[..., None, :] - targets).sum(-1).argmin(-1)
        hits += (nearest == labels[rows]).sum(1)
    return costs / len(labels), hits / len(labels)


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 6) for value in values]
