"""Test the classifier against the definition of each of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import softmax

import mnist_pipe
from mnist_pipe import models
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import saved
from tests.support.registry import NAME, MakeCandidate, register

CARD: dict[str, Any] = {"model": "linear", "model_params": {}, "mean": 0.13, "std": 0.31, "temperature": 2.0}
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = models.build("linear")
    torch.nn.init.normal_(model.get_parameter("output.weight"), std=0.05)
    saved.save_model(tmp_path / "model", model, card=CARD)
    return tmp_path / "model"


def test_the_probabilities_are_the_calibrated_softmax_of_the_standardised_pixels(folder: Path) -> None:
    weights = load_file(folder / saved.WEIGHTS)
    pixels = ((IMAGES / 255 - 0.13) / 0.31).reshape(-1, 784)
    expected = softmax((pixels @ weights["output.weight"].T + weights["output.bias"]) / 2, axis=1)
    found = Classifier.load(folder).predict(IMAGES)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.classes, expected.argmax(1))
    np.testing.assert_array_equal(found.probability, found.probabilities.max(1))
    assert found.labels == [str(number) for number in found.classes]


def test_names_of_the_classes_come_from_the_card(folder: Path) -> None:
    network, card = saved.load_model(folder)
    names = [f"class {number}" for number in range(10)]
    found = Classifier(network, card={**card, "labels": names}).predict(IMAGES[:3])
    assert found.labels == [names[number] for number in found.classes]


@pytest.mark.parametrize(
    ("card", "rule"),
    [
        ({"resize": "stretch", "dataset": "mnist"}, "stretch"),
        ({"picture": "resize", "dataset": "mnist"}, "fit"),
        ({"picture": "digit", "dataset": "kmnist"}, "digit_box"),
        ({"dataset": "mnist"}, "digit_box"),
        ({"dataset": "digits"}, "digit_box"),
        ({"dataset": "fashion-mnist"}, "fit"),
        ({}, "digit_box"),
    ],
)
def test_the_rule_for_pictures_comes_from_the_card_or_else_from_the_data_set(
    folder: Path, card: dict[str, str], rule: str
) -> None:
    network, others = saved.load_model(folder)
    assert Classifier(network, card={**others, **card}).facts.resize == rule


def test_no_image_gives_no_prediction(folder: Path) -> None:
    found = Classifier.load(folder).predict(IMAGES[:0])
    assert (found.labels, found.probabilities.shape) == ([], (0, 10))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES.astype(np.float32), "float32 (300, 28, 28)"),
        (IMAGES[0], "uint8 (28, 28)"),
        (IMAGES[:, :, :27], "uint8 (300, 28, 27)"),
        (IMAGES[:, np.newaxis], "uint8 (300, 1, 28, 28)"),
        (IMAGES.tolist(), "list"),
    ],
)
def test_another_shape_or_dtype_is_refused(folder: Path, images: Any, got: str) -> None:
    with pytest.raises(InputError) as caught:
        Classifier.load(folder).predict(images)
    assert str(caught.value) == f"images: the array must be uint8 (N, 28, 28), but got {got}"


def test_a_logit_that_is_not_finite_is_refused(folder: Path) -> None:
    network, card = saved.load_model(folder)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    with pytest.raises(CorruptDataError, match="every logit must be finite"):
        Classifier(network, card=card).predict(IMAGES)


def test_the_saliency_of_a_linear_model_is_the_weight_of_the_winner(folder: Path) -> None:
    classifier = Classifier.load(folder)
    winner = classifier.predict(IMAGES[:1]).classes[0]
    weights = np.abs(load_file(folder / saved.WEIGHTS)["output.weight"][winner]).reshape(28, 28)
    np.testing.assert_allclose(classifier.saliency(IMAGES[0]), weights / weights.max(), rtol=1e-5)


def test_load_returns_the_registered_version(registry_root: Path, make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(1, 40)
    register(registry_root, candidate)
    loaded = mnist_pipe.load(f"{NAME}@champion", root=registry_root)
    assert loaded.name == f"{NAME}/1"
    expected = Classifier.load(candidate[0]).probabilities(IMAGES)
    np.testing.assert_array_equal(loaded.probabilities(IMAGES), expected)
