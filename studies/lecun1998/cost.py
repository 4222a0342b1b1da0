"""What a system costs: the numbers that it keeps and the multiply-adds for one image (figures 11 and 12)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mnist_pipe import models
from mnist_pipe.models.lenet1998 import Subsampling, TableConv

PIXELS, SQUARE, ROWS = 28 * 28, 20 * 20, 60_000
Cost = tuple[int, int]
"""Variables, and multiply-adds for an image."""


def connections(model: nn.Module) -> int:
    """As the paper counts them: every weight and bias at each place that it is used for an image.

    A unit of a subsampling layer reads four others and its bias. The fixed bitmaps of LeNet-5 are read like weights.
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


def of_network(name: str, arguments: Mapping[str, object]) -> Cost:
    """Of an entry of MODELS."""
    model = models.build(name, **arguments)
    return sum(parameter.numel() for parameter in model.parameters()), connections(model)


def classical(*, num_candidates: int) -> dict[str, Cost]:
    """Of the systems whose size is known without training, by `system, variant`."""
    return {
        "linear (1-layer), plain": (10 * (PIXELS + 1), 10 * PIXELS),
        "linear (1-layer), deslanted": (10 * (SQUARE + 1), 10 * SQUARE),
        "pairwise linear, plain": (45 * (PIXELS + 1), 45 * PIXELS),
        "K-NN Euclidean, plain": (ROWS * PIXELS, ROWS * PIXELS),
        "K-NN Euclidean, deslanted": (ROWS * SQUARE, ROWS * SQUARE),
        "40 PCA + quadratic, plain": (41 * PIXELS + 10 * 821, 40 * PIXELS + 820 + 10 * 821),
        "1000 RBF + linear, plain": (1000 * PIXELS + 10 * 1001, 1000 * PIXELS + 10 * 1000),
        # The filter reads every template, the distance of two planes 7 tangents on either side and their 49 overlaps.
        "tangent distance, 16x16": (ROWS * 256, ROWS * 256 + num_candidates * 256 * (7 + 7 + 49)),
    }


def of_machine(num_vectors: int, *, num_pixels: int) -> Cost:
    """Of 45 decision functions over so many vectors."""
    return num_vectors * (num_pixels + 45) + 45, num_vectors * (num_pixels + 45)
