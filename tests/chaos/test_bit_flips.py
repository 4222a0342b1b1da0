"""Flip random bits of every kind of file that the project keeps; a reader refuses the file or reads the same value."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_pipe import atomic, models, paths
from mnist_pipe.cluster import dvc_stages, storage
from mnist_pipe.cluster.ledger import Ledger
from mnist_pipe.data import idx, splits
from mnist_pipe.data.download import PublishedFile, fetch_published
from mnist_pipe.errors import PipelineError
from mnist_pipe.evaluation import predictions
from mnist_pipe.local import dvc_files
from mnist_pipe.models import saved
from mnist_pipe.training import checkpoint
from mnist_pipe.tuning.ledger import TrialRecord
from tests.support.data import normalized_split, random_split

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

FLIPS = 100_000
"""Number of flips over all kinds of files."""

Read = Callable[[], Any]
"""Reader of the files of one kind; it returns a value to compare."""


def arrays(split: Any) -> dict[str, Any]:
    """Return the fields of a split or of predictions, with the bytes of each array."""
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in vars(split).items()}


def raw(folder: Path) -> Read:
    splits.write_raw(folder / "raw.parquet", random_split(12, np.random.default_rng(0)))
    return lambda: arrays(splits.read_raw(folder / "raw.parquet"))


def normalized(folder: Path) -> Read:
    images = np.random.default_rng(1).normal(size=(6, 28, 28)).astype(np.float32)
    splits.write_normalized(folder / "normalized.parquet", normalized_split(images))
    return lambda: arrays(splits.read_normalized(folder / "normalized.parquet"))


def predicted(folder: Path) -> Read:
    split = random_split(20, np.random.default_rng(2))
    probability = np.full(20, 0.5, np.float32)
    content = predictions.Predictions(
        index=np.arange(20, dtype=np.uint32), label=split.labels, baseline_prediction=split.labels,
        prediction=split.labels, probability=probability, true_probability=probability, provenance={"dataset": "toy"},
    )  # fmt: skip
    predictions.write_predictions(folder / "predictions.parquet", content)
    return lambda: arrays(predictions.read_predictions(folder / "predictions.parquet"))


def published(folder: Path) -> Read:
    images = np.random.default_rng(3).integers(0, 256, (4, 28, 28), np.uint8)
    content = gzip.compress(idx.encode(images), mtime=0)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    file = PublishedFile(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def read() -> bytes:
        target = folder / "none" / "t10k-images-idx3-ubyte.gz"
        found = fetch_published(
            target, file, mirrors=[str(folder)], unreachable={}, timeout_seconds=1, log=lambda _: None
        )
        return found.read_bytes()

    return read


def model(folder: Path) -> Read:
    card = {"model": "linear", "model_params": {}, "dataset": "toy", "mean": 0.5, "std": 0.25, "temperature": 0.9}
    saved.save_model(folder, models.build("linear"), card=card)

    def read() -> Any:
        network, found = saved.load_model(folder)
        return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}, found

    return read


def state(folder: Path) -> Read:
    network = models.build("mlp", hidden=[2])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.zeros(1, 1, 28, 28)).sum().backward()
    optimizer.step()
    checkpoint.save_state(folder, model=network, optimizer=optimizer, progress={"epoch": 1, "step": 2, "history": []})

    def read() -> Any:
        again = models.build("mlp", hidden=[2])
        found = checkpoint.load_state(folder, model=again, optimizer=torch.optim.Adam(again.parameters(), lr=0.1))
        return {name: tensor.numpy().tobytes() for name, tensor in again.state_dict().items()}, found

    return read


def trials(folder: Path) -> Read:
    ledger = Ledger(storage=storage.open_uri(str(folder)), folder="trials", entry=TrialRecord)
    record = TrialRecord(trial=1, status="finished", config={"model": "mlp"}, history=[{"validation_accuracy": 0.5}])
    ledger.record(record, name="00001")

    def read() -> Any:
        found = ledger.read()
        if not found:
            raise PipelineError("the record is skipped, and its trial runs again")
        return list(map(vars, found))

    return read


def objects(folder: Path) -> Read:
    place = storage.open_uri(str(folder / "storage"))
    (folder / "file").write_bytes(np.random.default_rng(4).bytes(2000))
    digest = place.put(folder / "file")
    shutil.move(folder / "file", folder.parent / "kept")

    def read() -> bytes:
        place.put(folder.parent / "kept")  # a damaged object that was found is stored anew
        place.get(digest, folder.parent / "copy")
        return (folder.parent / "copy").read_bytes()

    return read


def checked_out(folder: Path) -> Read:
    """What a stage has written, and DVC's cache may have replaced since: JSON and a folder, digested in `dvc.lock`."""
    root = folder.parent / "project"
    names = [str(paths.BEST), str(paths.CANDIDATE)]
    atomic.write_json(folder / paths.BEST, {"config": {"model": "mlp", "learning_rate": 0.01}})
    for name in "ab":
        atomic.write_json(folder / paths.CANDIDATE / name, [name] * 50)
    outs = [{"path": name, "md5": dvc_stages.md5_of(folder / name)} for name in names]
    two = {"cmd": "true", "deps": names}
    atomic.write_json(root / "dvc.yaml", {"stages": {"one": {"cmd": "true"}, "two": two}})
    atomic.write_json(root / "dvc.lock", {"schema": "2.0", "stages": {"one": {"cmd": "true", "outs": outs}}})
    (root / "models").symlink_to(folder / "models")

    def read() -> Any:
        dvc_stages.verify_inputs("two", root)
        return [(root / paths.BEST).read_bytes(), *((root / paths.CANDIDATE / name).read_bytes() for name in "ab")]

    return read


def cached(folder: Path) -> Read:
    """The objects of DVC's cache, as `mnist-pipe doctor` reads them."""
    root = folder.parent / "project"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text(f"[cache]\n    dir = {folder}\n")
    random = np.random.default_rng(5)
    objects = [("", random.bytes(2000)), ("", random.bytes(300)), (".dir", b'[{"md5": "", "relpath": "a"}]')]
    for suffix, content in objects:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        atomic.write_bytes(folder / "files/md5" / digest[:2] / f"{digest[2:]}{suffix}", content)
    return lambda: dvc_files.check_objects(root)


KINDS = (raw, normalized, predicted, published, model, state, trials, objects, checked_out, cached)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_flipped_bit_goes_unnoticed(
    kind: Callable[[Path], Read], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    read = kind(folder)
    expected = read()
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    random = np.random.default_rng(KINDS.index(kind))
    refused = harmless = 0
    for _ in range(FLIPS // len(KINDS)):
        path = list(files)[random.integers(len(files))]
        content = bytearray(files[path])
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
        try:
            assert read() == expected, f"a flipped bit of {path.name} changes what is read"
            harmless += 1
        except PipelineError:
            refused += 1
        path.write_bytes(files[path])
    record_property("counted", f"{refused + harmless:,} flips, {refused:,} refused, {harmless:,} without effect")
