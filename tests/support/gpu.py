"""Cases and helpers of the tests that need a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mnist_pipe.models import MODELS
from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.recorded import recorded
from tests.support.training import blobs

SMALL = Recipe(
    model="lenet5",
    optimizer="nesterov",
    learning_rate=0.01,
    batch_size=64,
    num_epochs=2,
    schedule="triangle",
    label_smoothing=0.1,
    precision="float32",
)
PARAMS: dict[str, dict[str, Any]] = {
    "convnet": {"channels": [4, 8]},
    "resnet": {"channels": [4, 8], "blocks": 1},
}
FAST = replace(
    SMALL,
    model="convnet",
    model_params={"channels": [16, 32, 64], "crop": 3, "last_pool": False},
    optimizer="muon",
    learning_rate=0.03,
    weight_decay=1e-5,
    batch_size=128,
)
CASES = {
    **{name: replace(SMALL, model=name, model_params=PARAMS.get(name, {})) for name in MODELS},
    **{
        name: replace(SMALL, optimizer=name, learning_rate=spec.learning_rate[0], weight_decay=0.01)
        for name, spec in OPTIMIZERS.items()
    },
    "fast": FAST,
    "moved": replace(FAST, rotation_degrees=8, translation_pixels=1),
    "average": replace(FAST, average_decay=0.9),
}


def on(device: torch.device, num_rows: int, *, seed: int = 0) -> DeviceSplit:
    """Return noisy images on the device."""
    split = blobs(num_rows, seed=seed)
    return replace(split, images=split.images.to(device), labels=split.labels.to(device))


def weights(model: nn.Module) -> torch.Tensor:
    """Return all weights and buffers, float64 `(N,)` on the CPU."""
    return torch.cat([value.detach().double().cpu().flatten() for value in model.state_dict().values()])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the norm of the difference over that of `theirs`."""
    return float((ours - theirs).norm() / theirs.norm())


def run_on(
    device: torch.device, recipe: Recipe, *, num_rows: int = 640, records: bool = True
) -> tuple[nn.Module, list[torch.Tensor]]:
    """Train on the device, with or without recorded steps; return the model and each epoch's metrics, on the CPU."""
    model, optimizer = loop.new_run(recipe, device=device)
    learner: loop.Learner = loop.Network(recipe, model=model, optimizer=optimizer)
    if records:
        learner = recorded(learner)
    epochs = loop.epochs(learner, recipe, training=on(device, num_rows))
    return model, [metrics for _, metrics in epochs]
