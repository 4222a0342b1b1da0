"""Measure the engine on one GPU, in at most ten minutes: times, packs, inference, agreement with the CPU.

It needs torch, numpy, pyarrow and safetensors alone, and the four published files of MNIST; a checkout on PYTHONPATH is
enough. What there is, is written to the output as soon as a part ends; a part that fails is a line there, and does not
stop the others. No part starts after the budget is spent. Without a GPU it is a dry run: everything is tried on few
rows, and nothing is written.

    python -m benchmarks.gpu --mnist ../shared/mnist --output benchmarks/gpu.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_pipe import hardware
from mnist_pipe.atomic import write_json
from mnist_pipe.data import idx
from mnist_pipe.data.facts import levels, standardise
from mnist_pipe.models import forward, numerics
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.training import checkpoint, ema, loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.recorded import recorded
from mnist_pipe.tuning import vmapped

BUDGET_SECONDS = 420
"""Seconds after which no part starts, so that the last one ends within ten minutes."""
CPU = torch.device("cpu")
MEAN, STD = 0.1307, 0.3081
PRECISIONS = ("float32", "tf32", "bfloat16")
MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Recipe of params.yaml with its goal on a GPU; pydantic and ruamel.yaml, which read that file, are not needed."""

    recipe: Recipe
    train_rows: int | None
    accuracy: float
    seconds: float
    """Goal for the device's time, in seconds."""
    num_seeds: int
    test_time_augmentation: bool = False


def _muon(**values: Any) -> Recipe:
    common = {"model": "convnet", "optimizer": "muon", "learning_rate": 0.03, "weight_decay": 1e-5, "batch_size": 128}
    return Recipe(**{**common, "schedule": "triangle", "label_smoothing": 0.05, **values})


_SMALL = {"channels": [16, 32, 64], "crop": 3, "last_pool": False}
GOALS = {
    "fast": Goal(
        recipe=_muon(model_params=_SMALL, num_epochs=1, label_smoothing=0.1),
        train_rows=33_000,
        accuracy=0.99,
        seconds=0.1,
        num_seeds=10,
    ),
    "standard": Goal(
        recipe=_muon(model_params=_SMALL, num_epochs=7, rotation_degrees=8, translation_pixels=1),
        train_rows=None,
        accuracy=0.995,
        seconds=1.5,
        num_seeds=5,
    ),
    "best": Goal(
        recipe=_muon(
            model_params={"channels": [24, 48, 96], "convolutions": 2},
            num_epochs=24,
            rotation_degrees=10,
            translation_pixels=1.5,
        ),
        train_rows=None,
        accuracy=0.9975,
        seconds=10,
        num_seeds=3,
        test_time_augmentation=True,
    ),
}
LENET = Recipe(model="lenet5", optimizer="adam", learning_rate=1e-3, batch_size=128, num_epochs=5, precision="float32")
NUM_LENETS, LENETS_SECONDS = 1024, 60
IMAGES_PER_SECOND = 20_000_000


class Bench:
    """The data on the device, and the sizes: those of a measurement, or those of a dry run."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        self.device, self.is_dry = device, device.type == "cpu"
        self.images, self.labels = _read(folder, "train")
        self.test_images, self.test_labels = _read(folder, "t10k")

    def split(self, num_rows: int | None, *, device: torch.device | None = None) -> DeviceSplit:
        """Return the first training rows on the device; on a dry run, at most 640."""
        rows = slice(min(num_rows or len(self.labels), 640) if self.is_dry else num_rows)
        device = device or self.device
        return DeviceSplit(
            images=torch.tensor(_standardised(self.images[rows]), device=device).unsqueeze(1),
            labels=torch.tensor(self.labels[rows].astype(np.int64), device=device),
            background=-MEAN / STD,
        )

    def test(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the standardised test images, float32 `(N, 28, 28)`, and their labels; on a dry run, 500."""
        rows = slice(500 if self.is_dry else None)
        return _standardised(self.test_images[rows]), self.test_labels[rows]

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """Append the block's seconds to the list: those between two events on the device, or on a CPU the clock's."""
        seconds: list[float] = []
        if self.is_dry:
            started = time.perf_counter()
            yield seconds
            seconds.append(time.perf_counter() - started)
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        yield seconds
        last.record()
        torch.cuda.synchronize()
        seconds.append(first.elapsed_time(last) / 1000)


