"""Test exported models against the classifier that they were written from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_pipe import models
from mnist_pipe.atomic import verify_manifest
from mnist_pipe.data import sources, splits
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.splits import RawSplit
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.inference import export
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import MODELS, saved
from pipelines import cli
from tests.support import ROOT
from tests.support.registry import MakeCandidate, register

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
COLOUR = Facts(shape=(3, 32, 32), labels=("a", "b", "c"), resize="fit", invert=False, background=(9, 0, 255))
OBLONG = Facts(shape=(1, 64, 48), labels=("yes", "no"), resize="stretch")
pytestmark = pytest.mark.long  # an export to ONNX takes one to four seconds

CARD: dict[str, Any] = {
    "dataset": "toy", "model": "convnet", "model_params": {"channels": [4]}, "recipe": {},
    "mean": 0.13, "std": 0.31, "temperature": 0.5, "data_sha256": {"train": "aa", "validation": "bb"},
}  # fmt: skip

CASES = [(name, augmented) for name in MODELS for augmented in (False, True)]


def network(name: str, **arguments: Any) -> torch.nn.Module:
    """Return an untrained model whose output depends on the image; `linear` starts at zero."""
    model = models.build(name, **arguments)
    for parameter in model.parameters() if name == "linear" else ():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def classifier(name: str = "convnet", **changes: Any) -> Classifier:
    card = {**CARD, "model": name, **changes}
    return Classifier(saved.for_inference(network(name), card=card), card=card, name="toy/12", content_sha256="c0ffee")


def run(path: Path, images: Any) -> Any:
    [probabilities] = export.open_session(path).run(None, {"images": images})
    return probabilities


# --- the ONNX model


@pytest.mark.parametrize(("name", "test_time_augmentation"), CASES)
def test_the_onnx_model_returns_the_classifiers_probabilities_for_any_batch_size(
    tmp_path: Path, name: str, test_time_augmentation: bool
) -> None:
    expected = classifier(name, test_time_augmentation=test_time_augmentation)
    export.write_onnx(tmp_path / "model.onnx", expected)
    for rows in (1, 7):
        found = run(tmp_path / "model.onnx", IMAGES[:rows])
        assert (found.dtype, found.shape) == (np.float32, (rows, 10))
        np.testing.assert_allclose(found, expected.predict(IMAGES[:rows]).probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("test_time_augmentation", [False, True])
@pytest.mark.parametrize("facts", [COLOUR, OBLONG], ids=["colour", "oblong"])
def test_the_onnx_model_takes_images_of_the_models_shape(
    tmp_path: Path, facts: Facts, test_time_augmentation: bool
) -> None:
    moments = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]} if facts.shape[0] == 3 else {}
    card = {**CARD, **facts.to_dict(), **moments, "test_time_augmentation": test_time_augmentation}
    network = models.build("convnet", facts=facts, channels=[4])
    expected = Classifier(saved.for_inference(network, card=card), card=card, name="toy/12")
    images = np.random.default_rng(0).integers(0, 256, (7, *facts.array_shape), dtype=np.uint8)
    export.write_onnx(tmp_path / "model.onnx", expected)
    [given] = export.open_session(tmp_path / "model.onnx").get_inputs()
    assert given.shape == ["N", *facts.array_shape]
    found = run(tmp_path / "model.onnx", images)
    assert found.shape == (7, facts.num_classes)
    np.testing.assert_allclose(found, expected.predict(images).probabilities, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    torch.manual_seed(0)
    path, model = tmp_path_factory.mktemp("onnx") / "model.onnx", classifier(labels=LABELS)
    export.write_onnx(path, model)
    return path, model


def test_every_grey_level_is_standardised_as_in_the_classifier(written: tuple[Path, Classifier]) -> None:
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 28, 28))
    expected = written[1].probabilities(levels)
    assert np.ptp(expected, axis=0).max() > 0.03  # a wrong table would show
    np.testing.assert_allclose(run(written[0], levels), expected, rtol=0, atol=1e-5)


def test_no_image_gives_no_probabilities(written: tuple[Path, Classifier]) -> None:
    assert run(written[0], IMAGES[:0]).shape == (0, 10)


def test_the_input_takes_only_bytes_of_28_by_28(written: tuple[Path, Classifier]) -> None:
    session = export.open_session(written[0])
    [images], [probabilities] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 28, 28])
    assert (probabilities.name, probabilities.type, probabilities.shape) == (
        "probabilities",
        "tensor(float)",
        ["N", 10],
    )
    with pytest.raises(Exception, match="Unexpected input data type"):
        run(written[0], IMAGES.astype(np.float32))


def test_the_metadata_names_the_labels_and_the_registered_version(written: tuple[Path, Classifier]) -> None:
    metadata = export.open_session(written[0]).get_modelmeta().custom_metadata_map
    assert json.loads(metadata.pop("labels")) == LABELS
    assert metadata == {"name": "toy", "version": "12", "content_sha256": "c0ffee"}


def test_the_file_has_no_path_of_this_machine_and_always_the_same_bytes(
    written: tuple[Path, Classifier], tmp_path: Path
) -> None:
    content = written[0].read_bytes()
    for path in (ROOT, Path(sys.prefix), Path(torch.__file__).parent):
        assert str(path).encode() not in content
    export.write_onnx(tmp_path / "again.onnx", written[1])
    assert (tmp_path / "again.onnx").read_bytes() == content


def test_writing_leaves_the_classifier_as_it_was(tmp_path: Path) -> None:
    model = classifier("mlp")
    before = model.predict(IMAGES).probabilities
    export.write_onnx(tmp_path / "model.onnx", model)
    np.testing.assert_array_equal(model.predict(IMAGES).probabilities, before)


def test_the_comparison_finds_another_temperature_and_other_classes(written: tuple[Path, Classifier]) -> None:
    path, model = written
    hotter = Classifier(saved.for_inference(model.network, card={**CARD, "temperature": 1.001}), card=model.card)
    message = (
        r"model.onnx: the probabilities must be within 1e-05 of torch's and give the same class on all 7 test images, "
        r"but got a difference of \d\S+ and 0 other classes; use --format safetensors"
    )
    with pytest.raises(CorruptDataError, match=message):
        export.compare(path, hotter, images=IMAGES)
    torch.manual_seed(1)
    with pytest.raises(CorruptDataError, match=r"and [1-7] other classes"):
        export.compare(path, classifier(), images=IMAGES)


# --- the command


@pytest.fixture
def project(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path, raw_splits: dict[str, RawSplit],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> Path:  # fmt: skip
    """Project with a registered champion and its test split of 100 images, as the working directory."""
    saved.save_model(tmp_path / "convnet", network("convnet", channels=[4]), card=CARD)
    register(registry_root, (tmp_path / "convnet", make_candidate(1, 40)[1]))
    splits.write_raw(registry_root / "data/raw/test.parquet", raw_splits["test"])
    for name in ("params.yaml", "dvc.yaml"):
        (registry_root / name).touch()
    monkeypatch.chdir(registry_root)
    capsys.readouterr()
    return registry_root


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    output, errors = capsys.readouterr()
    return output.splitlines(), errors.splitlines()


def test_export_to_onnx_writes_model_card_and_manifest_and_prints_the_difference(
    project: Path, raw_splits: dict[str, RawSplit], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--format", "onnx", "out"]) == 0
    [line], errors = lines(capsys)
    out, images = project / "out", raw_splits["test"].images
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.json", "model.onnx"]
    verify_manifest(out)
    assert json.loads((out / "model.json").read_text()) == CARD
    expected = Classifier.load(project.parent / "convnet").predict(images)
    found = run(out / "model.onnx", images)
    np.testing.assert_array_equal(found.argmax(1), expected.classes)
    difference = np.abs(found - expected.probabilities).max()
    assert line == (
        f"out/model.onnx: toy-classifier/1, {(out / 'model.onnx').stat().st_size:,} bytes; on 100 test images the same "
        f"classes as torch, and probabilities that differ by at most {difference:.1e}"
    )
    assert errors == []
    metadata = export.open_session(out / "model.onnx").get_modelmeta().custom_metadata_map
    assert (metadata["name"], metadata["version"], len(metadata["content_sha256"])) == ("toy-classifier", "1", 64)


def test_export_to_safetensors_writes_a_folder_that_the_classifier_loads(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--format", "safetensors", "--model", "toy-classifier@champion", "out"]) == 0
    [line], errors = lines(capsys)
    out = project / "out"
    size = (out / "model.safetensors").stat().st_size
    assert (line, errors) == (f"out/model.safetensors: toy-classifier/1, {size:,} bytes", [])
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.json", "model.safetensors"]
    np.testing.assert_array_equal(
        Classifier.load(out).predict(IMAGES).probabilities,
        Classifier.load(project.parent / "convnet").predict(IMAGES).probabilities,
    )


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """Run `export`, check its exit code and that it wrote nothing, and return its only line."""
    before = sorted(Path().rglob("*"))
    assert cli.main(["export", *arguments]) == code
    output, [line] = lines(capsys)
    assert (output, sorted(Path().rglob("*"))) == ([], before)
    return line


def test_nothing_is_written_if_the_models_disagree(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_DIFFERENCE", 0.0)
    line = refusal(capsys, "--format", "onnx", str(project / "out"), code=4)
    assert line.startswith("model.onnx: the probabilities must be within 0 of torch's")


def test_a_folder_with_files_is_not_overwritten(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = project / "taken"
    taken.mkdir()
    (taken / "file").touch()
    line = refusal(capsys, "--format", "safetensors", "taken", code=2)
    assert line == f"{taken}: the output must be new or empty, but got an existing one; remove it or name another"


def test_onnx_without_the_test_split_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "data/raw/test.parquet"
    path.unlink()
    line = refusal(capsys, "--format", "onnx", "out", code=4)
    assert line == f"{path} does not exist; run: dvc repro --force ingest"


def test_onnx_with_the_test_split_of_another_data_set_is_one_line(
    project: Path,
    raw_splits: dict[str, RawSplit],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = project / "data/raw/test.parquet"
    other = RawSplit(
        images=raw_splits["test"].images, labels=raw_splits["test"].labels, provenance={"dataset": "kmnist"}
    )
    splits.write_raw(path, other)
    start = f"{path}: dataset must be toy, which the model was trained on, but got kmnist; "
    line = refusal(capsys, "--format", "onnx", "out", code=2)
    assert line == f"{start}set ingest as it was, then run: dvc repro"
    monkeypatch.setitem(sources.SOURCES, "toy", sources.SOURCES["mnist"])
    line = refusal(capsys, "--format", "onnx", "out", code=2)
    assert line == f"{start}run: dvc exp run -S ingest.dataset=toy"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(capsys, "--format", "onnx", "out", code=3) == (
        f"{package} is not installed; run: {sys.executable} -m pip install -c requirements.lock -e '.[export]'"
    )
