"""Take own images from their files to a champion that answers with class names, as a user does, with the real DVC."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_pipe import paths
from mnist_pipe.atomic import read_json, sha256
from mnist_pipe.data import idx, splits
from mnist_pipe.data.splits import RawSplit
from mnist_pipe.models import saved
from tests.support import own
from tests.support.bucket import s3
from tests.support.checkout import copy_tree, run, set_params, stages_run
from tests.support.serving import serving

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(1200)]


class Case(NamedTuple):
    """A data set, and what is expected of its champion."""

    name: str
    write: Callable[[Path], Path]
    params: dict[str, Any]
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    score: str = "accuracy"
    """The metric that is compared."""


def letters(folder: Path) -> Path:
    return own.as_idx(folder, {"train": own.letters(26 * 80), "test": own.letters(26 * 20, seed=1)})


def shapes(folder: Path) -> Path:
    return own.as_mixed_pictures(folder, num_pictures=4000)


def parts(folder: Path) -> Path:
    share = 1 / 21
    return own.as_npz(
        folder,
        {
            "train": own.scratched(2520, share=share),
            "test": own.scratched(840, share=share, seed=1),
            "validation": own.scratched(840, share=share, seed=2),
        },
    )


CASES = [
    Case("letters", letters, {"ingest.dataset": "idx"}, (1, 28, 28), tuple(map(str, range(26)))),
    Case(
        "shapes",
        shapes,
        {"ingest.dataset": "images", "ingest.shape": [3, 32, 32]},
        (3, 32, 32),
        tuple(f"{name}s" for name in own.SHAPES),
    ),
    Case(
        "parts",
        parts,
        {"ingest.dataset": "npz", "recipes.standard.balance": "weights"},
        (1, 64, 48),
        ("0", "1"),
        "balanced_accuracy",
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """Copy of the project that was built once from the files of a case, with the command that the page names."""
    case: Case = request.param
    folder = copy_tree(tmp_path_factory.mktemp(case.name) / "main")
    place = case.write(folder / "inputs" / case.name)
    run(folder, "dvc", "config", "--local", "core.no_scm", "true")
    params = {"ingest.name": case.name, "ingest.path": str(place.relative_to(folder)), "search.train_rows": 1500}
    set_params(folder, **{**params, "normalize.validation_rows": 400, **case.params})
    (folder / "log").write_text(run(folder, "dvc", "repro"))
    return case, folder


def best_of_scikit_learn(folder: Path, metric: str) -> float:
    """Return what the better of two classifiers with default settings reaches on the same rows."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    from sklearn.svm import SVC

    measure = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}[metric]
    balance = "balanced" if metric == "balanced_accuracy" else None
    train, test = (splits.read_normalized(folder / paths.NORMALIZED / f"{name}.parquet") for name in ("train", "test"))
    train_images, test_images = (split.images.reshape(len(split.labels), -1) for split in (train, test))
    found = [
        measure(test.labels, model.fit(train_images, train.labels).predict(test_images))
        for model in (
            SVC(C=10, class_weight=balance),
            RandomForestClassifier(200, random_state=0, class_weight=balance),
        )
    ]
    return float(max(found))


def test_the_champion_beats_scikit_learn_on_the_same_rows(built: tuple[Case, Path]) -> None:
    case, folder = built
    registered, evaluation = read_json(folder / paths.REGISTRATION), read_json(folder / paths.EVALUATION)
    assert (registered["name"], registered["version"]) == (f"{case.name}-classifier", 1)
    assert registered["promoted"], registered["reason"]
    card = read_json(folder / paths.CANDIDATE / paths.CARD)
    assert tuple(card["shape"]) == (case.shape[1:] if case.shape[0] == 1 else case.shape)
    assert tuple(card["labels"]) == case.labels
    found, expected = evaluation["test"][case.score], best_of_scikit_learn(folder, case.score)
    print(f"{case.name}: {case.score} {found:.4f}, scikit-learn {expected:.4f}")
    assert found > expected


