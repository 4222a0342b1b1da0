"""Linear classifiers of fixed features: softmax, pairs of classes, least squares, and the features themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

PAIRS = list(combinations(range(10), 2))
"""The 45 pairs of classes."""


def with_bias(inputs: Tensor) -> Tensor:
    """Return the inputs, `(N, inputs)`, and a column of ones: `(N, inputs + 1)`, in the same dtype."""
    return F.pad(inputs, (0, 1), value=1.0)


def softmax(inputs: Tensor, labels: Tensor, *, decay: float, num_iterations: int) -> Tensor:
    """Return the weights, float32 `(inputs, 10)`, of the softmax classifier.

    `inputs` are float32 `(N, inputs)`, `labels` int64 `(N,)`; `decay` is the weight decay, and L-BFGS makes
    `num_iterations` iterations.
    """
    return _minimize(
        lambda weights: F.cross_entropy(inputs @ weights, labels),
        torch.zeros(inputs.shape[1], 10),
        decay=decay,
        num_iterations=num_iterations,
    )


def pairwise(inputs: Tensor, labels: Tensor, *, decay: float, num_iterations: int) -> Tensor:
    """Return the weights, float32 `(inputs, 45)`, of a sigmoid unit for each pair of classes.

    Each unit learns only from the rows of its two classes. Section III.C.1: unit i/j is to output 1 for class i and -1
    for class j. The arguments are those of `softmax`.
    """
    targets = torch.zeros(10, len(PAIRS))
    for unit, (first, second) in enumerate(PAIRS):
        targets[first, unit], targets[second, unit] = 1.0, -1.0
    wanted = targets[labels]

    def loss(weights: Tensor) -> Tensor:
        return (F.softplus(-wanted * (inputs @ weights)) * wanted.abs()).sum(1).mean()

    start = torch.zeros(inputs.shape[1], len(PAIRS))
    return _minimize(loss, start, decay=decay, num_iterations=num_iterations)


def pairwise_scores(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return the score of each class, float32 `(N, 10)`: the outputs of its units i/x minus those of the units x/i.

    The outputs are between -1 and 1. `inputs` are float32 `(N, inputs)`, `weights` float32 `(inputs, 45)`.
    """
    outputs = torch.tanh(inputs @ weights / 2)
    scores = torch.zeros(len(inputs), 10)
    for unit, (first, second) in enumerate(PAIRS):
        scores[:, first] += outputs[:, unit]
        scores[:, second] -= outputs[:, unit]
    return scores


def least_squares(inputs: Tensor, labels: Tensor, *, ridge: float) -> Tensor:
    """Return the weights, float64 `(inputs, 10)`, for the targets 1 and -1 by the regularised pseudo-inverse.

    `inputs` are floating point `(N, inputs)`, `labels` int64 `(N,)`; N times `ridge` is added to the diagonal of the
    inputs' Gram matrix.
    """
    inputs = inputs.double()
    targets = 2 * F.one_hot(labels, 10).double() - 1
    gram = inputs.T @ inputs
    gram.diagonal().add_(ridge * len(inputs))
    weights: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return weights


class Products:
    """The products of every pair of the first principal components, squares included, and 1 (section III.C.3).

    The components are those of the training rows minus their mean: 40 of them make 821 inputs.
    """

    def __init__(self, inputs: Tensor, *, num_components: int) -> None:
        self.mean = inputs.mean(0)
        centred = (inputs - self.mean).double()
        _, directions = torch.linalg.eigh(centred.T @ centred)
        self.components = directions[:, -num_components:].float()
        self.pairs = torch.triu_indices(num_components, num_components)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the products, float32 `(N, products + 1)`, of inputs, float32 `(N, pixels)`."""
        projected = (inputs - self.mean) @ self.components
        first, second = self.pairs
        return with_bias(projected[:, first] * projected[:, second])


class Gaussians:
    """Gaussian units, equally many for each class, centred on the means of clusters of its rows (section III.C.4)."""

    def __init__(self, inputs: Tensor, labels: NDArray[np.uint8], *, num_units: int, width: float, seed: int) -> None:
        from sklearn.cluster import MiniBatchKMeans

        centres, scatter = [], 0.0
        for digit in range(10):
            rows = inputs[torch.from_numpy(labels == digit)].numpy()
            clusters = MiniBatchKMeans(num_units, random_state=seed, n_init=1, batch_size=1024).fit(rows)
            centres.append(clusters.cluster_centers_)
            scatter += float(clusters.inertia_)
        self.centres = torch.from_numpy(np.concatenate(centres))
        self.scale = 2 * width**2 * scatter / len(inputs)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return how near each row is to each centre, and 1, float32 `(N, units + 1)`, of float32 `(N, pixels)`."""
        squared = inputs.square().sum(1, keepdim=True) + self.centres.square().sum(1) - 2 * inputs @ self.centres.T
        return with_bias(torch.exp(-squared / self.scale))


def _minimize(loss: Callable[[Tensor], Tensor], start: Tensor, *, decay: float, num_iterations: int) -> Tensor:
    """Return the weights after `num_iterations` of L-BFGS on the loss plus decay / 2 times their squared norm."""
    weights = start.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=num_iterations, history_size=10, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights) + decay / 2 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
