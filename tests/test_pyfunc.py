"""Test that MLflow loads, serves and describes a registered version without this project and without pickle."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from mnist_pipe import models, paths
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.splits import RawSplit, write_raw
from mnist_pipe.inference import batch, registered
from mnist_pipe.local.services.process import free_port
from mnist_pipe.models import saved
from tests.support.registry import NAME, MakeCandidate, register

URI = f"models:/{NAME}@champion"
SITE_PACKAGES = Path(torch.__file__).parent.parent

# -S leaves out the .pth files of site-packages, and with them the editable installation of this project.
_PLAIN = """
import sys
sys.path.append({site!r})
import importlib.util
assert importlib.util.find_spec("mnist_pipe") is None, "the project is importable"
import numpy, mlflow, torch
mlflow.set_tracking_uri({store!r})
images = numpy.load({images!r}, allow_pickle=False)
unpickled = []
sys.addaudithook(lambda event, details: unpickled.append(details) if event == "pickle.find_class" else None)
model = mlflow.pyfunc.load_model({uri!r})
found = model.predict(images)
assert unpickled == [], unpickled
assert found.dtype == numpy.float32
others = {{"ray", "prefect", "dvc", "pandera"}} & set(sys.modules)
assert not others, others
numpy.save({output!r}, found, allow_pickle=False)
"""


def predict_in_a_plain_environment(root: Path, images: NDArray[np.uint8], folder: Path) -> NDArray[np.float32]:
    """Return the probabilities that MLflow's model gives in a process that cannot import this project."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "images.npy", images, allow_pickle=False)
    code = _PLAIN.format(
        site=str(SITE_PACKAGES),
        store=paths.sqlite_uri(root / paths.MLFLOW_DB),
        images=str(folder / "images.npy"),
        uri=URI,
        output=str(folder / "found.npy"),
    )
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: NDArray[np.float32] = np.load(folder / "found.npy", allow_pickle=False)
    return found


def check_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Check that the toy model's probabilities are the same but for rounding: sums of another order.

    Its logits reach 126, where float32 errs by 4e-5. A probability depends on the difference of two logits, and errs by
    up to 8e-5 of itself; two of them by twice as much.
    """
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)


@pytest.mark.services
def test_a_version_loads_without_this_project_and_predicts_the_same(
    registry_root: Path, make_candidate: MakeCandidate, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    expected = registered.load(root=registry_root).probabilities(images)
    found = predict_in_a_plain_environment(registry_root, images, tmp_path / "plain")
    check_same(found, expected)


@pytest.mark.services
def test_a_version_for_images_in_colour_loads_without_this_project(
    registry_root: Path, make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    folder, predictions = make_candidate(1, 40)
    facts = Facts(shape=(3, 20, 16), resize="fit", invert=False, background=(0, 9, 255))
    card = json.loads((folder / paths.CARD).read_text()) | facts.to_dict()
    card |= {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "model": "convnet", "model_params": {"channels": [4]}}
    saved.save_model(tmp_path / "convnet", models.build("convnet", facts=facts, channels=[4]), card=card)
    register(registry_root, (tmp_path / "convnet", predictions))
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 20, 16), dtype=np.uint8)
    found = predict_in_a_plain_environment(registry_root, images, tmp_path / "plain")
    expected = registered.load(root=registry_root).probabilities(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.ray
@pytest.mark.long
def test_mlflow_and_score_agree_on_all_test_images_of_mnist(
    registry_root: Path, make_candidate: MakeCandidate, mnist_mirror: Path, tmp_path: Path
) -> None:
    folder, predictions = make_candidate(1, 40)
    torch.manual_seed(0)
    network = models.build("convnet", channels=[16, 32, 64], crop=3, last_pool=False)
    card = json.loads((folder / paths.CARD).read_text())
    card |= {"model": "convnet", "model_params": {"channels": [16, 32, 64], "crop": 3, "last_pool": False}}
    saved.save_model(tmp_path / "convnet", network, card={**card, "temperature": 0.5, "test_time_augmentation": True})
    register(registry_root, (tmp_path / "convnet", predictions))
    content = gzip.decompress((mnist_mirror / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    write_raw(
        tmp_path / "test.parquet",
        RawSplit(images=images, labels=np.zeros(len(images), np.uint8), provenance={"dataset": "mnist"}),
    )
    batch.score(tmp_path / "test.parquet", tmp_path / "scores", model=registered.load(root=registry_root))
    scored = np.stack(pq.read_table(tmp_path / "scores")["probabilities"].to_numpy())
    found = predict_in_a_plain_environment(registry_root, images, tmp_path / "plain")
    assert len(found) == 10_000
    np.testing.assert_array_equal(found.argmax(1), scored.argmax(1))
    np.testing.assert_allclose(found, scored, atol=1e-6)


@pytest.mark.services
def test_a_damaged_artifact_is_refused(
    registry_root: Path, make_candidate: MakeCandidate, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    [weights] = (registry_root / paths.MLFLOW_ARTIFACTS).rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AssertionError, match=r"model\.safetensors: sha256 must be"):
        predict_in_a_plain_environment(registry_root, images, tmp_path / "plain")


def test_a_version_has_a_signature_an_example_and_its_requirements(
    registry_root: Path, make_candidate: MakeCandidate
) -> None:
    register(registry_root, make_candidate(1, 40))
    from mlflow.models import Model  # its import takes seconds

    [file] = (registry_root / paths.MLFLOW_ARTIFACTS).rglob("MLmodel")
    model = Model.load(str(file.parent))
    assert list(model.flavors) == ["python_function"]
    assert model.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 28, 28)}
    assert model.signature.outputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 10)}
    example = model.load_input_example(str(file.parent))
    assert (example.dtype, example.shape) == (np.uint8, (1, 28, 28))
    requirements = (file.parent / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "numpy", "pydantic", "safetensors", "torch"]
    assert not list(file.parent.rglob("*.pkl"))


@pytest.mark.services
def test_mlflow_predicts_a_table_as_spark_udf_sends_it_and_evaluates_the_result(
    registry_root: Path, make_candidate: MakeCandidate, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    expected = registered.load(root=registry_root).probabilities(images)
    store = paths.sqlite_uri(registry_root / paths.MLFLOW_DB)
    code = f"""
