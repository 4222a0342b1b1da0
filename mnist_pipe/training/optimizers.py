"""The optimizers by name, each with the learning rates that a search should look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_pipe.errors import unknown

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How to make an optimizer, and where its learning rate should be looked for."""

    build: Callable[[nn.Module, float, float], torch.optim.Optimizer]
    """(model, peak learning rate, weight decay) to an optimizer over every parameter of the model."""
    learning_rate: tuple[float, float]
    """Log-uniform [low, high] of the peak rate under a one-cycle schedule."""


def _torch(name: str, **arguments: float | bool | tuple[float, float]) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer of torch.optim over two groups: weights decay; biases and norms, which are vectors, do not."""

    def build(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        import torch

        constructor: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return constructor([group for group in groups if group["params"]], lr=learning_rate, **arguments)

    return build


def _muon(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    from mnist_pipe.training.muon import Muon

    return Muon(model, lr=learning_rate, weight_decay=weight_decay)


OPTIMIZERS = {
    "sgd": OptimizerSpec(build=_torch("SGD", fused=True), learning_rate=(0.03, 1.0)),
    "momentum": OptimizerSpec(build=_torch("SGD", momentum=0.9, fused=True), learning_rate=(0.01, 0.5)),
    "nesterov": OptimizerSpec(build=_torch("SGD", momentum=0.9, nesterov=True, fused=True), learning_rate=(0.01, 0.5)),
    "adagrad": OptimizerSpec(build=_torch("Adagrad", fused=True), learning_rate=(0.003, 0.1)),
    "rmsprop": OptimizerSpec(build=_torch("RMSprop", foreach=True), learning_rate=(0.0002, 0.01)),
    "adam": OptimizerSpec(build=_torch("Adam", fused=True), learning_rate=(0.0005, 0.03)),
    "adamw": OptimizerSpec(build=_torch("AdamW", fused=True), learning_rate=(0.0005, 0.03)),
    "amsgrad": OptimizerSpec(build=_torch("Adam", amsgrad=True, fused=True), learning_rate=(0.0005, 0.03)),
    "nadam": OptimizerSpec(build=_torch("NAdam"), learning_rate=(0.0005, 0.03)),
    "adamax": OptimizerSpec(build=_torch("Adamax", foreach=True), learning_rate=(0.001, 0.05)),
    "adadelta": OptimizerSpec(build=_torch("Adadelta", foreach=True), learning_rate=(0.1, 5.0)),
    "muon": OptimizerSpec(build=_muon, learning_rate=(0.005, 0.1)),
}


def build(name: str, model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """The named optimizer over every parameter of `model`.

    Raises:
        InputError: no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizers", "optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name].build(model, learning_rate, weight_decay)