def _read(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = idx.read(folder / f"{name}-images-idx3-ubyte.gz", kind="images", max_bytes=MAX_BYTES)
    return images, idx.read(folder / f"{name}-labels-idx1-ubyte.gz", kind="labels", max_bytes=MAX_BYTES)


def _standardised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return standardise(images, levels(MEAN, STD))


def _train(bench: Bench, goal: Goal, recipe: Recipe, data: DeviceSplit) -> tuple[float, float]:
    """Train as `loop.train` does, without validation; return the seconds and the accuracy on the test split."""
    with bench.timed() as seconds:
        model, optimizer = loop.new_run(recipe, device=bench.device)
        learner = recorded(loop.Network(recipe, model=model, optimizer=optimizer))
        for _ in loop.epochs(learner, recipe, training=data):
            pass
    images, labels = bench.test()
    scored = ShiftAveraged(model, background=data.background) if goal.test_time_augmentation else model
    with ema.averaged(optimizer):
        correct = forward.logits(scored, images).argmax(1) == labels
    return seconds[0], float(correct.mean())


def training(bench: Bench) -> dict[str, Any]:
    """Return the seconds and accuracies of each recipe's seeds in each precision, after a run that is not counted."""
    found: dict[str, Any] = {}
    for name, goal in GOALS.items():
        data = bench.split(goal.train_rows)
        found[name] = {"goal": {"accuracy": goal.accuracy, "seconds": goal.seconds}}
        for precision in PRECISIONS:
            # What `auto` should be is chosen by the seconds; the accuracy of all seeds is that of the choice, tf32.
            num_seeds = goal.num_seeds if precision == "tf32" else 2
            recipe = replace(goal.recipe, precision=precision)
            if bench.is_dry:
                num_seeds, recipe = 1, replace(recipe, num_epochs=1)
            runs = [_train(bench, goal, replace(recipe, seed=seed), data) for seed in (0, *range(num_seeds))]
            seconds, accuracies = zip(*runs[1:], strict=True)
            found[name][precision] = {
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "accuracies": accuracies,
                "mean_accuracy": statistics.mean(accuracies),
            }
    return found


def launches(bench: Bench) -> dict[str, Any]:
    """Return a step's kernels and their microseconds on the device, run as it is and replayed, by recipe."""
    found: dict[str, Any] = {}
    num_steps = 4 if bench.is_dry else 60
    kind = torch.profiler.ProfilerActivity.CPU if bench.is_dry else torch.profiler.ProfilerActivity.CUDA
    recipes = {name: goal.recipe for name, goal in GOALS.items()} | {"lenet5": LENET}
    for name, recipe in recipes.items():
        recipe, found[name] = replace(recipe, num_epochs=1, precision="tf32"), {}
        data = bench.split(num_steps * recipe.batch_size)
        for way, wrap in (("eager", lambda learner: learner), ("replayed", recorded)):
            model, optimizer = loop.new_run(recipe, device=bench.device)
            learner = wrap(loop.Network(recipe, model=model, optimizer=optimizer))
            with torch.profiler.profile(activities=[kind]) as profile:
                for _ in loop.epochs(learner, recipe, training=data):
                    pass
            events = [event for event in profile.events() if "CUDA" in str(event.device_type)]
            found[name][way] = {
                "kernels": len(events) / num_steps,
                "microseconds": sum(event.device_time for event in events) / num_steps,
            }
    return found


def packs(bench: Bench) -> dict[str, Any]:
    """Return the rate of packs of LeNet-5, with convolutions as products and as groups, and 1,024 of them in full."""
    sizes = (2,) if bench.is_dry else (16, 64, 256)
    data, few = bench.split(128 * (2 if bench.is_dry else 40)), bench.split(1000)
    found: dict[str, Any] = {} if bench.is_dry else {"planned": vmapped.max_members(LENET, device=bench.device)}
    rates: dict[tuple[str, bool], float] = {}
    for precision in PRECISIONS:
        for products in (True, False):
            with mock.patch.object(vmapped, "packs_convolutions", return_value=products):
                for size in sizes:
                    members = _members(replace(LENET, precision=precision, num_epochs=2), size)
                    epochs = vmapped.train_pack(members, training=data, validation=few, device=bench.device)
                    next(epochs)
                    with bench.timed() as seconds:
                        next(epochs)
                    rates[precision, products] = size * data.num_rows / seconds[0]
                    way = f"{precision}, {'products' if products else 'groups'}, {size}"
                    found[way] = {"images_per_second": rates[precision, products], **_memory(bench)}
    (precision, products), rate = max(rates.items(), key=lambda item: item[1])
    number = 4 if bench.is_dry else NUM_LENETS
    whole = bench.split(55_000)
    forecast = number * LENET.num_epochs * whole.num_rows / rate
    chosen = {"precision": precision, "products": products}
    found["all"] = {**chosen, "members": number, "goal": LENETS_SECONDS, "forecast": forecast}
    if forecast > 2 * LENETS_SECONDS:
        return found
    with mock.patch.object(vmapped, "packs_convolutions", return_value=products), bench.timed() as seconds:
        recipes = _members(replace(LENET, precision=precision, num_epochs=1 if bench.is_dry else 5), number)
        # As a search plans them: a process trains one pack after the other.
        most = 2 if bench.is_dry else vmapped.max_members(recipes[0], device=bench.device)
        for start in range(0, number, most):
            part = recipes[start : start + most]
            for _ in vmapped.train_pack(part, training=whole, validation=few, device=bench.device):
                pass
    found["all"]["seconds"] = seconds[0]
    return found


def _members(recipe: Recipe, number: int) -> list[Recipe]:
    return [replace(recipe, learning_rate=recipe.learning_rate * (0.5 + member / number)) for member in range(number)]


def _memory(bench: Bench) -> dict[str, float]:
    if bench.is_dry:
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peak}


