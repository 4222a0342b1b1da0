"""What the lesson says of the cost and its gradient, shown by numbers on the networks of the study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mnist_pipe.data.splits import PIXELS
from studies.common.fitting import Splits, pixels
from studies.common.ledger import Run
from studies.common.packing import unpacked
from studies.gradient_descent import runs
from studies.gradient_descent.runs import Array

NUM_ROWS = 10_000
"""Training rows that the demonstrations compute the cost on, which are the first ones."""
NUM_DIRECTIONS = 200
"""Random directions that are compared with the gradient."""
NUM_WEIGHTS = 200
"""Weights that are changed one at a time."""
NUDGES = (1e-6, 1e-4, 1e-2)
"""Changes of one weight."""
RATES = (1.0, 3.0, 10.0, 30.0, 100.0)
NUM_STEPS = 300
NUM_DESCENT_ROWS = 1000
"""Training rows of the demonstrations that compute many gradients, which are the first ones."""
POINTS = 11
"""Points of the straight line between two networks, both ends included."""


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return the demonstrations: those with trained networks use the one-hot networks of the mini-batches."""
    final = next(
        run
        for run in done
        if not runs.is_search(run) and (run.config["batch"], run.config["encoding"]) == ("mini-batch", "one-hot")
    )
    constant = [kind == "constant" for _, kind, _ in final.config["members"]]
    network = [values[constant] for values in trained(final)]
    split = splits["train"].first(NUM_ROWS)
    images, targets = pixels(split).reshape(-1, PIXELS), runs.codes("one-hot").astype(np.float32)
    wanted, num_hidden, few = targets[split.labels], final.config["num_hidden"], images[:NUM_DESCENT_ROWS]
    return {
        "num_rows": len(split.labels),
        "num_descent_rows": len(few),
        "num_training_rows": sum(len(splits[name].labels) for name in ("train", "validation")),
        "direction": direction(few, wanted[: len(few)], num_hidden=num_hidden),
        "rising_steps": rising_steps(few, wanted[: len(few)], num_hidden=num_hidden),
        "minima": minima(network, images, wanted),
        "flatness": flatness([values[:1] for values in network], images, split.labels, targets),
    }


def trained(run: Run) -> list[Array]:
    """Return the members' weights and biases after the last step, in the order and shapes of `runs.initial`."""
    config = run.config
    members, outputs = len(config["members"]), runs.codes(config["encoding"]).shape[1]
    network: list[Array] = []
    flat = iter(run.intermediate["weights"])
    for inputs, width in pairwise((PIXELS, config["num_hidden"], outputs)):
        network.append(unpacked(next(flat), np.float32).reshape(members, inputs, width))
        network.append(unpacked(next(flat), np.float32).reshape(members, 1, width))
    return network


def direction(images: Array, targets: Array, *, num_hidden: int) -> dict[str, Any]:
    """Return how the cost changes along the negative gradient and along random directions of the same length.

    `images` are `(N, 784)` and `targets` `(N, outputs)`. Along a step of the short length e the cost changes by
    e times the `slope` (equation 5), which for a unit vector is least along the negative gradient (equation 6). The
    slopes are measured from the cost alone.
    """
    network = _as_double(runs.initial([0], (images.shape[1], num_hidden, targets.shape[1])))
    gradient = runs.gradient(network, images[None], targets[None])
    length = math.sqrt(sum(float(np.square(part).sum()) for part in gradient))
    generator = np.random.default_rng(0)
    random = [[generator.standard_normal(part.shape) for part in network] for _ in range(NUM_DIRECTIONS)]
    found = [_slope(network, parts, images, targets) for parts in random]
    return {
        "gradient_length": length,
        "along_descent": _slope(network, [-part for part in gradient], images, targets),
        "steepest_random": min(found),
        "num_random": NUM_DIRECTIONS,
    }


def _slope(network: Sequence[Array], parts: Sequence[Array], images: Array, targets: Array) -> float:
    """Return the change of the cost per length of a short step, by a central difference."""
    norm = math.sqrt(sum(float(np.square(part).sum()) for part in parts))
    step = 1e-4
    above, below = (
        runs.cost(
            [values + sign * step / norm * part for values, part in zip(network, parts, strict=True)],
            images[None],
            targets[None],
        )[0]
        for sign in (1, -1)
    )
    return float(above - below) / (2 * step)


