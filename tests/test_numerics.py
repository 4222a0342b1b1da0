"""Test that each precision means what it says; cuDNN's and cuBLAS's settings exist without a GPU too."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import nn

from mnist_pipe.models import numerics
from mnist_pipe.tuning import vmapped
from tests.support.training import CPU, RECIPE, blobs, run

CUDA = torch.device("cuda")


def settings() -> tuple[bool, bool, str]:
    """Return whether cuDNN rounds to TF32, whether it is deterministic, and how cuBLAS multiplies."""
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, cudnn.deterministic, torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", (False, True, "highest")),
        ("bfloat16", (False, True, "highest")),
        ("tf32", (True, True, "high")),
        ("auto", (True, True, "high")),
    ],
)
def test_only_tf32_rounds_float32_on_a_gpu_and_every_precision_repeats_its_bits(
    precision: str, expected: tuple[bool, bool, str]
) -> None:
    before = settings()
    assert before == (True, False, "highest")  # torch's defaults, which are not what float32 says
    with numerics.products(precision, CUDA):
        assert settings() == expected
        assert torch.backends.cudnn.enabled
        with numerics.products("float32", CUDA):  # as evaluation within a training
            assert settings() == (False, True, "highest")
        assert settings() == expected
    assert settings() == before
    with pytest.raises(ZeroDivisionError), numerics.products(precision, CUDA):
        raise ZeroDivisionError
    assert settings() == before


def test_a_thread_does_not_change_the_products_of_another() -> None:
    entered, seen = threading.Event(), []

    def evaluate() -> None:
        entered.set()
        with numerics.products("float32", CUDA):
            seen.append(settings())

    thread = threading.Thread(target=evaluate)
    with numerics.products("tf32", CUDA):
        thread.start()
        entered.wait()
        thread.join(0.1)
        assert settings() == (True, True, "high")
        assert seen == []
    thread.join()
    assert seen == [(False, True, "highest")]


def test_auto_is_tf32_on_a_gpu_and_on_a_cpu_bfloat16_if_it_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics.resolved("auto", CUDA) == "tf32"
    for computes, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(numerics, "computes_bfloat16", lambda _, computes=computes: computes)
        assert numerics.resolved("auto", CPU) == expected
    assert numerics.resolved("float32", CUDA) == "float32"


def test_tf32_is_float32_on_a_cpu_and_leaves_its_settings_alone() -> None:
    model, images = nn.Conv2d(1, 4, 3), torch.randn(2, 1, 9, 9)
    before, expected = settings(), model(images)
    with numerics.products("tf32", CPU), numerics.autocast("tf32", CPU):
        assert settings() == before
        assert torch.equal(model(images), expected)
    with numerics.autocast("bfloat16", CPU):
        assert model(images).dtype == torch.bfloat16


def test_evaluation_is_in_float32_whatever_the_training_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    products = numerics.products

    def recorded(precision: str, device: torch.device) -> AbstractContextManager[None]:
        asked.append(precision)
        return products(precision, device)

    monkeypatch.setattr(numerics, "products", recorded)
    recipe = replace(RECIPE, precision="tf32", num_epochs=1)
    run(recipe, training=blobs(64), validation=blobs(20, seed=1))
    assert asked == ["tf32", "tf32", "float32"]  # two steps, one batch of the validation split
    asked.clear()
    next(vmapped.train_pack([recipe], training=blobs(64), validation=blobs(20, seed=1), device=CPU))
    assert asked == ["tf32", "tf32", "float32"]