class FromBytes(nn.Module):
    """The engine's part of `score` on a device: grey levels in, classes out."""

    def __init__(self, network: nn.Module, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return classes, uint8 `(N,)`, of grey levels, uint8 `(N, 1, 28, 28)`."""
        pixels = images.to(self._dtype).sub_(255 * MEAN).mul_(1 / (255 * STD))
        return self.network(pixels.contiguous(memory_format=torch.channels_last)).argmax(1).to(torch.uint8)


@torch.inference_mode()
def inference(bench: Bench) -> dict[str, Any]:
    """Return images a second: `forward.logits` of float32 on the host, and bytes that are on the device already."""
    model, _ = loop.new_run(GOALS["fast"].recipe, device=bench.device)
    images, _ = bench.test()
    forward.logits(model, images)
    with bench.timed() as seconds:
        forward.logits(model, images)
    found: dict[str, Any] = {"goal": IMAGES_PER_SECOND, "logits of the host's float32": len(images) / seconds[0]}
    repeats = 1 if bench.is_dry else 50
    for rows in (250,) if bench.is_dry else (16_384, 65_536, 262_144):
        resident = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, device=bench.device)
        for precision in PRECISIONS:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            network = FromBytes(loop.new_run(GOALS["fast"].recipe, device=bench.device)[0].eval(), dtype=dtype)
            with numerics.products(precision, bench.device):
                for _ in range(3):
                    network(resident)
                with bench.timed() as seconds:
                    for _ in range(repeats):
                        network(resident)
            found[f"resident bytes, {precision}, {rows}"] = repeats * rows / seconds[0]
    return found


def agreement(bench: Bench) -> dict[str, Any]:
    """Return how far five steps on the device are from those on the CPU: relative differences of all weights."""
    found: dict[str, Any] = {}
    recipes = {name: goal.recipe for name, goal in GOALS.items()} | {"lenet5": LENET}
    for name, recipe in recipes.items():
        for precision in PRECISIONS:
            five = replace(recipe, num_epochs=1, precision=precision)
            vectors = []
            for device, own in ((CPU, replace(five, precision="float32")), (bench.device, five)):
                model, optimizer = loop.new_run(own, device=device)
                data = bench.split(5 * own.batch_size, device=device)
                list(loop.train(own, model=model, optimizer=optimizer, training=data, validation=data))
                vectors.append(_weights(model))
            found[f"{name}, {precision}"] = float((vectors[0] - vectors[1]).norm() / vectors[0].norm())
    return found


def same_bits(bench: Bench) -> dict[str, bool]:
    """Return whether two runs, and a run that resumed from a checkpoint, have the same bits, by recipe."""
    found = {}
    for name, recipe in {"standard": GOALS["standard"].recipe, "lenet5": LENET}.items():
        recipe, data = replace(recipe, num_epochs=2, average_decay=0.9), bench.split(1280)
        vectors = []
        for stops in (False, False, True):
            model, optimizer = loop.new_run(recipe, device=bench.device)
            epochs = loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=data)
            if stops:
                next(epochs)
                with tempfile.TemporaryDirectory() as folder:
                    checkpoint.save_state(Path(folder), model=model, optimizer=optimizer, progress={})
                    model, optimizer = loop.new_run(recipe, device=bench.device)
                    checkpoint.load_state(Path(folder), model=model, optimizer=optimizer)
                start = loop.Position(epoch=1)
                epochs = loop.train(
                    recipe, model=model, optimizer=optimizer, training=data, validation=data, start=start
                )
            list(epochs)
            vectors.append(_weights(model))
        found[f"{name}, again"] = torch.equal(vectors[0], vectors[1])
        found[f"{name}, resumed"] = torch.equal(vectors[0], vectors[2])
    return found


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in model.state_dict().values()])


PARTS: dict[str, Callable[[Bench], Any]] = {
    "agreement": agreement,
    "same_bits": same_bits,
    "training": training,
    "inference": inference,
    "packs": packs,
    "launches": launches,
}


def measure(bench: Bench, names: list[str], *, budget_seconds: float, save: Callable[[dict[str, Any]], None]) -> int:
    """Run the named parts, call `save` with what there is after each, and return the number that failed."""
    started, num_failed = time.monotonic(), 0
    found: dict[str, Any] = {**_stamp(), "goals": {name: asdict(goal) for name, goal in GOALS.items()}}
    for name in names:
        if (spent := time.monotonic() - started) > budget_seconds:
            found[name] = {"skipped": f"{spent:.0f} s were spent"}
        else:
            try:
                found[name] = PARTS[name](bench)
            except Exception as error:
                num_failed += 1
                places = [f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)]
                found[name] = {"failed": f"{type(error).__name__}: {error}"[:500], "at": places[-6:]}
            found.setdefault("seconds", {})[name] = round(time.monotonic() - started - spent, 1)
        print(name, json.dumps(found[name], indent=1), flush=True)
        save(found)
    return num_failed


def _stamp() -> dict[str, str]:
    """Return what identifies a measurement; `evaluation.stamp` needs more packages."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "hardware": f"{hardware.check_gpus()}, {hardware.num_cpus()} CPU cores of {hardware.cpu_name()}",
        "torch": torch.__version__,
    }


def main() -> int:
    """Measure, print and write the result; return the number of parts that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--mnist", type=Path, default=Path("../shared/mnist"), help="folder of the four .gz files")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("gpu.json"))
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="in seconds")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        print("no GPU: a dry run, of which nothing is written")
    bench = Bench(options.mnist, device=device)

    def save(found: dict[str, Any]) -> None:
        if not bench.is_dry:
            write_json(options.output, found)

    return measure(bench, options.names or list(PARTS), budget_seconds=options.budget, save=save)


if __name__ == "__main__":
    raise SystemExit(main())
