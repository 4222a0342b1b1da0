"""Test which model classifies, and that it sees each image as it saw its training images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from mnist_pipe import paths
from mnist_pipe.atomic import write_json
from mnist_pipe.data.images import load_image
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError
from mnist_pipe.inference.predict import Prediction, classify
from mnist_pipe.registry import versions
from tests.support.registry import NAME, MakeCandidate, register


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("L", (60, 90), 255)
    ImageDraw.Draw(image).line((15, 10, 45, 10, 25, 80), fill=0, width=8)
    image.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def only(results: list[Any]) -> Prediction:
    [result] = results
    assert isinstance(result, Prediction)
    return result


def test_probabilities_are_the_models_softmax_of_the_standardised_image(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    candidate = make_candidate(1, 40)
    register(registry_root, candidate)
    weights = load_file(candidate[0] / "model.safetensors")
    image = (
        np.rint(255 * load_image(picture)).ravel() / 255 - 0.1307
    ) / 0.3081  # mean and standard deviation from the card
    logits = weights["output.weight"].astype(np.float64) @ image + weights["output.bias"]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    result = only(classify([picture], root=registry_root))
    assert result.probabilities == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert result.digit == expected.argmax()
    assert result.probability == max(result.probabilities)
    assert result.path == picture
    assert sum(result.probabilities) == pytest.approx(1)


def test_an_unreadable_image_is_reported_in_its_place(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path, tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    text = tmp_path / "text.png"
    text.write_text("hello")
    first, second, third = classify([picture, text, picture], root=registry_root)
    assert isinstance(first, Prediction)
    assert isinstance(second, InputError)
    assert str(second) == f"{text}: the file must be a PNG or JPEG image, but got bytes that start with b'hello'"
    assert third == first


def test_without_a_registry_the_error_names_dvc_repro(tmp_path: Path, picture: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        classify([picture], root=tmp_path / "new")
    assert str(caught.value) == "no champion is registered yet; run: dvc repro"


def test_the_champion_of_the_last_registered_name_is_used(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    one, other = make_candidate(1, 40), make_candidate(2, 40)
    register(registry_root, one, name="mnist-classifier")
    register(registry_root, other, name="digits-classifier")
    results = {}
    for name in ("mnist-classifier", "digits-classifier"):
        write_json(registry_root / paths.REGISTRATION, {"name": name})
        results[name] = only(classify([picture], root=registry_root))
        assert results[name] == only(classify([picture], root=registry_root, model=f"{name}@champion"))
    assert results["mnist-classifier"] != results["digits-classifier"]
    write_json(registry_root / paths.REGISTRATION, {"name": "local-classifier"})
    with pytest.raises(UnavailableError) as caught:
        classify([picture], root=registry_root)
    assert str(caught.value) == "no champion of local-classifier is registered yet; run: dvc repro"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_without_a_registration_the_only_champion_is_used(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path, content: str | None
) -> None:
    register(registry_root, make_candidate(1, 40))
    if content is not None:
        (registry_root / paths.REPORTS).mkdir()
        (registry_root / paths.REGISTRATION).write_text(content)
    assert only(classify([picture], root=registry_root))


def test_several_champions_are_listed_for_the_user_to_choose(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    for name in ("mnist-classifier", "digits-classifier"):
        register(registry_root, make_candidate(1, 40), name=name)
    with pytest.raises(InputError) as caught:
        classify([picture], root=registry_root)
    assert str(caught.value) == (
        "--model is not set, but several champions are registered; "
        "choose one of digits-classifier@champion, mnist-classifier@champion"
    )


def test_any_version_can_predict(registry_root: Path, make_candidate: MakeCandidate, picture: Path) -> None:
    register(registry_root, make_candidate(1, 60))
    register(registry_root, make_candidate(2, 40))
    by_alias = {
        spec: only(classify([picture], root=registry_root, model=f"{NAME}{spec}"))
        for spec in ("@champion", "@previous")
    }
    by_number = {number: only(classify([picture], root=registry_root, model=f"{NAME}/{number}")) for number in (1, 2)}
    assert by_alias == {"@champion": by_number[2], "@previous": by_number[1]}
    assert by_number[1] != by_number[2]


def test_a_champion_without_files_is_reported(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    folder = versions.download(versions.find(f"{NAME}@champion", root=registry_root), root=registry_root)
    shutil.rmtree(folder)
    with pytest.raises(CorruptDataError) as caught:
        classify([picture], root=registry_root)
    assert str(caught.value) == f"{folder / 'manifest.json'} does not exist"
