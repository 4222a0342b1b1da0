"""Measure how costs grow with the numbers of images, trials, workers and parameters.

Each cost is drawn against its size with the exponent of a straight line in logarithms, seconds = c * size^exponent,
fitted through all sizes and through the largest three.

    python -m benchmarks.growth --plot benchmarks/growth.png
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mnist_pipe import paths, preflight
from mnist_pipe.local import services

COPIES = (1, 2, 4, 8, 16, 32)
TRIALS = (1, 4, 16, 64, 256)
WORKERS = (1, 2, 3, 4)
CHANNELS = (4, 8, 16, 32, 64, 128)
ROWS = 6_000
Points = Iterator[tuple[float, float]]  # pairs of a size and its seconds


def measure(*, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure each cost, and return by its name the `size`s, `seconds`, `exponent` and `last_exponent`.

    `last_exponent` is that of the largest three sizes.
    """
    os.environ.update(services.ray_environment(Path.cwd()))  # Ray reads it only on import
    found = {
        "images": _images(log),
        "parameters": _parameters(log),
        "trials": _trials(log),
        "workers": _workers(log),
    }
    return {name: _with_exponents(points) for name, points in found.items()}


def _with_exponents(points: Points) -> dict[str, Any]:
    sizes, seconds = zip(*points, strict=True)
    across, up = np.log(sizes), np.log(seconds)
    return {
        "size": list(sizes),
        "seconds": list(seconds),
        "exponent": float(np.polyfit(across, up, 1)[0]),
        "last_exponent": float(np.polyfit(across[-3:], up[-3:], 1)[0]),
    }


def _epoch(*, channels: tuple[int, ...], num_rows: int, copies: int = 1) -> tuple[float, int]:
    """Return the seconds of an epoch of the standard recipe over `num_rows` rows, and the network's parameter count."""
    import torch

    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.training import loop
    from mnist_pipe.training.batches import DeviceSplit, to_device
    from mnist_pipe.training.recipe import recipe_of

    device = torch.device("cpu")
    split = read_normalized(paths.NORMALIZED / "train.parquet")
    images = to_device(split.first(num_rows), device=device)
    data = DeviceSplit(
        images=images.images.repeat(copies, 1, 1, 1), labels=images.labels.repeat(copies), background=images.background
    )
    point = preflight.load_params(paths.PARAMS).recipes["standard"].model_dump()
    point["model_params"] = {**point["model_params"], "channels": list(channels)}
    recipe = recipe_of(point, found={}, models={}, num_epochs=1)
    few = to_device(split.first(10), device=device)
    model, optimizer = loop.new_run(recipe, device=device)
    started = time.perf_counter()
    for _ in loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=few):
        pass
    return time.perf_counter() - started, sum(parameter.numel() for parameter in model.parameters())


def _images(log: Callable[[str], None]) -> Points:
    """Yield number of images and seconds; copies of the training rows differ because the recipe augments each."""
    _epoch(channels=(16, 32, 64), num_rows=ROWS)
    for copies in COPIES:
        seconds, _ = _epoch(channels=(16, 32, 64), num_rows=55_000, copies=copies)
        log(f"{55_000 * copies:,} images: {seconds:.1f} s per epoch")
        yield 55_000 * copies, seconds


def _parameters(log: Callable[[str], None]) -> Points:
    for channels in CHANNELS:
        seconds, parameters = _epoch(channels=(channels, 2 * channels, 4 * channels), num_rows=ROWS)
        log(f"{parameters:,} parameters: {seconds:.2f} s for {ROWS:,} images")
        yield parameters, seconds


def _trials(log: Callable[[str], None]) -> Points:
    """Yield number of trials and seconds of a search whose trials do nothing, which leaves the search's own cost."""
    from benchmarks.search import no_op_seconds
    from mnist_pipe.cluster.ray_session import connected

    with connected("benchmark") as available:
        for trials in TRIALS:
            with tempfile.TemporaryDirectory() as folder:
                seconds, _ = no_op_seconds(available, trials=trials, folder=Path(folder))
            log(f"{trials} trials that do nothing: {seconds:.1f} s")
            yield trials, seconds


def _workers(log: Callable[[str], None]) -> Points:
    """Yield number of workers and mean seconds of an epoch, on a Ray that counts four CPUs, however many there are."""
    import ray

    from benchmarks.distributed import LONG, fit_seconds
    from mnist_pipe.cluster.ray_session import Cluster

    most = max(WORKERS)
    context = ray.init(
        address="local",
        num_cpus=most,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    address = str(context.address_info["address"])
    available = Cluster(num_cpus=most, num_gpus=0, nodes=(most,), grows=False, address=address)
    for workers in WORKERS:
        _, seconds = fit_seconds(LONG, available=available, num_workers=workers, cpus_per_worker=1)
        log(f"{workers} workers with one thread each: {seconds:.2f} s per epoch")
        yield workers, seconds
    ray.shutdown()


LABELS = {
    "images": ("images", "seconds an epoch"),
    "parameters": ("parameters", f"seconds for {ROWS:,} images"),
    "trials": ("trials that do nothing", "seconds of the search"),
    "workers": ("workers, one thread each", "seconds an epoch"),
}


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw each cost against its size on logarithmic axes, and save the figure to `path`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (name, (across, up)) in zip(figure.subplots(2, 2).flat, LABELS.items(), strict=True):
        points = found[name]
        axes.loglog(points["size"], points["seconds"], "o-")
        axes.set(
            xlabel=across,
            ylabel=up,
            title=f"exponent {points['exponent']:.2f}, of the largest three {points['last_exponent']:.2f}",
        )
        axes.set_xticks(points["size"])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(path, dpi=100)


def _short(size: float) -> str:
    if size >= 1e6:
        return f"{size / 1e6:.2g} M"
    return f"{size / 1e3:.3g} k" if size >= 1e3 else f"{size:g}"


def main() -> None:
    """Print a line for each size, then draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("growth.png"))
    options = parser.parse_args()
    draw(measure(log=partial(print, flush=True)), options.plot)


if __name__ == "__main__":
    main()
