"""Test the contract of every entry of OPTIMIZERS, and Muon against the library's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.training import optimizers
from mnist_pipe.training.muon import Muon, orthogonalize
from mnist_pipe.training.optimizers import OPTIMIZERS

# The library's own class and the arguments that the entry promises; Muon has its own tests below.
ORACLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "nadam": (torch.optim.NAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
    "adadelta": (torch.optim.Adadelta, {}),
}


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, *, num_steps: int) -> list[float]:
    """Take steps on a fixed regression problem, and return the loss before each."""
    generator = torch.Generator().manual_seed(1)
    images, target = torch.randn(64, 1, 28, 28, generator=generator), torch.randn(64, 10, generator=generator)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (model(images) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _new(name: str, *, weight_decay: float = 0.0, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = models.build("lenet5")
    low, high = OPTIMIZERS[name].learning_rate
    rate = (low * high) ** 0.5
    return model, optimizers.build(name, model, learning_rate=rate, weight_decay=weight_decay)


def test_lowers_the_loss_in_the_middle_of_its_range(name: str) -> None:
    losses = _steps(*_new(name), num_steps=12)
    assert losses[-1] < losses[0], losses


def test_updates_every_parameter(name: str) -> None:
    model, optimizer = _new(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    _steps(model, optimizer, num_steps=2)
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_two_runs_are_bitwise_equal(name: str) -> None:
    weights = []
    for _ in range(2):
        model, optimizer = _new(name)
        _steps(model, optimizer, num_steps=3)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_weight_decay_shrinks_the_weights_and_not_the_biases(name: str) -> None:
    # With a gradient of zero only the decay changes a parameter; adagrad and adadelta need several steps to show it.
    model, optimizer = _new(name, weight_decay=0.1)
    norms = {key: value.norm().item() for key, value in model.named_parameters()}
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for key, value in model.named_parameters():
        assert (value.norm().item() < norms[key]) == (value.ndim > 1), key


@pytest.mark.parametrize("name", ORACLES)
def test_without_weight_decay_it_agrees_with_torch(name: str) -> None:
    constructor, arguments = ORACLES[name]
    low, high = OPTIMIZERS[name].learning_rate
    torch.manual_seed(0)
    oracle = models.build("lenet5")
    _steps(oracle, constructor(oracle.parameters(), lr=(low * high) ** 0.5, **arguments), num_steps=5)
    model, optimizer = _new(name)
    _steps(model, optimizer, num_steps=5)
    for ours, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_range_of_learning_rates_is_valid(name: str) -> None:
    low, high = OPTIMIZERS[name].learning_rate
    assert 0 < low < high <= 10


def test_an_unknown_optimizer_is_reported_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        optimizers.build("adamm", models.build("linear"), learning_rate=0.1, weight_decay=0.0)
    assert str(caught.value) == (
        "optimizers: optimizer must be one of adadelta, adagrad, adam, adamax, adamw, amsgrad, momentum, muon, nadam, "
        "nesterov, rmsprop, sgd, but got 'adamm'; did you mean 'adam'?"
    )


@pytest.mark.parametrize("shape", [(16, 9), (32, 144), (10, 10), (120, 16)])
def test_orthogonalize_brings_every_singular_value_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5, values
    assert values.max() < 1.4, values


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalize(matrix) @ vh.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-4, rtol=0)


def test_muon_on_a_hidden_matrix_agrees_with_torch() -> None:
    # torch's version iterates in bfloat16, so the directions agree to about two digits.
    torch.manual_seed(0)
    hidden = nn.Linear(20, 12, bias=False)
    model = nn.Sequential(hidden, nn.Linear(12, 10, bias=False))
    ours = Muon(model, lr=0.02, weight_decay=0.1)
    reference = nn.Parameter(hidden.weight.detach().clone())
    theirs = torch.optim.Muon([reference], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    start = reference.detach().clone()
    for step in range(3):
        gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(step))
        hidden.weight.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    moved, expected = hidden.weight.detach() - start, reference.detach() - start
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    assert abs(float(moved.norm() / expected.norm()) - 1) < 0.02


def test_muon_treats_a_filter_as_a_matrix_of_its_outputs() -> None:
    torch.manual_seed(0)
    hidden = nn.Conv2d(3, 8, 3, bias=False)
    model = nn.Sequential(hidden, nn.Flatten(), nn.Linear(8, 10))
    gradient = torch.randn(8, 3, 3, 3)
    before = hidden.weight.detach().clone()
    optimizer = Muon(model, lr=0.1, momentum=0.0)
    hidden.weight.grad = gradient.clone()
    optimizer.step()
    expected = before - 0.1 * orthogonalize(gradient.flatten(1)).view(8, 3, 3, 3)
    torch.testing.assert_close(hidden.weight.detach(), expected)
