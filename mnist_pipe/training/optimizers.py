"""The optimizers by name, each with the range of learning rates that a search should cover."""

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
    """Factory of an optimizer, and the range in which to search its learning rate."""

    build: Callable[[nn.Module, float, float], torch.optim.Optimizer]
    """Function of (model, peak learning rate, weight decay) that returns an optimizer of all the model's parameters."""
    learning_rate: tuple[float, float]
    """Range [low, high] of the peak learning rate under a one-cycle schedule, to be searched log-uniformly."""


def _torch(name: str, **arguments: float | bool | tuple[float, float]) -> Callable[..., torch.optim.Optimizer]:
    """Return a factory of `torch.optim.<name>` with two parameter groups.

    Weight decay applies to weights, and not to biases and norms, which are vectors.
    """

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
    """Return the named optimizer of all parameters of `model`.

    Raises:
        InputError: there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizers", "optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name].build(model, learning_rate, weight_decay)
