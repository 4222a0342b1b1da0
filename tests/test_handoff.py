"""Test what a client and a worker exchange, with a directory as the storage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mnist_pipe import lineage, paths
from mnist_pipe.cluster import handoff, storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError

DVC = """
stages:
  double:
    cmd: none
    deps: [mnist_pipe/atomic.py, data/in, data/one.txt]
    outs: [models/out]
    metrics: [{reports/double.json: {cache: false}}]
"""
KEY = "runs/double-abc/0"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Project with the stage `double` and its inputs; MLFLOW_TRACKING_URI is set, as on a worker."""
    root = tmp_path / "client"
    (root / "data/in").mkdir(parents=True)
    (root / "data/in/a.txt").write_text("a")
    (root / "data/one.txt").write_text("1")
    (root / "dvc.yaml").write_text(DVC)
    (root / "params.yaml").write_text("x: 1\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    return root


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    (tmp_path / "storage").mkdir()
    return storage.open_uri(str(tmp_path / "storage"))


def work(place: Storage) -> None:
    """Do the worker's part: compute an output from each input."""
    with handoff.worker_workspace(f"{place.uri}/{KEY}"):
        Path("models/out").mkdir(parents=True)
        Path("models/out/a.txt").write_text(Path("data/in/a.txt").read_text() * 2)
        Path("reports").mkdir()
        Path("reports/double.json").write_text(Path("data/one.txt").read_text() * 2)


def test_inputs_are_uploaded_and_outputs_downloaded(client: Path, place: Storage) -> None:
    before = Path.cwd()
    request = handoff.upload_request("double", client, name="double-abc", storage=place)
    assert not handoff.has_outputs(place, KEY)
    work(place)
    assert handoff.has_outputs(place, KEY)
    assert Path.cwd() == before
    assert "MNIST_PIPE_STORAGE" not in os.environ
    (client / "models/out").mkdir(parents=True)
    (client / "models/out/stale.txt").touch()
    handoff.download_outputs(request, client, storage=place, key=KEY)
    assert [path.name for path in (client / "models/out").iterdir()] == ["a.txt"]
    assert (client / "models/out/a.txt").read_text() == "aa"
    assert (client / "reports/double.json").read_text() == "11"
    assert not handoff.has_outputs(place, KEY)
    assert list((client / paths.STATE).iterdir()) == []


def test_the_name_of_a_run_changes_only_with_its_inputs(client: Path) -> None:
    name = handoff.run_name("double", client, params={"a": 1})
    assert name == handoff.run_name("double", client, params={"a": 1})
    assert name.startswith("double-")
    assert name != handoff.run_name("double", client, params={"a": 2})
    (client / "params.yaml").write_text("x: 2\n")  # changes another section
    assert name == handoff.run_name("double", client, params={"a": 1})
    (client / "data/in/a.txt").write_text("b")
    assert name != handoff.run_name("double", client, params={"a": 1})


def test_the_worker_receives_the_clients_commit(client: Path, place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "source_revision", lambda _: ("0123abc", True))
    handoff.upload_request("double", client, name="double-abc", storage=place)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    seen = []
    with pytest.raises(CorruptDataError), handoff.worker_workspace(f"{place.uri}/{KEY}"):
        seen.append(lineage.source_revision(Path.cwd()))
    assert seen == [("0123abc", True)]


def test_a_workers_error_reaches_the_client_with_its_exit_code(client: Path, place: Storage) -> None:
    handoff.upload_request("double", client, name="double-abc", storage=place)
    with pytest.raises(InputError), handoff.worker_workspace(f"{place.uri}/{KEY}"):
        raise InputError("params.yaml: x must be 2, but got 1")
    assert handoff.read_failure(place, KEY) == ("params.yaml: x must be 2, but got 1", 2)
    assert handoff.read_failure(place, "runs/double-abc/1") is None
    assert place.read(f"{KEY}/outputs.json") is None


def test_a_worker_with_other_code_refuses(client: Path, place: Storage) -> None:
    handoff.upload_request("double", client, name="double-abc", storage=place)
    asked = place.read_json("runs/double-abc/request.json")
    place.write_json("runs/double-abc/request.json", {**asked, "code": "f" * 64})
    with pytest.raises(
        UnavailableError, match="the code must be version ffffffffffff, as on the client, but got"
    ) as caught:
        work(place)
    assert handoff.read_failure(place, KEY) == (str(caught.value), 3)


def test_a_worker_without_a_registry_refuses(client: Path, place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    handoff.upload_request("double", client, name="double-abc", storage=place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UnavailableError, match="MLFLOW_TRACKING_URI is not set on the worker"):
        work(place)


def test_a_missing_input_is_reported_before_anything_is_sent(client: Path, place: Storage) -> None:
    (client / "data/one.txt").unlink()
    with pytest.raises(CorruptDataError) as caught:
        handoff.upload_request("double", client, name="double-abc", storage=place)
    assert str(caught.value) == "data/one.txt does not exist; run: dvc repro"
    assert place.names("objects") == []


@pytest.mark.parametrize("path", ["../outside.txt", "data/one.txt", "models/out/../../../x"])
def test_an_unrequested_output_is_refused(path: str, client: Path, place: Storage) -> None:
    request = handoff.upload_request("double", client, name="double-abc", storage=place)
    work(place)
    made = place.read_json(f"{KEY}/outputs.json")
    place.write_json(f"{KEY}/outputs.json", {**made, path: next(iter(made.values()))})
    with pytest.raises(CorruptDataError, match="an output must be requested"):
        handoff.download_outputs(request, client, storage=place, key=KEY)
    assert not (client / "models/out").exists()


def test_a_damaged_output_leaves_every_output_as_it_was(client: Path, place: Storage) -> None:
    request = handoff.upload_request("double", client, name="double-abc", storage=place)
    work(place)
    for digest in place.read_json(f"{KEY}/outputs.json").values():
        place.write(f"objects/{digest}", json.dumps("forged").encode())
    with pytest.raises(CorruptDataError, match="sha256 must be"):
        handoff.download_outputs(request, client, storage=place, key=KEY)
    assert not (client / "models").exists()
    assert not (client / "reports").exists()
    assert handoff.has_outputs(place, KEY)


@pytest.mark.parametrize("path", ["../out.txt", "/tmp/out.txt", "data/../../out.txt", "", "."])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_request_reaches_no_file_outside_its_folder(
    client: Path, place: Storage, tmp_path: Path, kind: str, path: str
) -> None:
    handoff.upload_request("double", client, name="double-abc", storage=place)
    request = place.read_json("runs/double-abc/request.json")
    request[kind] = {**request["inputs"], path: request["inputs"]["data/one.txt"]} if kind == "inputs" else [path]
    place.write_json("runs/double-abc/request.json", request)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptDataError, match="a path of the request must be below the stage's folder"):
        work(place)
    assert [found for found in sorted(tmp_path.rglob("*")) if found not in before] == [
        tmp_path / f"storage/{KEY}",
        tmp_path / f"storage/{KEY}/error.json",
    ]
    assert not Path("/tmp/out.txt").exists()
