"""Small data set and a recipe for it, with helpers that run the training loop."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(
    model="convnet",
    model_params={"channels": [4, 8]},
    optimizer="nesterov",
    learning_rate=0.05,
    batch_size=32,
    num_epochs=3,
    rotation_degrees=10,
    translation_pixels=2,
    label_smoothing=0.1,
    precision="float32",
)


def blobs(num_rows: int, *, seed: int = 0) -> DeviceSplit:
    """Return noisy images, float32 `(num_rows, 1, 28, 28)`, whose class is the place of a bright square."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % 10
    images = 0.3 * torch.randn(num_rows, 1, 28, 28, generator=generator) - 0.4
    for row, label in enumerate(labels.tolist()):
        y, x = 4 + 14 * (label // 5), 2 + 5 * (label % 5)
        images[row, 0, y : y + 5, x : x + 4] += 2.5
    return DeviceSplit(images=images, labels=labels, background=-0.4)


def run(
    recipe: Recipe, *, training: DeviceSplit, validation: DeviceSplit, **arguments: Any
) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Train, and return every epoch's metrics and the final weights as one vector."""
    model, optimizer = loop.new_run(recipe, device=CPU)
    history = list(
        loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation, **arguments)
    )
    return history, torch.cat([value.flatten().double() for value in model.state_dict().values()])


class FirstCalls(TorchDispatchMode):
    """Dispatch mode that counts the elements in the first call of each function of MKL's vector library."""

    FUNCTIONS = (
        *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma"),
        *("log", "log10", "log1p", "log2", "sin", "sinh", "sqrt", "tan", "tanh"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.num_elements: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.strip("_").removeprefix("foreach_")
        if name in self.FUNCTIONS:
            tensors = args[0] if isinstance(args[0], list) else args[:1]
            self.num_elements.setdefault(name, sum(tensor.numel() for tensor in tensors))
        return func(*args, **(kwargs or {}))


def start_ranks(work: Callable[..., None], *arguments: Any, num_ranks: int) -> None:
    """Call `work(rank, *arguments)` in one process per rank, all forked from one that has imported torch."""
    multiprocessing.set_forkserver_preload([__name__])
    start_processes(work, args=arguments, nprocs=num_ranks, start_method="forkserver")
