"""The cost of a system: the numbers that it stores and its multiply-adds for an image (figures 11 and 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mnist_pipe import models
from mnist_pipe.models.lenet1998 import Subsampling, TableConv

PIXELS, SQUARE, ROWS = 28 * 28, 20 * 20, 60_000
Cost = tuple[int, int]
"""Number of variables, and of multiply-adds for an image."""


def connections(model: nn.Module) -> int:
    """Return the number of connections as the paper counts them: each weight and bias once for each use in an image.

    A unit of a subsampling layer has five: its four inputs and its bias. The fixed bitmaps of LeNet-5 count like
    weights.
    """
    counts: list[int] = []

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        places = output[0, 0].numel() if output.ndim == 4 else 1
        counts.append(5 * output[0].numel() if isinstance(layer, Subsampling) else places * parameters)

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, (Subsampling, TableConv, nn.Linear))
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return sum(counts) + sum(buffer.numel() for name, buffer in model.named_buffers() if name == "codes")


def of_network(name: str, arguments: Mapping[str, Any]) -> Cost:
    """Return the cost of the entry `name` of MODELS, built with `arguments`."""
    model = models.build(name, **arguments)
    return sum(parameter.numel() for parameter in model.parameters()), connections(model)


def classical(*, num_candidates: int) -> dict[str, Cost]:
    """Return the cost of each system whose size is known without training, by `system, variant`.

    `num_candidates` is the number of images to which tangent distance is computed.
    """
    return {
        "linear (1-layer), plain": (10 * (PIXELS + 1), 10 * PIXELS),
        "linear (1-layer), deslanted": (10 * (SQUARE + 1), 10 * SQUARE),
        "pairwise linear, plain": (45 * (PIXELS + 1), 45 * PIXELS),
        "K-NN Euclidean, plain": (ROWS * PIXELS, ROWS * PIXELS),
        "K-NN Euclidean, deslanted": (ROWS * SQUARE, ROWS * SQUARE),
        "40 PCA + quadratic, plain": (41 * PIXELS + 10 * 821, 40 * PIXELS + 820 + 10 * 821),
        "1000 RBF + linear, plain": (1000 * PIXELS + 10 * 1001, 1000 * PIXELS + 10 * 1000),
        # The prefilter reads every template; a distance of two planes takes 7 tangents on each side and 49 overlaps.
        "tangent distance, 16x16": (ROWS * 256, ROWS * 256 + num_candidates * 256 * (7 + 7 + 49)),
    }


def of_machine(num_vectors: int, *, num_pixels: int) -> Cost:
    """Return the cost of 45 decision functions over `num_vectors` vectors of `num_pixels` pixels."""
    return num_vectors * (num_pixels + 45) + 45, num_vectors * (num_pixels + 45)
