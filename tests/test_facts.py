"""Test the facts about a data set: what they are, how they travel, and what each of the first stages does with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist_pipe.data import augment, facts, normalization, splits
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.splits import RawSplit
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.training.batches import ALONE, to_device

COLOUR = Facts(shape=(3, 6, 5), labels=("a", "b", "c"), resize="stretch", invert=False, background=(9, 0, 255))
GREY = Facts(shape=(1, 4, 7), labels=("yes", "no"), resize="fit")


def raw(known: Facts, *, rows: int = 40, seed: int = 0, **provenance: Any) -> RawSplit:
    random = np.random.default_rng(seed)
    return RawSplit(
        images=random.integers(0, 256, (rows, *known.array_shape), dtype=np.uint8),
        labels=(np.arange(rows) % known.num_classes).astype(np.uint8),
        provenance={"dataset": "mine", "fallback_for": None, **known.to_provenance(), **provenance},
    )


@pytest.mark.parametrize("known", [MNIST, COLOUR, GREY])
def test_facts_survive_json_and_an_empty_provenance_is_mnists(known: Facts) -> None:
    assert Facts.of(known.to_dict()) == known
    assert Facts.of(known.to_provenance()) == known
    assert (known.to_provenance() == {}) == (known == MNIST)


@pytest.mark.parametrize("known", [COLOUR, GREY])
def test_a_split_of_any_shape_survives_parquet_and_takes_its_facts_along(known: Facts, tmp_path: Path) -> None:
    split = raw(known)
    splits.write_raw(tmp_path / "raw", split)
    read = splits.read_raw(tmp_path / "raw")
    np.testing.assert_array_equal(read.images, split.images)
    assert read.facts == known
    normalized, report = normalization.normalize(read, raw(known, seed=1), validation_rows=8, seed=0)
    for name, one in normalized.items():
        splits.write_normalized(tmp_path / name, one)
        back = splits.read_normalized(tmp_path / name)
        splits.verify_normalized(str(tmp_path / name))
        np.testing.assert_array_equal(back.images, one.images)
        assert back.facts == known
        assert back.provenance == one.provenance
        assert list(report["rows_by_class"][name]) == list(known.labels)


def test_every_channel_is_standardised_by_its_own_statistics() -> None:
    split = raw(COLOUR)
    split.images[:, 1] //= 4
    normalized, report = normalization.normalize(split, raw(COLOUR, seed=1), validation_rows=8, seed=0)
    training = split.images[normalized["train"].index] / 255
    np.testing.assert_allclose(report["mean"], training.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(report["std"], training.std(axis=(0, 2, 3)))
    mean, std = (np.array(report[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    np.testing.assert_allclose(normalized["train"].images, (training - mean) / std, rtol=1e-5, atol=1e-6)


def test_a_channel_of_one_level_is_no_reason_to_refuse_a_data_set() -> None:
    split = raw(COLOUR)
    split.images[:, 2] = 7
    normalized, report = normalization.normalize(split, raw(COLOUR, seed=1), validation_rows=8, seed=0)
    assert (report["mean"][2], report["std"][2]) == (7 / 255, 1.0)
    assert (normalized["train"].images[:, 2] == 0).all()
    split.images[:] = 7
    with pytest.raises(CorruptDataError) as caught:
        normalization.normalize(split, raw(COLOUR, seed=1), validation_rows=8, seed=0)
    assert str(caught.value) == ("train: the images must have more than one grey level, but got 7, 7, 7 in every pixel")


def test_a_file_of_another_shape_than_its_facts_is_refused(tmp_path: Path) -> None:
    grey = raw(GREY)
    splits.write_raw(tmp_path / "raw", grey)
    content = (tmp_path / "raw").read_bytes()
    with pytest.raises(AssertionError):
        splits.write_raw(tmp_path / "raw", replace(raw(COLOUR), provenance=grey.provenance))
    assert (tmp_path / "raw").read_bytes() == content
    grey.labels[[3, 5]] = 2
    splits.write_raw(tmp_path / "raw", grey)
    with pytest.raises(CorruptDataError) as caught:
        splits.read_raw(tmp_path / "raw")
    assert str(caught.value) == f"{tmp_path}/raw: labels[3] must be 0 to 1, but got 2 (2 such labels)"


def test_an_empty_pixel_has_the_standardised_level_of_the_background() -> None:
    assert MNIST.empty_pixel({"mean": 0.1307, "std": 0.3081}) == -0.1307 / 0.3081
    moments = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    assert COLOUR.empty_pixel(moments) == [(9 / 255 - 0.1), -0.2 / 2, (1 - 0.3) / 4]
    levels = facts.levels(moments["mean"], moments["std"])
    assert levels[[0, 1, 2], [9, 0, 255]].tolist() == pytest.approx(COLOUR.empty_pixel(moments))


def test_images_in_colour_become_batches_of_their_shape_and_move_onto_their_background() -> None:
    normalized, _ = normalization.normalize(raw(COLOUR), raw(COLOUR, seed=1), validation_rows=8, seed=0)
    data = to_device(normalized["train"], device=torch.device("cpu"))
    images, _ = next(data.epoch(0, seed=0, batch_size=4, ranks=ALONE))
    assert images.shape == (4, 3, 6, 5)
    away = augment.affine(images, torch.tensor([[0.0, 50.0, 0.0]] * 4), background=data.background)
    expected = torch.tensor(data.background).view(1, 3, 1, 1).expand_as(away)
    torch.testing.assert_close(away, expected)


def test_shifts_of_a_model_in_colour_bring_in_the_background_of_each_channel() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 5, 3))
    ground = torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1)
    images = torch.randn(2, 3, 6, 5)
    padded = ground.expand(2, 3, 8, 7).clone()
    padded[..., 1:-1, 1:-1] = images
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    views = [F.log_softmax(model(padded[..., y : y + 6, x : x + 5]), 1) for y, x in places]
    found = ShiftAveraged(model, background=[0.5, -1.0, 2.0])(images)
    torch.testing.assert_close(found, torch.stack(views).mean(0))