def test_the_commands_answer_with_the_names_of_the_classes(built: tuple[Case, Path], tmp_path: Path) -> None:
    case, folder = built
    test: RawSplit = splits.read_raw(folder / paths.RAW / "test.parquet")
    evaluation = read_json(folder / paths.EVALUATION)["test"]
    output = run(folder, "mnist-pipe", "score", "data/raw/test.parquet", str(tmp_path / "scores"))
    assert f"accuracy {100 * evaluation['accuracy']:.2f} %" in output
    scored = pq.read_table(tmp_path / "scores")["prediction"].to_pylist()
    rows = range(0, len(test.labels), len(test.labels) // 7)
    for row in rows:
        Image.fromarray(channels_last(test.images[row])).save(tmp_path / f"{row:05}.png")
    lines = run(folder, "mnist-pipe", "predict", str(tmp_path), "--json").splitlines()
    found = [json.loads(line)["predictions"] for line in lines]
    assert [one[0]["label"] for one in found] == [case.labels[scored[row]] for row in rows]
    assert all(list(one[0]["probabilities"]) == list(case.labels) for one in found)


def channels_last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image as Pillow takes it."""
    return image if image.ndim == 2 else np.ascontiguousarray(image.transpose(1, 2, 0))


def test_the_endpoint_answers_with_the_names_of_the_classes(built: tuple[Case, Path]) -> None:
    case, folder = built
    if case.name != "shapes":
        pytest.skip("one endpoint is enough; it starts in half a minute")
    random = np.random.default_rng(9)
    with serving(folder) as endpoint:
        model = endpoint.model()
        assert (model["labels"], model["shape"]) == (list(case.labels), [3, 32, 32])
        right = 0
        for number in range(50):
            name = own.SHAPES[number % 5]
            picture = own.shape(name, size=(90, 60), random=random)
            [found] = endpoint.predict(own.png(np.asarray(picture)), "image/png").json()["predictions"]
            right += found["name"] == f"{name}s"
    assert right / 50 >= read_json(folder / paths.EVALUATION)["test"]["accuracy"] - 0.2


def test_the_report_shows_the_classes_and_what_was_read(built: tuple[Case, Path]) -> None:
    case, folder = built
    text = " ".join((folder / paths.REPORT).read_text().split())
    assert f"<dt>an image</dt><dd>{' × '.join(map(str, case.shape))}</dd>" in text
    assert f"<dt>classes</dt><dd>{len(case.labels)}</dd>" in text
    assert f"<dt>validation images</dt><dd>{'given' if case.name == 'parts' else 'held out'}</dd>" in text
    assert all(label in text for label in case.labels)


# --- a bucket


def test_pictures_in_a_bucket_are_read_as_those_on_the_disk(tmp_path: Path) -> None:
    import boto3

    folder = copy_tree(tmp_path / "main")
    run(folder, "dvc", "config", "--local", "core.no_scm", "true")
    pictures = own.as_mixed_pictures(folder / "inputs" / "shapes", num_pictures=700)
    params = {"ingest.dataset": "images", "ingest.name": "shapes", "ingest.path": "inputs/shapes"}
    set_params(folder, **params)
    run(folder, "dvc", "repro", "ingest")
    outputs = [folder / paths.RAW / f"{split}.parquet" for split in ("train", "test")]
    expected = [path.read_bytes() for path in outputs]
    (tmp_path / "s3").mkdir()
    with s3(tmp_path / "s3"):
        client = boto3.client("s3")
        for file in sorted(pictures.rglob("*.*")):
            client.upload_file(str(file), "bucket", f"shapes/{file.relative_to(pictures)}")
        set_params(folder, **{"ingest.path": "s3://bucket/shapes"})
        assert stages_run(run(folder, "dvc", "repro", "ingest")) == ["ingest"]
        assert [path.read_bytes() for path in outputs] == expected
        assert stages_run(run(folder, "dvc", "repro", "ingest")) == []
        client.upload_file(str(next(pictures.rglob("*.png"))), "bucket", "shapes/discs/another.png")
        assert stages_run(run(folder, "dvc", "repro", "ingest")) == ["ingest"]
        assert outputs[0].read_bytes() != expected[0]


# --- MNIST as pictures


def test_mnist_as_pictures_gives_the_same_rows_and_the_same_champion(mnist_mirror: Path, tmp_path: Path) -> None:
    num_train, num_test = 3000, 600
    root = tmp_path / "digits"
    examples = {}
    for split, prefix, number in (("train", "train", num_train), ("test", "t10k", num_test)):
        images = idx.read(mnist_mirror / f"{prefix}-images-idx3-ubyte.gz", kind="images", max_bytes=1 << 26)[:number]
        labels = idx.read(mnist_mirror / f"{prefix}-labels-idx1-ubyte.gz", kind="labels", max_bytes=1 << 20)[:number]
        examples[split] = (images, [str(label) for label in labels])
    formats = {"idx": own.as_idx(root / "idx", examples), "images": own.as_images(root / "images", examples)}
    results = {}
    for name, place in formats.items():
        folder = copy_tree(tmp_path / name)
        run(folder, "dvc", "config", "--local", "core.no_scm", "true")
        params = {"ingest.dataset": name, "ingest.name": "mine", "ingest.path": str(place)}
        set_params(folder, **{**params, "search.num_trials": 2, "train.num_epochs": 2})
        run(folder, "dvc", "repro", "register")
        raw = [splits.read_raw(folder / paths.RAW / f"{split}.parquet") for split in ("train", "test")]
        for found, (pixels, names) in zip(raw, examples.values(), strict=True):
            np.testing.assert_array_equal(found.images, pixels)
            assert [str(label) for label in found.labels.tolist()] == names
        normalized = [splits.read_normalized(folder / path) for path in paths.SPLITS.values()]
        content = [(one.images.tobytes(), one.labels.tobytes(), one.index.tobytes()) for one in normalized]
        results[name] = (content, sha256(folder / paths.CANDIDATE / saved.WEIGHTS))
    assert results["idx"] == results["images"]
