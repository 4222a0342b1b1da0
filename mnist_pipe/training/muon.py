"""Muon for hidden weights of any shape (Keller Jordan 2024, kellerjordan.github.io/posts/muon).

`torch.optim.Muon` accepts only matrices and leaves the other parameters to a second optimizer. Here a convolution's
filters are treated as a matrix `(out, in*k*k)`, and biases, norms and the output layer are updated by Nesterov SGD in
the same object. Muon is therefore one optimizer like every other: one learning rate, one `state_dict`.
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
"""Ratio of the SGD learning rate to the Muon rate.

Measured at a Muon rate of 0.03 on the convnet's first 37,500 images: an SGD rate of 0.05 was better than 0.1 and 0.03.
"""


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrix of each `(..., rows, columns)` matrix, by five Newton-Schulz steps.

    Shape and floating-point dtype of the result are those of `matrix`. Its singular values lie between about 0.7 and
    1.2, which is close enough to 1 for the direction of an update.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x: Tensor = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[-2] <= matrix.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Optimizer that applies Muon to every hidden weight of `model`, and Nesterov SGD to the other parameters.

    The rate of SGD is `SGD_RATIO` times that of Muon.
    """

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
                "decoupled_weight_decay": True,  # the key that torch.optim.AdamW uses
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
        # Stacked weights are those of many models, `(models, ...)`; see `vmapped`.
        super().__init__([group for group in groups if group["params"]], {"stacked": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update each parameter from its gradient; a parameter without a gradient stays as it is."""
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
