"""Test weights and training state on disk: exact, verified, and without pickle."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_pipe import models
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.splits import write_normalized
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import saved
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.training import checkpoint, loop
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from tests.support.data import normalized_split
from tests.support.training import CPU, RECIPE, blobs

CARD = {"model": "convnet", "model_params": {"channels": [4, 8]}}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    saved.save_model(tmp_path / "model", models.build("convnet", channels=[4, 8]), card=CARD)
    return tmp_path / "model"


def test_a_model_survives_the_round_trip(stored: Path) -> None:
    torch.manual_seed(3)
    original = models.build("convnet", channels=[4, 8]).eval()
    loaded, card = saved.load_model(stored)
    assert card == CARD
    assert not loaded.training
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(loaded(images), original(images))


def test_saving_twice_gives_the_same_bytes(stored: Path, tmp_path: Path) -> None:
    model, card = saved.load_model(stored)
    saved.save_model(tmp_path / "again", model, card=card)
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_every_flipped_bit_is_refused(stored: Path) -> None:
    weights = stored / saved.WEIGHTS
    content = bytearray(weights.read_bytes())
    draw = random.Random(0)
    for _ in range(200):
        position, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[position] ^= bit
        weights.write_bytes(content)
        with pytest.raises(CorruptDataError, match="sha256"):
            saved.load_model(stored)
        content[position] ^= bit


def test_every_truncation_is_refused(stored: Path) -> None:
    weights = stored / saved.WEIGHTS
    content = weights.read_bytes()
    for length in range(0, len(content), len(content) // 50):
        weights.write_bytes(content[:length])
        with pytest.raises(CorruptDataError):
            saved.load_model(stored)


def test_a_folder_without_a_manifest_is_unfinished(stored: Path) -> None:
    (stored / "manifest.json").unlink()
    with pytest.raises(CorruptDataError) as caught:
        saved.load_model(stored)
    assert str(caught.value) == f"{stored}/manifest.json does not exist"


def test_weights_of_another_architecture_are_refused(stored: Path, tmp_path: Path) -> None:
    model, card = saved.load_model(stored)
    other = tmp_path / "other"
    saved.save_model(other, model, card={**card, "model": "lenet5", "model_params": {}})
    with pytest.raises(CorruptDataError, match=r"model.safetensors: the weights must fit .*model.json"):
        saved.load_model(other)


def test_an_optimizer_s_state_of_another_architecture_is_refused(tmp_path: Path) -> None:
    network = models.build("mlp", hidden=[2])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.zeros(1, 1, 28, 28)).sum().backward()
    optimizer.step()
    checkpoint.save_state(tmp_path, model=network, optimizer=optimizer, progress={})
    fewer = torch.optim.SGD(list(network.parameters())[:2], lr=0.1, momentum=0.9)
    with pytest.raises(CorruptDataError, match="must be of the optimizer's 2 parameters, but got one of parameter"):
        checkpoint.load_state(tmp_path, model=network, optimizer=fewer)


@pytest.mark.parametrize(
    "facts",
    [
        MNIST,
        Facts(labels=("cat", "dog"), resize="fit"),
        Facts(shape=(3, 6, 5), labels=("a", "b", "c"), resize="stretch", invert=False, background=(1, 2, 3)),
    ],
)
def test_the_facts_about_the_data_reach_the_card_and_the_classifier(facts: Facts, tmp_path: Path) -> None:
    provenance: dict[str, Any] = {"dataset": "mnist", "source_sha256": "", "mean": 0.1, "std": 0.3}
    provenance |= {"shape": list(facts.array_shape), **facts.to_provenance()}
    if facts.shape[0] == 3:
        provenance |= {"mean": [0.1] * 3, "std": [0.3] * 3}
    split = normalized_split(np.zeros((10, *facts.array_shape), np.float32))
    write_normalized(tmp_path / "split.parquet", replace(split, provenance=provenance))
    model = models.build("linear", facts=facts)
    card = checkpoint.model_card(
        {**RECIPE.to_dict(), "model": "linear", "model_params": {}},
        model=model,
        metrics={"validation_accuracy": 0.5, "validation_loss": 1.0},
        data={"train": tmp_path / "split.parquet"},
    )
    saved.save_model(tmp_path / "model", model, card=card)
    classifier = Classifier.load(tmp_path / "model")
    assert (classifier.facts, classifier.labels) == (facts, [*facts.labels])
    assert classifier.probabilities(np.zeros((2, *facts.array_shape), np.uint8)).shape == (2, facts.num_classes)


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, average_decay: float, tmp_path: Path) -> None:
    changes = {"optimizer": name, "learning_rate": OPTIMIZERS[name].learning_rate[0], "average_decay": average_decay}
    recipe = Recipe(**{**RECIPE.to_dict(), **changes, "num_epochs": 2})
    training, validation = blobs(160), blobs(50, seed=1)
    model, optimizer = loop.new_run(recipe, device=CPU)
    epochs = loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation)
    first = next(epochs)
    checkpoint.save_state(tmp_path, model=model, optimizer=optimizer, progress={"epoch": 1, "history": [first]})
    expected = next(epochs)

    resumed, fresh = loop.new_run(recipe, device=CPU)
    assert checkpoint.load_state(tmp_path, model=resumed, optimizer=fresh) == {"epoch": 1, "history": [first]}
    rest = loop.train(
        recipe, model=resumed, optimizer=fresh, training=training, validation=validation, start=loop.Position(epoch=1)
    )
    assert list(rest) == [expected]
    for ours, theirs in zip(resumed.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("key", "averaged"), [("test_time_augmentation", True), ("test_shifts", True), ("none", False)]
)
def test_a_models_card_decides_on_test_time_augmentation(key: str, averaged: bool, tmp_path: Path) -> None:
    card = {"model": "linear", "model_params": {}, "mean": 0.1, "std": 0.3, key: True}
    saved.save_model(tmp_path, models.build("linear"), card=card)
    model, _ = saved.load_model(tmp_path)
    assert isinstance(model, ShiftAveraged) is averaged
