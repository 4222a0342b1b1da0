"""Exact nearest neighbours, by one matrix product for each block of queries."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_QUERIES_AT_ONCE = 250
_SPARE = 8
"""Additional candidates that are ranked again in float64: a float32 product misplaces only near ties."""


def nearest(queries: Tensor, templates: Tensor, *, num_neighbours: int) -> Tensor:
    """Return which rows of `templates` are nearest to each query, nearest first: int64 `(Q, num_neighbours)`.

    The distance is Euclidean; `queries` are float32 `(Q, inputs)`, `templates` float32 `(T, inputs)`.
    """
    half_norms = templates.square().sum(1) / 2
    found = []
    for part in torch.split(queries, _QUERIES_AT_ONCE):
        # |q - t|^2 = |q|^2 - 2 (q.t - |t|^2 / 2), whose first term does not change the ranking.
        closeness = torch.addmm(-half_norms, part, templates.T)
        candidates = closeness.topk(num_neighbours + _SPARE).indices
        distances = (part.double().unsqueeze(1) - templates[candidates].double()).square().sum(2)
        found.append(candidates.gather(1, distances.argsort(dim=1, stable=True)[:, :num_neighbours]))
    return torch.cat(found)


def vote(labels: Tensor) -> NDArray[np.uint8]:
    """Return the most frequent class, uint8 `(Q,)`, of the labels of each query's neighbours, int64 `(Q, k)`.

    The neighbours are ordered, the nearest first. Of equally frequent classes, the one with the nearer neighbours wins.
    """
    num_neighbours = labels.shape[1]
    # The vote of a nearer neighbour counts a little more; all these differences together are less than one vote.
    worth = 1 - torch.arange(num_neighbours) / (2.0 * num_neighbours**2)
    scores = torch.zeros(len(labels), 10).scatter_add_(1, labels, worth.expand(len(labels), -1))
    return scores.argmax(1).numpy().astype(np.uint8)


def local_linear(queries: Tensor, templates: Tensor, labels: Tensor, *, num_neighbours: int, decay: float) -> Tensor:
    """Return the outputs, float32 `(Q, 10)`, of a linear classifier trained for each query on only its neighbours.

    Bottou & Vapnik 1992: squared error and weight decay, with inputs relative to the query. `queries` are float32
    `(Q, inputs)`, `templates` float32 `(T, inputs)` and their `labels` int64 `(T,)`.
    """
    targets = 2 * torch.eye(10)[labels] - 1
    outputs = []
    for part in torch.split(queries, _QUERIES_AT_ONCE):
        rows = nearest(part, templates, num_neighbours=num_neighbours)
        inputs = templates[rows] - part.unsqueeze(1)  # the query is at the origin, where the bias is the output
        wanted = targets[rows]
        middle, centre = wanted.mean(1, keepdim=True), inputs.mean(1, keepdim=True)
        inputs, wanted = inputs - centre, wanted - middle
        gram = inputs.mT @ inputs
        gram.diagonal(dim1=1, dim2=2).add_(decay * num_neighbours)
        weights = torch.linalg.solve(gram, inputs.mT @ wanted)
        outputs.append((middle - centre @ weights).squeeze(1))
    return torch.cat(outputs)
