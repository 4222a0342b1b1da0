"""Measure how many images a second a recipe's model and pytorch/examples classify, from memory.

The training images go through `models.forward.logits`, as in `evaluate` and `register`, in float32 and with the weights
of a new run, which do not change the time. The peer's network takes the same tensor in batches of 1,000, without its
DataLoader. The two alternate; the first round of each is not counted.

    python -m benchmarks.inference --recipe fast --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import example
from mnist_pipe import paths, preflight
from mnist_pipe.data.splits import read_normalized
from mnist_pipe.models import forward
from mnist_pipe.training import loop
from mnist_pipe.training.recipe import recipe_of


def measure(*, recipe: str = "fast", repeats: int = 5, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure both networks, and return `images_per_second` of each and `ratio`, ours over the peer's.

    All are medians over the rounds.
    """
    images = read_normalized(paths.NORMALIZED / "train.parquet").images
    point = preflight.load_params(paths.PARAMS).recipes[recipe]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = loop.new_run(recipe_of(point.model_dump(), found={}, models={}), device=device)
    peer, tensor = example.Net().to(device).eval(), torch.tensor(images, device=device).unsqueeze(1)

    @torch.inference_mode()
    def of_peer() -> None:
        for batch in tensor.split(1000):
            peer(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    ways = {"ours": lambda: forward.logits(model, images), "pytorch/examples": of_peer}
    rounds: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        rates = {}
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            rates[name] = len(images) / (time.perf_counter() - started)
        rounds.append(rates)
    found = {name: statistics.median(rates[name] for rates in rounds[1:]) for name in ways}
    ratio = statistics.median(rates["ours"] / rates["pytorch/examples"] for rates in rounds[1:])
    log(", ".join(f"{name} {rate:,.0f} images/s" for name, rate in found.items()) + f", ratio {ratio:.1f}")
    return {"images_per_second": found, "ratio": ratio}


def main() -> None:
    """Print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measure(recipe=options.recipe, repeats=options.repeats, log=print)


if __name__ == "__main__":
    main()
