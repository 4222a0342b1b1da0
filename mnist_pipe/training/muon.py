"""Muon for hidden weights of any shape (Keller Jordan 2024, kellerjordan.github.io/posts/muon).

`torch.optim.Muon` takes matrices only and leaves the other parameters to a second optimizer. Here a convolution's
filters are taken as the matrix (out, in*k*k), and biases, norms and the output layer go through Nesterov SGD in the
same object, so that Muon is one optimizer like every other: one learning rate, one state_dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
SGD_RATIO = 2.0
"""The SGD rate over the Muon rate, 0.03: in the convnet's first 37,500 images 0.05 was better than 0.1 and 0.03."""


def orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix of each (..., rows, columns) matrix, by five Newton-Schulz iterations.

    Singular values end between about 0.7 and 1.2, which is near enough for a step direction.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x: Tensor = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[-2] <= matrix.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Muon on every hidden weight of `model`; Nesterov SGD at `SGD_RATIO` times its rate on the rest."""

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        weights = [p for p in model.parameters() if p.ndim > 1]
        output = weights[-1:]  # the classifier's rows are templates, not directions of a hidden space
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {
                "params": weights[:-1],
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "orthogonal": True,
                "decoupled_weight_decay": True,  # as torch.optim.AdamW says it
            },
            {
                "params": output,
                "lr": SGD_RATIO * lr,
                "momentum": 0.9,
                "weight_decay": weight_decay,
                "orthogonal": False,
            },
            {"params": vectors, "lr": SGD_RATIO * lr, "momentum": 0.9, "weight_decay": 0.0, "orthogonal": False},
        ]
        # Stacked weights are those of many models, (models, ...); see `vmapped`.
        super().__init__([group for group in groups if group["params"]], {"stacked": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients; a parameter without a gradient stays as it is."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer, gradient = state["momentum_buffer"], parameter.grad
                if group["orthogonal"]:
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    matrix = gradient.lerp(buffer, group["momentum"]).flatten(2 if group["stacked"] else 1)
                    scale = math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))
                    update = orthogonalize(matrix).mul_(scale).view(parameter.shape)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    buffer.mul_(group["momentum"]).add_(gradient)
                    update = gradient.add(buffer, alpha=group["momentum"])
                parameter.add_(update, alpha=-group["lr"])