def rising_steps(images: Array, targets: Array, *, num_hidden: int) -> list[dict[str, float]]:
    """Return for each learning rate how many of `NUM_STEPS` steps by the whole batch raise the cost, and where it ends.

    `images` are `(N, 784)` and `targets` `(N, outputs)`. For a small enough rate none does (equation 4).
    """
    rates = np.array(RATES, np.float32)
    network = runs.initial([0] * len(rates), (images.shape[1], num_hidden, targets.shape[1]))
    costs = [runs.cost(network, images[None], targets[None])]
    for _ in range(NUM_STEPS):
        runs.step(network, runs.gradient(network, images[None], targets[None]), rates)
        costs.append(runs.cost(network, images[None], targets[None]))
    rises = (np.diff(np.array(costs), axis=0) > 0).sum(0)
    return [
        {"rate": rate, "rises": int(number), "cost": round(float(end), 6)}
        for rate, number, end in zip(RATES, rises, costs[-1], strict=True)
    ]


def minima(network: Sequence[Array], images: Array, targets: Array) -> dict[str, Any]:
    """Return what separates networks that were trained from different starts: their costs, and the cost between them.

    `network` has the members side by side, as in `runs`. Hidden units have no order, so the units of one network are
    first matched with those of the other by the likeness of their weights; `cosine` is that of all weights afterwards.
    """
    members = [[values[index : index + 1] for values in network] for index in range(len(network[0]))]
    costs = [float(runs.cost(member, images[None], targets[None])[0]) for member in members]
    pairs = []
    for first, second in combinations(members, 2):
        moved = matched(second, first)
        line = [
            float(
                runs.cost(
                    [(1 - share) * a + share * b for a, b in zip(first, moved, strict=True)],
                    images[None],
                    targets[None],
                )[0]
            )
            for share in np.linspace(0, 1, POINTS)
        ]
        a, b = (np.concatenate([part.ravel() for part in member]) for member in (first, moved))
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        pairs.append({"cosine": round(cosine, 4), "line": [round(value, 6) for value in line]})
    return {"costs": [round(value, 6) for value in costs], "pairs": pairs}


def matched(member: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    """Return the network with its hidden units in the order in which they are most like those of `other`."""
    weights, biases, output_weights, output_biases = member
    columns = [
        part[0] / np.linalg.norm(part[0], axis=0, keepdims=True) for part in (other[0], weights)
    ]  # each (784, hidden)
    _, order = linear_sum_assignment(-(columns[0].T @ columns[1]))
    return [weights[..., order], biases[..., order], output_weights[:, order], output_biases]


def flatness(
    network: Sequence[Array], images: Array, labels: NDArray[np.uint8], targets: Array
) -> list[dict[str, float]]:
    """Return for each of `NUDGES` the share of single weights whose change alters the accuracy, and the cost.

    `network` has one member. Weights of pixels that are ink somewhere are drawn; the others alter nothing at all.
    """
    network = _as_double(network)
    inked = np.flatnonzero(images.any(0))
    generator = np.random.default_rng(0)
    chosen = [(int(generator.choice(inked)), int(generator.integers(network[0].shape[2]))) for _ in range(NUM_WEIGHTS)]
    # A change of one weight changes one hidden unit alone, so the other units are computed once.
    weights, biases, output_weights, output_biases = (part[0] for part in network)
    sums = images @ weights + biases
    hidden = runs.sigmoid(sums)
    wanted = targets[labels]

    def judged(outputs: Array) -> tuple[float, int]:
        nearest = np.square(outputs[:, None, :] - targets).sum(-1).argmin(-1)
        return float(np.square(wanted - outputs).sum()) / (2 * len(labels)), int((nearest == labels).sum())

    output_sums = hidden @ output_weights + output_biases
    before = judged(runs.sigmoid(output_sums))
    found = []
    for nudge in NUDGES:
        costs = hits = 0
        for pixel, unit in chosen:
            change = runs.sigmoid(sums[:, unit] + nudge * images[:, pixel]) - hidden[:, unit]
            after = judged(runs.sigmoid(output_sums + change[:, None] * output_weights[unit]))
            costs += after[0] != before[0]
            hits += after[1] != before[1]
        found.append({"nudge": nudge, "cost": costs / NUM_WEIGHTS, "accuracy": hits / NUM_WEIGHTS})
    return found


def _as_double(network: Sequence[Array]) -> list[Array]:
    return [values.astype(np.float64) for values in network]
