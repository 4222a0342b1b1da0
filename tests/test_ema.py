"""Test the moving average of the weights against its formula, and as part of a run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mnist_pipe.training import ema, loop
from mnist_pipe.training.optimizers import OPTIMIZERS
from tests.support.training import CPU, RECIPE, blobs

DECAY = 0.8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_average_agrees_with_the_formula(name: str) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=name, learning_rate=OPTIMIZERS[name].learning_rate[0])
    model, optimizer = loop.new_run(recipe, device=CPU)
    parameter, expected = next(model.parameters()), None
    for _ in range(5):
        model(blobs(32).images).square().mean().backward()
        optimizer.step()
        ema.update(optimizer, decay=DECAY)
        now = parameter.detach().double()
        expected = now.clone() if expected is None else DECAY * expected + (1 - DECAY) * now
    with ema.averaged(optimizer):
        assert expected is not None
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_the_weights_are_restored_after_the_block() -> None:
    model, optimizer = loop.new_run(RECIPE, device=CPU)
    model(blobs(32).images).sum().backward()
    for _ in range(2):
        optimizer.step()
        ema.update(optimizer, decay=DECAY)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with ema.averaged(optimizer):
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_without_an_average_the_block_changes_nothing() -> None:
    model, optimizer = loop.new_run(RECIPE, device=CPU)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with ema.averaged(optimizer):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_validation_uses_the_average() -> None:
    recipe = dataclasses.replace(RECIPE, average_decay=0.9, num_epochs=1)
    model, optimizer = loop.new_run(recipe, device=CPU)
    validation = blobs(50, seed=1)
    (metrics,) = loop.train(recipe, model=model, optimizer=optimizer, training=blobs(320), validation=validation)
    told = metrics["validation_loss"]
    assert loop.evaluate(model, validation)[0] != told
    with ema.averaged(optimizer):
        assert loop.evaluate(model, validation)[0] == told
