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
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
    x: Tensor = (wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).reshape(-1, *wide.shape[-2:])
    for _ in range(NUM_ITERATIONS):  # each sum is part of a product, because a GPU waits for the launches
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(wide.shape)
    return x if matrix.shape[-2] <= matrix.shape[-1] else x.mT


class Muon(torch.optim.SGD):
    """Optimizer that applies Muon to every hidden weight of `model`, and Nesterov SGD to the other parameters.

    Muon's update takes the place of the gradient, and SGD without momentum subtracts it. The rate of the other
    parameters is `SGD_RATIO` times that of Muon.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        weights = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        hidden = {
            "params": weights[:-1],
            "lr": lr,
            "weight_decay": weight_decay,
            "orthogonal": True,
            "smoothing": momentum,
            "decoupled_weight_decay": True,  # the key that torch.optim.AdamW uses
        }
        others = {"lr": SGD_RATIO * lr, "momentum": 0.9, "nesterov": True}
        groups = [
            hidden,
            # The classifier's rows are templates, not directions of a hidden space.
            {"params": weights[-1:], "weight_decay": weight_decay, **others},
            {"params": vectors, **others},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, fused=True)
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
            group["stacked"] = False  # or weights of many models, `(models, ...)`; see `vmapped`

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update each parameter from its gradient, which it changes; one without a gradient stays as it is."""
        for group in self.param_groups:
            if group["orthogonal"]:
                self._replace_gradients(group)
        super().step(closure)

    @torch.no_grad()
    def _replace_gradients(self, group: dict[str, Any]) -> None:
        """Replace the gradients of a group of hidden weights by Muon's updates at a rate of 1."""
        gradients, buffers = [], []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
            buffers.append(state["momentum_buffer"])
        if not gradients:
            return
        # Nesterov momentum: each call, whose name is of another use, is one `lerp_` of all tensors of a list.
        get_ema_multi_avg_fn(group["smoothing"])(buffers, gradients, None)  # type: ignore[no-untyped-call]
        get_ema_multi_avg_fn(1 - group["smoothing"])(gradients, buffers, None)  # type: ignore[no-untyped-call]
        for gradient in gradients:
            matrix = gradient.flatten(2 if group["stacked"] else 1)
            scale = math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))
            torch.mul(orthogonalize(matrix).reshape(gradient.shape), scale, out=gradient)
