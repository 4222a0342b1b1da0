"""Time the reading of 60,000 PNGs, by `ingest` and by torchvision's ImageFolder with its DataLoader.

MNIST's training images are written as a folder a class. In each round both ways read all of them once, alternately,
from a warm page cache; a ratio is computed within a round. Ours ends with arrays, the classes and a test split; that of
torchvision yields each batch of tensors once. Ours reads in fresh processes, whose start is part of the time.

    python -m benchmarks.pictures --mirror ../shared/mnist --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from PIL import Image

from mnist_pipe.data import idx
from mnist_pipe.hardware import num_cpus
from mnist_pipe.params import loader

ROOT = Path(__file__).parent.parent
NUM_PICTURES = 60_000
_OURS = """
import resource, sys, time
from joblib.externals.loky import get_reusable_executor
from mnist_pipe.data import ingestion
from mnist_pipe.hardware import num_cpus
from mnist_pipe.params.schema import IngestParams

params = IngestParams.model_validate_json(sys.argv[2])
start = time.perf_counter()
found = ingestion.read(params, path=sys.argv[1])
seconds = time.perf_counter() - start
assert sum(len(split.labels) for split in found.values()) == int(sys.argv[3])
get_reusable_executor().shutdown(wait=True)  # only processes that have ended are counted
own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(seconds, 1024 * (own + num_cpus() * child))
"""


def measure(
    mirror: Path, *, repeats: int, num_pictures: int = NUM_PICTURES, log: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Time both ways `repeats` times.

    Args:
        mirror: folder of the four published files, `*.gz`.
        repeats: number of rounds.
        num_pictures: how many of the training images are written as pictures.
        log: called with one line for each measurement.

    Returns:
        `pictures_a_second` of each way, a list over the rounds; `ratio`, the median over the rounds; and `peak_bytes`,
        the most memory of ours: that of the process, and of its largest child for each CPU.
    """
    found: dict[str, list[float]] = {"ours": [], "ImageFolder and DataLoader": []}
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        _write(mirror, Path("pictures"), num_pictures=num_pictures)
        for repeat in range(repeats):
            seconds, memory = _ours("pictures", num_pictures=num_pictures)
            found["ours"].append(num_pictures / seconds)
            peak = max(peak, memory)
            found["ImageFolder and DataLoader"].append(num_pictures / _theirs("pictures", num_pictures=num_pictures))
            log(f"round {repeat + 1}: " + ", ".join(f"{name} {rates[-1]:,.0f}/s" for name, rates in found.items()))
    ours, theirs = found.values()
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return {"num_pictures": num_pictures, "pictures_a_second": found, "ratio": ratio, "peak_bytes": peak}


def _write(mirror: Path, folder: Path, *, num_pictures: int) -> None:
    images = idx.read(mirror / "train-images-idx3-ubyte.gz", kind="images", max_bytes=1 << 26)[:num_pictures]
    labels = idx.read(mirror / "train-labels-idx1-ubyte.gz", kind="labels", max_bytes=1 << 20)[:num_pictures]
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        Image.fromarray(image).save(folder / str(label) / f"{number}.png")


def _ours(folder: str, *, num_pictures: int) -> tuple[float, float]:
    """Return the seconds and the bytes of memory of a reading by a process of its own."""
    shipped = loader.load(ROOT / "params.yaml", names=None).ingest
    params = shipped.model_copy(update={"dataset": "images", "name": "digits", "path": folder})
    command = [sys.executable, "-c", _OURS, folder, params.model_dump_json(), str(num_pictures)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds, num_bytes = map(float, done.stdout.split())
    return seconds, num_bytes


def _theirs(folder: str, *, num_pictures: int) -> float:
    """Return the seconds of one pass of a DataLoader with a process for each CPU, as torchvision's pages write it."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.vision import datasets, transforms

    as_tensor = [transforms.Grayscale(), transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
    start = time.perf_counter()
    pictures = datasets.ImageFolder(folder, transform=transforms.Compose(as_tensor))
    read = sum(len(labels) for _, labels in DataLoader(pictures, batch_size=256, num_workers=num_cpus()))
    assert read == num_pictures
    return time.perf_counter() - start


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mirror", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES)
    options = parser.parse_args()
    found = measure(options.mirror.resolve(), repeats=options.repeats, num_pictures=options.pictures, log=print)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
