"""Test which model classifies, and that it sees each image as it saw its training images."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from mnist_pipe import models, paths
from mnist_pipe.atomic import read_json, write_json
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.images import load_image
from mnist_pipe.data.pictures import FORMATS
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, UnavailableError
from mnist_pipe.inference import registered
from mnist_pipe.inference.predict import UNSURE, Reading, classify
from mnist_pipe.models import saved
from mnist_pipe.registry import versions
from tests.support.registry import BASELINE_ERRORS, NAME, Candidate, MakeCandidate, register

pytestmark = pytest.mark.mlflow


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("L", (60, 90), 255)
    ImageDraw.Draw(image).line((15, 10, 45, 10, 25, 80), fill=0, width=8)
    image.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def only(results: Iterable[Reading | PipelineError]) -> Reading:
    [result] = results
    assert isinstance(result, Reading)
    return result


def test_probabilities_are_the_models_softmax_of_the_standardised_image(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    candidate = make_candidate(1, 40)
    register(registry_root, candidate)
    weights = load_file(candidate[0] / "model.safetensors")
    image = (load_image(picture).ravel() / 255 - 0.1307) / 0.3081  # mean and standard deviation from the card
    logits = weights["output.weight"].astype(np.float64) @ image + weights["output.bias"]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    result = only(classify([picture], root=registry_root))
    assert (result.path, result.model) == (picture, f"{NAME}/1")
    [found] = result.predictions
    assert list(found.probabilities.values()) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert list(found.probabilities) == [*"0123456789"]
    assert (found.number, found.label, result.text) == (expected.argmax(), *[str(expected.argmax())] * 2)
    assert found.probability == max(found.probabilities.values())
    assert sum(found.probabilities.values()) == pytest.approx(1)
    ink = 255 - np.asarray(Image.open(picture))
    assert found.box == Image.fromarray(ink).getbbox()


def test_an_unreadable_image_is_reported_in_its_place(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path, tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    text = tmp_path / "text.png"
    text.write_text("hello")
    first, second, third = classify([picture, text, picture], root=registry_root)
    assert isinstance(first, Reading)
    assert isinstance(second, InputError)
    assert str(second) == f"{text}: the file must be {FORMATS}, but got bytes that start with b'hello'"
    assert third == first


def recarded(candidate: Candidate, **changes: Any) -> Candidate:
    """Return the candidate after a change of its card."""
    network, card = saved.load_model(candidate[0])
    saved.save_model(candidate[0], network, card={**card, **changes})
    return candidate


def test_a_number_is_read_digit_by_digit(registry_root: Path, make_candidate: MakeCandidate, picture: Path) -> None:
    register(registry_root, make_candidate(1, 40))
    image = Image.open(picture)
    both = Image.new("L", (200, 90), 255)
    both.paste(image, (0, 0))
    both.paste(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (100, 0))
    both.save(picture.with_name("both.png"))
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture.with_name("mirrored.png"))
    names = [picture, picture.with_name("mirrored.png"), picture.with_name("both.png")]
    one, two, number = (only(classify([name], root=registry_root)) for name in names)
    assert number.text == one.text + two.text
    boxes = [found.box for found in number.predictions]
    assert boxes == [one.predictions[0].box, tuple(np.add(two.predictions[0].box, (100, 0, 100, 0)))]
    for found, alone in zip(number.predictions, [*one.predictions, *two.predictions], strict=True):
        assert found.probabilities == pytest.approx(alone.probabilities, rel=1e-4, abs=1e-9)


def test_an_image_of_another_data_set_is_not_treated_as_a_digit(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    names = ["T-shirt/top", *"bcdefghij"]
    register(registry_root, recarded(make_candidate(1, 40), labels=names, picture="resize"))
    image = np.zeros((28, 28), dtype=np.uint8)
    image[:, 3:9] = np.random.default_rng(0).integers(0, 256, (28, 6))  # a digit's box and mass would move it
    image[:, 15:20] = 200  # nor is it cut
    Image.fromarray(image).save(picture)
    model = registered.load(root=registry_root)
    result = only(classify([picture], root=registry_root))
    [found] = result.predictions
    [expected] = model.probabilities(image[np.newaxis])
    assert list(found.probabilities) == names
    assert list(found.probabilities.values()) == expected.tolist()
    assert (found.label, found.box, result.is_number) == (names[expected.argmax()], (0, 0, 28, 28), False)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_a_picture_in_colour_is_classified_by_its_names_at_the_models_size(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path, suffix: str
) -> None:
    names = ("black cat", "dog", "owl")
    facts = Facts(shape=(3, 20, 30), labels=names, resize="stretch", invert=False, background=(0, 0, 0))
    network = models.build("linear", facts=facts)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    folder, predictions = make_candidate(1, 40)
    card = read_json(folder / paths.CARD) | facts.to_dict() | {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]}
    saved.save_model(tmp_path / "model", network, card=card)
    register(registry_root, (tmp_path / "model", predictions))
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / f"picture{suffix}", lossless=True)
    [found] = only(classify([tmp_path / f"picture{suffix}"], root=registry_root)).predictions
    [expected] = registered.load(root=registry_root).probabilities(image.transpose(2, 0, 1)[np.newaxis])
    assert list(found.probabilities) == list(names)
    assert list(found.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert (found.label, found.box) == (names[expected.argmax()], (0, 0, 30, 20))
    Image.new("RGB", (300, 200), (9, 99, 199)).save(tmp_path / f"plain{suffix}")
    assert only(classify([tmp_path / f"plain{suffix}"], root=registry_root)).text in names


def test_a_prediction_below_the_smallest_confidence_is_unsure(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    [sure] = only(classify([picture], root=registry_root)).predictions
    at, above = (
        only(classify([picture], root=registry_root, min_confidence=limit))
        for limit in (sure.probability, float(np.nextafter(sure.probability, 1)))
    )
    assert at.predictions == [sure]
    [unsure] = above.predictions
    assert (unsure.label, unsure.is_sure, above.text) == (UNSURE, False, UNSURE)
    assert (unsure.number, unsure.probabilities) == (sure.number, sure.probabilities)


def test_a_folder_stands_for_the_pictures_directly_in_it(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path, tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    folder, empty = tmp_path / "pictures", tmp_path / "empty"
    (folder / "deeper").mkdir(parents=True)
    empty.mkdir()
    for name in ("b.PNG", "a.png", "deeper/c.png", ".hidden.png", "notes.txt"):
        shutil.copy(picture, folder / name)
    Image.open(picture).save(folder / "c.jpeg")
    first, second, third, fourth = classify([folder, empty], root=registry_root)
    paths = [found.path.name for found in (first, second, third) if isinstance(found, Reading)]
    assert paths == ["a.png", "b.PNG", "c.jpeg"]
    assert str(fourth) == f"{empty}: the folder must hold a picture, but got none"


def test_a_minus_sign_stands_for_standard_input(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry_root, make_candidate(1, 40))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    found, empty = classify([Path("-"), Path("-")], root=registry_root)
    assert isinstance(found, Reading)
    assert found.predictions == only(classify([picture], root=registry_root)).predictions
    assert str(empty) == f"-: the content must be {FORMATS}, but got no bytes"


def test_a_picture_is_read_when_its_turn_comes(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    results = classify([picture, picture], root=registry_root)
    assert isinstance(next(results), Reading)
    picture.unlink()
    assert str(next(results)) == f"{picture} does not exist"


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
    remedy = "run: rm reports/registration.json && dvc repro"
    assert str(caught.value) == f"no champion of local-classifier is registered yet; {remedy}"


def test_a_candidate_that_failed_a_gate_is_named_in_the_remedy(
    registry_root: Path, make_candidate: MakeCandidate, picture: Path
) -> None:
    outcome = register(registry_root, make_candidate(1, BASELINE_ERRORS))
    write_json(registry_root / paths.REGISTRATION, asdict(outcome))
    with pytest.raises(UnavailableError) as caught:
        classify([picture], root=registry_root)
    assert str(caught.value).endswith(f"; the last candidate failed a gate; name it with --model {NAME}/1")
    assert isinstance(only(classify([picture], root=registry_root, model=f"{NAME}/1")), Reading)


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
    assert f"{folder / 'manifest.json'} does not exist; restore that file from a copy" in str(caught.value)
