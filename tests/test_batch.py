"""Test scoring of many rows: the model's own predictions, in order, complete or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from mnist_pipe import models
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.splits import RawSplit, write_normalized, write_raw
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.inference import batch
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import forward
from tests.support.data import normalized_split
from tests.support.registry import NAME, MakeCandidate, register

MEAN, STD = 0.1307, 0.3081
NO_IMAGES = "the column image must be bytes, lists of numbers or pictures, or there must be a column for each pixel, "
ROWS = 2500


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(3)
    network = models.build("convnet", channels=[4, 8]).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # so that all ten digits occur
    return Classifier(network, card={"mean": MEAN, "std": STD}, name="toy/1", content_sha256="ab")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    blocks = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4), dtype=np.uint8)
    return blocks.repeat(7, axis=1).repeat(7, axis=2)  # all noise would look alike to a model


def standardised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((pixels / 255 - MEAN) / STD).astype(np.float32)


def images_of(content: NDArray[Any]) -> pa.Array:
    flat = np.ascontiguousarray(content).reshape(len(content), 784)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(flat.itemsize * flat.shape[1]), len(flat), [None, pa.py_buffer(flat)]
    )


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=700, write_page_checksum=True)
    return path


def read(output: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.iterdir())])


def refused(kind: type[Exception], *arguments: Any, **keywords: Any) -> str:
    """Return the one line of the refusal, which must come within seconds and leave no file behind."""
    before = {path for argument in arguments for path in Path(argument).parent.iterdir()}
    with pytest.raises(kind) as caught:
        batch.score(*arguments, **keywords)
    assert {path for argument in arguments for path in Path(argument).parent.iterdir()} == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.ray
def test_a_folder_of_raw_images_is_scored_as_the_model_scores_them(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_SHARD_ROWS", 900)
    monkeypatch.setattr(batch, "_BLOCK_ROWS", 100)
    expected = forward.logits(model.network, standardised(pixels))
    labels = [None if row % 7 == 0 else int(digit) ^ (row % 5 == 0) for row, digit in enumerate(expected.argmax(1))]
    ids = [f"row {row}" for row in range(ROWS)]
    (tmp_path / "in").mkdir()
    for name, rows in (("b", slice(1000, None)), ("a", slice(0, 1000))):
        columns = {"id": ids[rows], "image": images_of(pixels[rows]), "label": pa.array(labels[rows], pa.int64())}
        write(tmp_path / "in" / f"{name}.parquet", **columns)
    done = batch.score(tmp_path / "in", tmp_path / "out", model=model)
    found = read(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert {name: str(found.schema.field(name).type) for name in found.column_names} == {
        "id": "string",
        "label": "int64",
        "prediction": "uint8",
        "probability": "float",
        "probabilities": "fixed_size_list<element: float not null>[10]",
    }
    assert found["id"].to_pylist() == ids
    assert found["label"].to_pylist() == labels
    assert found["prediction"].to_pylist() == expected.argmax(1).tolist()
    assert len(set(found["prediction"].to_pylist())) > 3
    probabilities = torch.softmax(torch.from_numpy(expected), 1).numpy()
    np.testing.assert_allclose(found["probabilities"].to_pylist(), probabilities, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found["probability"], np.max(found["probabilities"].to_pylist(), axis=1))
    assert json.loads(found.schema.metadata[b"mnist_pipe_model"]) == {
        "model": "toy/1",
        "content_sha256": "ab",
        "labels": list("0123456789"),
    }
    known = [row for row in range(ROWS) if row % 7]
    assert done.num_rows == ROWS
    assert done.accuracy == np.mean([row % 5 != 0 for row in known])
    assert 0 < done.start_seconds <= done.seconds


@pytest.mark.ray
@pytest.mark.long
def test_standardised_images_without_labels_get_the_same_scores(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    split = normalized_split(standardised(pixels), mean=MEAN, std=STD)
    write_normalized(tmp_path / "labelled.parquet", split)
    bare = pq.read_table(tmp_path / "labelled.parquet").select(["image"])
    pq.write_table(bare, tmp_path / "in.parquet")
    (tmp_path / "out").mkdir()
    done = batch.score(tmp_path / "in.parquet", tmp_path / "out", model=model)
    assert done.accuracy is None
    found = read(tmp_path / "out")
    assert found.column_names == ["prediction", "probability", "probabilities"]
    assert found["prediction"].to_pylist() == forward.logits(model.network, split.images).argmax(1).tolist()


@pytest.mark.ray
@pytest.mark.long
def test_a_table_of_785_columns_gets_the_same_scores(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    expected = forward.logits(model.network, standardised(pixels)).argmax(1)
    columns = {f"pixel{number}": pixels.reshape(ROWS, 784)[:, number] for number in range(784)}
    write(tmp_path / "in.parquet", label=expected, **columns)
    done = batch.score(tmp_path / "in.parquet", tmp_path / "out", model=model)
    found = read(tmp_path / "out")
    assert found.column_names == ["label", "prediction", "probability", "probabilities"]
    assert found["prediction"].to_pylist() == expected.tolist()
    assert done.accuracy == 1


@pytest.mark.ray
def test_images_in_colour_are_scored_raw_and_standardised(tmp_path: Path) -> None:
    facts = Facts(shape=(3, 12, 9), labels=("cat", "dog", "owl"), resize="fit", invert=False, background=(0, 0, 0))
    torch.manual_seed(1)
    card = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], **facts.to_dict()}
    network = models.build("linear", facts=facts).eval()
    model = Classifier(network, card=card, name="pets/1")
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 12, 9), dtype=np.uint8)
    labels = (np.arange(300) % 3).astype(np.uint8)
    raw = RawSplit(images=images, labels=labels, provenance={"dataset": "pets", **facts.to_dict()})
    write_raw(tmp_path / "raw.parquet", raw)
    expected = model.probabilities(images)
    batch.score(tmp_path / "raw.parquet", tmp_path / "scores", model=model)
    found = read(tmp_path / "scores")
    assert str(found.schema.field("probabilities").type) == "fixed_size_list<element: float not null>[3]"
    np.testing.assert_allclose(found["probabilities"].to_pylist(), expected, rtol=1e-4, atol=1e-6)
    assert found["prediction"].to_pylist() == expected.argmax(1).tolist()

    means, stds = (np.array(card[key])[:, None, None] for key in ("mean", "std"))
    provenance = {**raw.provenance, "mean": card["mean"], "std": card["std"]}
    split = normalized_split(((images / 255 - means) / stds).astype(np.float32), labels=labels)
    write_normalized(tmp_path / "in.parquet", dataclasses.replace(split, provenance=provenance))
    batch.score(tmp_path / "in.parquet", tmp_path / "again", model=model)
    again = read(tmp_path / "again")["probabilities"].to_pylist()
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-6)


def test_data_of_another_shape_or_other_classes_than_the_models_are_refused(model: Classifier, tmp_path: Path) -> None:
    where = tmp_path / "in.parquet"
    cases = [
        ({"shape": (3, 8, 8), "background": (0, 0, 0)}, "the images must be 1x28x28 as the model's, but got 3x8x8"),
        ({"labels": ("a", "b")}, "the classes must be 10 as the model's, but got 2"),
        ({"labels": tuple("0123456798")}, "class 8 must be '8' as the model's, but got '9'"),
    ]
    for changes, rule in cases:
        facts = Facts(**changes)  # type: ignore[arg-type]
        images = np.zeros((4, *facts.array_shape), np.uint8)
        labels = np.zeros(4, np.uint8)
        write_raw(where, RawSplit(images=images, labels=labels, provenance={"dataset": "x", **facts.to_dict()}))
        assert refused(InputError, where, tmp_path / "out", model=model) == f"{where}: {rule}"


@pytest.mark.ray
def test_a_non_finite_pixel_is_refused_and_leaves_no_output(model: Classifier, tmp_path: Path) -> None:
    images = np.zeros((ROWS, 28, 28), dtype=np.float32)
    images[1801, 5, 6] = np.nan
    write_normalized(tmp_path / "in.parquet", normalized_split(images, mean=MEAN, std=STD))
    line = refused(CorruptDataError, tmp_path / "in.parquet", tmp_path / "out", model=model)
    assert line == f"{tmp_path / 'in.parquet'}: image[1801] at (5, 6) must be finite, but got nan"


@pytest.mark.ray
@pytest.mark.long
def test_a_damaged_page_is_refused_and_leaves_no_output(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = write(tmp_path / "in.parquet", image=images_of(pixels))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    line = refused(CorruptDataError, path, tmp_path / "out", model=model)
    assert line.startswith(f"{path}: every page must match its checksum, but got ")


def test_an_invalid_input_is_refused_with_its_path(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    where, out = tmp_path / "in.parquet", tmp_path / "out"
    assert refused(InputError, where, out, model=model) == f"{where} does not exist"
    where.write_text("hello")
    assert refused(CorruptDataError, where, out, model=model).startswith(f"{where}: the file must be Parquet, but got ")
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"pixels": [1]},
            f"{NO_IMAGES}but got (pixels: int64)",
        ),
        (
            {"image": ["a"]},
            f"{NO_IMAGES}but got string",
        ),
        (
            {"image": images_of(pixels[:1]), "prediction": [1]},
            "every column must have a unique name other than prediction, probability, probabilities, but got "
            "'prediction'; rename it",
        ),
        (
            {"image": images_of(pixels[:1]), "id": pa.array([b"0" * 16], pa.uuid())},
            "the column id must be of a plain type, but got extension<arrow.uuid>",
        ),
        ({"image": images_of(pixels[:0])}, "the input must have rows, but got 0"),
    ]
    for columns, expected in cases:
        write(where, **columns)
        assert refused(InputError, where, out, model=model) == f"{where}: {expected}"


def test_files_of_one_input_must_have_the_same_columns(
    model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", image=images_of(pixels[:1]))
    write(tmp_path / "in" / "b.parquet", image=images_of(pixels[:1]), id=[1])
    line = refused(InputError, tmp_path / "in", tmp_path / "out", model=model)
    assert line.startswith(f"{tmp_path / 'in' / 'b.parquet'}: the columns must be those of ")


def test_images_standardised_with_another_mean_are_refused(model: Classifier, tmp_path: Path) -> None:
    split = normalized_split(np.zeros((5, 28, 28), dtype=np.float32), mean=0.5, std=STD)
    where = tmp_path / "in.parquet"
    write_normalized(where, split)
    line = refused(InputError, where, tmp_path / "out", model=model)
    expected = f"{where}: mean must be 0.1307, which the model was trained with, but got 0.5; score the raw images"
    assert line == expected
    pq.write_table(pq.read_table(where).replace_schema_metadata(None), where)
    line = refused(CorruptDataError, where, tmp_path / "out", model=model)
    assert line == f"{where}: the metadata must contain mnist_pipe's provenance, but got none; score the raw images"


def test_an_existing_output_is_refused(model: Classifier, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    where = write(tmp_path / "in.parquet", image=images_of(pixels))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for taken in (tmp_path / "out", tmp_path / "out" / "mine"):
        line = refused(InputError, where, taken, model=model)
        assert line == f"{taken}: the output must be new or empty, but got an existing one; remove it or name another"


# --- the command


def command(project: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MNIST_PIPE_SUPERVISED"}
    program = [sys.executable, "-m", "pipelines.cli", "score", *arguments]
    return subprocess.Popen(
        program, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def project(registry_root: Path, pixels: NDArray[np.uint8]) -> Path:
    """Project with an empty registry, and with raw images and their labels."""
    for name in ("params.yaml", "dvc.yaml"):
        (registry_root / name).touch()
    labels = (np.arange(ROWS) % 10).astype(np.uint8)
    write_raw(registry_root / "in.parquet", RawSplit(images=pixels, labels=labels, provenance={"dataset": "toy"}))
    return registry_root


@pytest.mark.ray
@pytest.mark.long
def test_the_command_scores_with_the_champion_and_prints_one_line(project: Path, make_candidate: MakeCandidate) -> None:
    register(project, make_candidate(1, 40))
    process = command(project, "in.parquet", "out")
    output, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    [line] = output.splitlines()
    assert line.startswith(f"out: scored 2,500 rows with {NAME}/1 in ")
    assert "; accuracy " in line
    assert read(project / "out").num_rows == ROWS
    assert read(project / "out").column_names == ["label", "prediction", "probability", "probabilities"]


@pytest.mark.services
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["in.parquet", "out"], 3, "no champion is registered yet; run: dvc repro"),
        (
            ["in.parquet", "out", "--model", "toy/7"],
            2,
            "--model: the version must be registered, but got 'toy/7'; nothing is registered yet; run: dvc repro",
        ),
    ],
)
def test_a_missing_model_is_reported_in_one_line(project: Path, arguments: list[str], code: int, line: str) -> None:
    process = command(project, *arguments)
    assert process.communicate(timeout=60) == ("", line + "\n")
    assert process.returncode == code
    assert not (project / "out").exists()


def interrupt(project: Path, number: int) -> tuple[int, float, list[psutil.Process]]:
    """Send a signal to a command that scores; return its exit code, the seconds until it ended, and its children."""
    process = command(project, "in.parquet", "out")
    deadline = time.monotonic() + 60
    while not (family := psutil.Process(process.pid).children(recursive=True)) or len(family) < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    started = time.monotonic()
    process.communicate(timeout=30)
    return process.returncode, time.monotonic() - started, family


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_leaves_no_process_and_no_file(
    project: Path, make_candidate: MakeCandidate, number: int, code: int
) -> None:
    register(project, make_candidate(1, 40))
    names = {path.name for path in project.iterdir()}
    found, _, family = interrupt(project, number)
    assert found == code
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert {path.name for path in project.iterdir()} == names


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_within_seconds(project: Path, make_candidate: MakeCandidate, number: int) -> None:
    register(project, make_candidate(1, 40))
    _, seconds, _ = interrupt(project, number)
    assert seconds < 15  # 5 s on an otherwise idle machine
