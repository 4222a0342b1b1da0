"""Test that the engine needs torch, numpy, pyarrow and safetensors alone, and computes there what it computes here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_pipe.data import compression, polynomials
from tests.support import ROOT

NEEDED = ("torch", "numpy", "pyarrow", "safetensors")
PARTS = ("data", "models", "training")
OTHERS = {
    "data": {
        "pictures",
        "images",
        "ink",
        "sizing",
        "decoding",
        "parts",
        "ingestion",
    },  # a user's pictures: pillow and scipy
    "training": {"process_group", "progress", "ray_train", "streaming"},  # Ray's workers
}
MODULES = [
    f"mnist_pipe.{part}" + ("" if path.stem == "__init__" else f".{path.stem}")
    for part in PARTS
    for path in sorted((ROOT / "mnist_pipe" / part).glob("*.py"))
    if path.stem not in OTHERS.get(part, ())
] + ["mnist_pipe.inference.classifier", "mnist_pipe.inference.export", "mnist_pipe.tuning.vmapped", "benchmarks.gpu"]

BLOCK = """
import importlib, importlib.metadata, json, sys
blocked, modules, folder = set(json.loads(sys.argv[1])), json.loads(sys.argv[2]), sys.argv[3]
class Hiding:  # a finder of modules that finds none of the blocked ones
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
if blocked:  # nor is the project installed: it is on PYTHONPATH
    version = importlib.metadata.version
    def of_others(name):
        if name in ("mnist_pipe", "mnist-pipe"): raise importlib.metadata.PackageNotFoundError(name)
        return version(name)
    importlib.metadata.version = of_others
for name in modules: importlib.import_module(name)
assert not blocked & {name.partition(".")[0] for name in sys.modules}
"""
TRAIN = """
import gzip
from pathlib import Path
import numpy as np, torch
from mnist_pipe.data import idx, splits
from mnist_pipe.data.normalization import normalize
from mnist_pipe.data.splits import RawSplit
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import forward, saved
from mnist_pipe.training import checkpoint, loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
torch.set_num_threads(1)
folder = Path(folder)
random = np.random.default_rng(0)
raw = {}
for name, rows in (("train", 15_000), ("test", 100)):  # two row groups, whose checksums are combined
    images = random.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
    (folder / "images.gz").write_bytes(gzip.compress(idx.encode(images), compresslevel=1, mtime=0))
    images = idx.read(folder / "images.gz", kind="images", max_bytes=10**9)
    raw[name] = RawSplit(images=images, labels=(np.arange(rows) % 10).astype(np.uint8), provenance={"dataset": "mnist"})
    splits.write_raw(folder / f"{name}.raw", raw[name])
    assert (splits.read_raw(folder / f"{name}.raw").images == images).all()
found, _ = normalize(raw["train"], raw["test"], validation_rows=100, seed=0)
for name, split in found.items():
    splits.write_normalized(folder / f"{name}.parquet", split)
data = {name: to_device(splits.read_normalized(folder / f"{name}.parquet").first(320), device=torch.device("cpu"))
        for name in found}
recipe = Recipe(model="convnet", model_params={"channels": [4, 8]}, optimizer="muon", learning_rate=0.03, batch_size=64,
                num_epochs=2, rotation_degrees=8, translation_pixels=1, average_decay=0.9, precision="float32")
model, optimizer = loop.new_run(recipe, device=torch.device("cpu"))
history = []
for metrics in loop.train(recipe, model=model, optimizer=optimizer, training=data["train"],
                          validation=data["validation"]):
    history.append(metrics)
    checkpoint.save_state(folder / "state", model=model, optimizer=optimizer, progress={"epoch": 0, "step": 0})
checkpoint.load_state(folder / "state", model=model, optimizer=optimizer)
card = checkpoint.model_card(recipe.to_dict(), model=model, metrics=history[-1], tta=True,
                             data={name: folder / f"{name}.parquet" for name in ("train", "validation")})
saved.save_model(folder / "model", model, card=card)
probabilities = Classifier.load(folder / "model").predict(raw["test"].images).probabilities
print(json.dumps({"history": history, "sum": float(np.square(probabilities).sum()), "versions": card["versions"],
                  "sha256": card["data_sha256"]}))
"""


def allowed() -> set[str]:
    """Return the names of the distributions that the engine needs, and of those that these need."""
    found: set[str] = set()
    open_names = list(NEEDED)
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                required = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another platform
                continue
            open_names += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in required if "extra ==" not in line]
    return found


def others() -> list[str]:
    """Return the modules of every other distribution that is installed here."""
    needed, own = allowed(), {"mnist_pipe", "pipelines", "studies", "benchmarks", "tests"}
    return sorted(
        module
        for module, names in metadata.packages_distributions().items()
        if module not in own and not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & needed
    )


def run(code: str, folder: Path, *, blocked: list[str]) -> dict[str, Any]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(blocked), json.dumps(MODULES), str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_engine_trains_without_any_other_package_and_to_the_same_numbers(tmp_path: Path) -> None:
    blocked = others()
    assert {"ray", "isal", "pydantic", "joblib", "mlflow", "prefect", "httpx", "scipy", "pandas"} <= set(blocked)
    alone = run(BLOCK + TRAIN, tmp_path / "alone", blocked=blocked)
    beside = run(BLOCK + TRAIN, tmp_path / "beside", blocked=[])
    assert alone["versions"].pop("mnist_pipe") == "not installed"
    assert beside["versions"].pop("mnist_pipe") == metadata.version("mnist-pipe")
    assert alone == beside
    assert len(alone["history"]) == 2


def test_every_other_module_of_the_engine_is_one_of_ray_or_of_pictures() -> None:
    assert len(MODULES) > 35
    for part, names in OTHERS.items():
        assert all((ROOT / "mnist_pipe" / part / f"{name}.py").exists() for name in names)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combined_checksums_are_those_of_the_whole(first: bytes, second: bytes) -> None:
    expected = zlib.crc32(first + second)
    parts = zlib.crc32(first), zlib.crc32(second)
    assert polynomials.crc32_combine(*parts, len(second)) == expected
    assert compression.crc32_combine(*parts, len(second)) == expected


@pytest.mark.parametrize("num_bytes", [0, 1, 3136 * 14_000, 2**40 + 12_345])
def test_checksums_of_any_length_are_combined_as_isal_does(num_bytes: int) -> None:
    first, second = zlib.crc32(b"first"), zlib.crc32(b"second")
    assert polynomials.crc32_combine(first, second, num_bytes) == compression.crc32_combine(first, second, num_bytes)