import numpy, mlflow, pandas
mlflow.set_tracking_uri({store!r})
images = numpy.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=numpy.uint8)
mlflow.models.predict({URI!r}, images, env_manager="local", output_path={str(tmp_path / "predicted.json")!r})
model = mlflow.pyfunc.load_model({URI!r})
table = pandas.DataFrame({{"image": [image.ravel().astype(numpy.int16) for image in images]}})
table["prediction"] = model.predict(table[["image"]]).argmax(1)
table["label"] = model.predict(images).argmax(1)
found = mlflow.models.evaluate(data=table[["prediction", "label"]], predictions="prediction", targets="label",
                               model_type="classifier")
assert found.metrics["accuracy_score"] == 1.0, found.metrics
for wrong in (-1, 256):
    table["image"] = [numpy.full(784, wrong, numpy.int16)] * 50
    try:
        model.predict(table[["image"]])
    except Exception as error:
        assert "must be uint8 (N, 28, 28)" in str(error), error
    else:
        raise AssertionError(wrong)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    predicted = json.loads((tmp_path / "predicted.json").read_text())["predictions"]
    check_same(np.array(predicted, np.float32), expected)


@pytest.mark.services
def test_mlflow_serves_a_version(
    registry_root: Path, make_candidate: MakeCandidate, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    register(registry_root, make_candidate(1, 40))
    expected = registered.load(root=registry_root).probabilities(images)
    port = free_port(5800)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": paths.sqlite_uri(registry_root / paths.MLFLOW_DB)}
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", URI, "--env-manager", "local"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "-p", str(port), "-w", "1"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        answer = post(f"http://127.0.0.1:{port}/invocations", {"inputs": images.tolist()}, seconds=90)
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    check_same(np.array(answer["predictions"], dtype=np.float32), expected)


def post(url: str, body: Any, *, seconds: float) -> Any:
    """Return the JSON answer to a JSON body, after waiting for the server to accept connections."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
