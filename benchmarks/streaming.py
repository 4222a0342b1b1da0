"""Compare training that streams its rows through Ray Data with training on rows in memory.

The two run alternately, each as the `train` stage runs it, with workers that hold every CPU. An epoch lasts from one
report to the next: its steps, the validation and the checkpoint. A run's first epoch is reported separately, because it
includes the start of the workers. The ratio is computed within each pair of runs.

    python -m benchmarks.streaming --model convnet --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock
from mnist_pipe import paths
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Scale, connected
from mnist_pipe.cluster.ray_session import scale as scale_of
from mnist_pipe.data.splits import NormalizedSplit, read_normalized
from mnist_pipe.training import ray_train, streaming
from mnist_pipe.training.recipe import Recipe

MODELS: dict[str, dict[str, Any]] = {
    "convnet": {"channels": [16, 32, 64]},
    "mlp": {"hidden": [15], "activation": "sigmoid"},
}


def run(
    recipe: Recipe, *, training: NormalizedSplit | streaming.Shards, validation: NormalizedSplit, scale: Scale
) -> tuple[list[float], float]:
    """Train once; return the seconds to the first report and between reports, and the last validation accuracy."""
    clock, started = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = ray_train.fit(
            recipe,
            training=training,
            validation=validation,
            name="run",
            storage=storage.open_uri(folder),
            state=Path(folder) / "state",
            scale=scale,
            progress=clock,
        )
    seconds = [after - before for before, after in pairwise([started, *clock.times])]
    return seconds, result.history[-1]["validation_accuracy"]


def main() -> None:
    """Print a line for each run, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=paths.NORMALIZED, help="folder of train and validation.parquet")
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    recipe = Recipe(
        model=options.model,
        model_params=MODELS[options.model],
        optimizer="adamw",
        learning_rate=0.005,
        batch_size=options.batch_size,
        num_epochs=options.epochs,
        rotation_degrees=5 if options.model == "convnet" else 0,
        translation_pixels=1 if options.model == "convnet" else 0,
    )
    folder = options.data.resolve()
    steady, total = [], []
    memory, validation = (read_normalized(folder / f"{split}.parquet") for split in ("train", "validation"))
    with connected("benchmark") as available:
        scale = scale_of(available, num_workers=options.workers, use_gpu=False, batch_size=recipe.batch_size)
        shards = streaming.shards(folder / "train.parquet")
        for repeat in range(options.repeats):
            medians, sums = {}, {}
            for name, source in (("memory", memory), ("stream", shards)):
                seconds, accuracy = run(recipe, training=source, validation=validation, scale=scale)
                medians[name], sums[name] = statistics.median(seconds[1:]), sum(seconds)
                print(
                    f"round {repeat + 1}, {name}: first epoch after {seconds[0]:.2f} s, then {min(seconds[1:]):.2f} to "
                    f"{max(seconds[1:]):.2f} s, median {medians[name]:.2f} s; validation accuracy {accuracy:.2%}",
                    flush=True,
                )
            steady.append(medians["stream"] / medians["memory"])
            total.append(sums["stream"] / sums["memory"])
    print(
        f"{recipe.model}, batch {recipe.batch_size}, {shards.num_rows:,} rows, "
        f"{scale.max_workers} worker(s), {available.num_cpus} CPUs"
    )
    for name, ratios in (("an epoch after the first", steady), (f"the run of {options.epochs} epochs", total)):
        print(f"stream / memory, {name}: median {statistics.median(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
