"""Test on a GPU that a pack's members are what they are alone, and that it keeps to the memory that is free."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mnist_pipe.training import loop
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.tuning import vmapped
from tests.support.gpu import CASES, SMALL, on

pytestmark = pytest.mark.gpu

PACKED = [name for name, recipe in CASES.items() if not recipe.average_decay]


def members(recipe: Recipe) -> list[Recipe]:
    return [
        replace(recipe, learning_rate=recipe.learning_rate * rate, rotation_degrees=degrees)
        for rate, degrees in ((1.0, recipe.rotation_degrees), (0.5, 0.0), (0.25, 0.0))
    ]


def check(recipes: list[Recipe], device: torch.device, *, rel: float) -> None:
    training, validation = on(device, 640), on(device, 200, seed=1)
    packed = list(vmapped.train_pack(recipes, training=training, validation=validation, device=device))
    for number, recipe in enumerate(recipes):
        model, optimizer = loop.new_run(recipe, device=device)
        alone = list(loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation))
        for ours, theirs in zip((epoch[number] for epoch in packed), alone, strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=rel), recipe


@pytest.mark.parametrize("name", PACKED)
def test_a_pack_agrees_with_its_members(name: str, gpu: torch.device) -> None:
    check(members(CASES[name]), gpu, rel=0.01)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_pack_in_another_precision_agrees_with_its_members(name: str, precision: str, gpu: torch.device) -> None:
    check(members(replace(CASES[name], precision=precision)), gpu, rel=0.05)


def test_a_pack_in_bfloat16_with_batch_norm_trains(gpu: torch.device) -> None:
    recipes = members(replace(CASES["convnet"], precision="bfloat16"))
    epochs = list(vmapped.train_pack(recipes, training=on(gpu, 640), validation=on(gpu, 64), device=gpu))
    assert all(metrics.get("diverged") is None for metrics in epochs[-1])


@pytest.mark.parametrize("model", ["lenet5", "convnet", "cnn"])
def test_the_largest_pack_keeps_to_the_free_memory(model: str, cuda: torch.device) -> None:
    recipe = replace(CASES[model], batch_size=128, num_epochs=1)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(cuda)
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    most = vmapped.max_members(recipe, device=cuda)
    recipes = [replace(recipe, learning_rate=recipe.learning_rate * (1 + number / most)) for number in range(most)]
    next(vmapped.train_pack(recipes, training=on(cuda, 128 * 6), validation=on(cuda, 1000), device=cuda))
    assert torch.cuda.max_memory_allocated(cuda) - before < 0.8 * free


def test_a_pack_that_does_not_fit_trains_in_parts(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = members(CASES["lenet5"])
    monkeypatch.setattr(vmapped, "max_members", lambda *_, **__: 2)
    assert [len(part) for part in vmapped.fitting_parts(recipes, device=cuda)] == [2, 1]
    check(recipes, cuda, rel=0.01)


def test_a_model_that_draws_is_not_packed(cuda: torch.device) -> None:
    recipe = replace(SMALL, model="cnn", model_params={"dropout": 0.5})
    assert vmapped.max_members(recipe, device=cuda) == 1
