"""Measure the training time and accuracy of the recipes in `params.yaml`, and of the example of pytorch/examples.

A recipe is trained from memory with `mnist_pipe.training.loop`, as in search, train and studies, once for each seed.
The time is that of the training, without loading the data and without the test. The peer runs as published in the same
process, on files that are already unpacked, until its first epoch with at least 99 % on the test split.

    python -m benchmarks.training --seeds 10 --points "99.00 %" "99.50 %"
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mnist_pipe import paths, preflight
from mnist_pipe.data import sources
from mnist_pipe.data.normalization import normalize
from mnist_pipe.data.splits import NormalizedSplit, read_normalized
from mnist_pipe.models import forward
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.training import ema, loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import recipe_of

PEER_ACCURACY = 0.99


@dataclass(frozen=True, kw_only=True)
class Point:
    """Goal for a recipe: an accuracy and a time."""

    accuracy: float
    """Goal for the accuracy on the test split, as the mean over the seeds."""
    seconds: float
    """Maximum training time, in seconds."""
    recipe: str
    """Name of the recipe, a key of `recipes` in params.yaml."""
    num_epochs: int | None = None
    """Number of epochs that replaces the recipe's; None keeps it."""
    dataset: str = "mnist"
    """Data set of the recipe, a key of `sources.SOURCES`."""


POINTS = {
    "99.00 %": Point(accuracy=0.99, seconds=2.5, recipe="fast"),
    "99.50 %": Point(accuracy=0.995, seconds=25, recipe="standard"),
    "99.65 %": Point(accuracy=0.9965, seconds=150, recipe="best", num_epochs=5),
    "99.75 %": Point(accuracy=0.9975, seconds=1200, recipe="best"),
    "94.00 %": Point(accuracy=0.94, seconds=300, recipe="fashion", dataset="fashion-mnist"),
}


def measure(
    names: Sequence[str], *, seeds: int, peer: bool = True, log: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Train the recipe of each of `names` once for each seed, and then the peer.

    Args:
        names: keys of POINTS.
        seeds: number of seeds, from 0 on.
        peer: whether to run the example of pytorch/examples too.
        log: called with one line for each result.

    Returns:
        `points`: by name the goals, the `seconds` and `accuracies` of the seeds, `median_seconds`, `mean_accuracy` and
        its standard `deviation`; with the peer also `peer`: seconds and accuracy of each epoch, and `ratio`: the peer's
        total seconds over the first point's median.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {}
    for name in names:
        splits = _splits(POINTS[name].dataset, log=log)
        runs = [_run(POINTS[name], splits, seed=seed, device=device) for seed in range(seeds)]
        seconds, accuracies = zip(*runs, strict=True)
        found[name] = {
            "recipe": POINTS[name].recipe,
            "num_epochs": POINTS[name].num_epochs,
            "accuracy_goal": POINTS[name].accuracy,
            "seconds_goal": POINTS[name].seconds,
            "num_parameters": _parameters(POINTS[name]),
            "seconds": list(seconds),
            "median_seconds": statistics.median(seconds),
            "accuracies": list(accuracies),
            "mean_accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies) if seeds > 1 else 0.0,
        }
        log(
            f"{name}: {found[name]['mean_accuracy']:.3%} ± {found[name]['deviation']:.3%} over {seeds} seeds in "
            f"{min(seconds):.2f} to {max(seconds):.2f} s"
        )
    if not peer:
        return {"points": found}
    history = _peer(log)
    total = sum(seconds for seconds, _ in history)
    first = found[names[0]]
    log(f"pytorch/examples: {total:.1f} s, {total / first['median_seconds']:.0f} times as long as {names[0]}")
    return {"points": found, "peer": history, "ratio": total / first["median_seconds"]}


def _splits(dataset: str, *, log: Callable[[str], None]) -> dict[str, NormalizedSplit]:
    """Return the splits that stage `normalize` wrote, or would write for another published data set than MNIST."""
    if dataset == "mnist":
        return {name: read_normalized(path) for name, path in paths.SPLITS.items()}
    params = preflight.load_params(paths.PARAMS)
    mirrors, timeout_seconds = params.ingest.mirrors, params.ingest.timeout_seconds
    raw = sources.load(dataset, sources.fetch(dataset, mirrors=mirrors, timeout_seconds=timeout_seconds, log=log))
    found, _ = normalize(raw["train"], raw["test"], **params.normalize.model_dump())
    return found


def _run(point: Point, splits: dict[str, NormalizedSplit], *, seed: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of one training, and the accuracy on the test split."""
    params = preflight.load_params(paths.PARAMS)
    chosen = params.recipes[point.recipe]
    recipe = recipe_of(chosen.model_dump(), found={}, models={}, seed=seed)
    if point.num_epochs:
        recipe = replace(recipe, num_epochs=point.num_epochs)
    training = to_device(splits["train"].first(chosen.train_rows), device=device)
    few = to_device(splits["train"].first(10), device=device)  # cheap, as the loop validates after each epoch
    _synchronize(device)
    started = time.perf_counter()
    model, optimizer = loop.new_run(recipe, device=device)
    for _ in loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=few):
        pass
    _synchronize(device)
    seconds = time.perf_counter() - started
    test = splits["test"]
    scored = ShiftAveraged(model, background=training.background) if chosen.test_time_augmentation else model
    with ema.averaged(optimizer):
        correct = forward.logits(scored, test.images).argmax(1) == test.labels
    return seconds, float(correct.mean())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _parameters(point: Point) -> int:
    recipe = preflight.load_params(paths.PARAMS).recipes[point.recipe]
    model, _ = loop.new_run(recipe_of(recipe.model_dump(), found={}, models={}), device=torch.device("cpu"))
    return sum(parameter.numel() for parameter in model.parameters())


def _peer(log: Callable[[str], None]) -> list[tuple[float, float]]:
    from benchmarks import example

    history = []
    with tempfile.TemporaryDirectory() as folder:
        example.unpack(Path(folder))
        for seconds, accuracy in example.epochs(Path(folder)):
            history.append((seconds, accuracy))
            log(f"pytorch/examples, epoch {len(history)}: {seconds:.1f} s, {accuracy:.2%}")
            if accuracy >= PEER_ACCURACY:
                break
    return history


def main() -> None:
    """Print a line for each point, and for each epoch of the peer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--points", nargs="+", default=list(POINTS), choices=list(POINTS))
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    measure(options.points, seeds=options.seeds, peer=not options.no_peer, log=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
