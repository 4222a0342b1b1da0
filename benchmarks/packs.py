"""Time configurations that train together in a pack, and one that trains alone.

For each model, batch size and precision, one run of `loop.train` and a pack of each size alternate epoch by epoch. The
ratio of validation rows to training rows is that of a search. The result is the time of an epoch per member, the median
over the epochs after the first. Pixels and labels are noise, which does not change the time.

    python -m benchmarks.packs --model mlp linear --batch-size 128 --members 2 4 8 16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.tuning import vmapped

MODELS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"hidden": [15]},
    "lenet5": {},
    "convnet": {"channels": [16, 32, 64]},
}
VALIDATION = 5 / 11
"""Validation rows per training row; a search has 5,000 and 11,000."""


def noise(num_rows: int, *, device: torch.device) -> DeviceSplit:
    """Return `num_rows` random images, float32 `(num_rows, 1, 28, 28)`, with random labels, int64 `(num_rows,)`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_rows, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (num_rows,), generator=generator)
    return DeviceSplit(images=images.to(device), labels=labels.to(device), background=-0.4)


def alone(recipe: Recipe, *, training: DeviceSplit, validation: DeviceSplit, device: torch.device) -> Iterator[object]:
    """Return the iterator over the epochs of `recipe` trained by itself."""
    model, optimizer = loop.new_run(recipe, device=device)
    return loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation)


def seconds(epochs: Iterator[object]) -> float:
    """Run the next epoch, and return its seconds."""
    start = time.perf_counter()
    next(epochs)
    return time.perf_counter() - start


def measure(
    recipe: Recipe, *, members: Sequence[int], num_rows: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Time a run alone and packs of the sizes `members`, over `repeats` epochs.

    Returns:
        `alone`: median seconds of an epoch; `packed`: median seconds of an epoch per member, by the number of members;
        `speedup`: the first over the second, by the number of members.
    """
    training = noise(num_rows, device=device)
    data: dict[str, Any] = {
        "training": training,
        "validation": noise(int(num_rows * VALIDATION), device=device),
        "device": device,
    }
    recipe = replace(recipe, num_epochs=repeats + 1)
    runs: dict[int, Iterator[object]] = {1: alone(recipe, **data)}
    for number in members:
        rates = [recipe.learning_rate * (1 + member / number) for member in range(number)]
        runs[-number] = vmapped.train_pack([replace(recipe, learning_rate=rate) for rate in rates], **data)
    times = [{number: seconds(epochs) / abs(number) for number, epochs in runs.items()} for _ in range(repeats + 1)]
    medians = {number: statistics.median(epoch[number] for epoch in times[1:]) for number in runs}
    return {
        "alone": medians[1],
        "packed": {number: medians[-number] for number in members},
        "speedup": {number: medians[1] / medians[-number] for number in members},
    }


def main() -> None:
    """Print a line for each model, batch size and precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--augment", action="store_true", help="rotate and shift, as most of a search's trials do")
    parser.add_argument("--rows", type=int, default=4096, help="to train on in an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in options.model:
        for precision in options.precision:
            for batch_size in options.batch_size:
                recipe = Recipe(
                    model=model,
                    model_params=MODELS[model],
                    optimizer=options.optimizer,
                    learning_rate=1e-4,
                    weight_decay=1e-4,
                    batch_size=batch_size,
                    num_epochs=1,
                    rotation_degrees=5 if options.augment else 0,
                    translation_pixels=1 if options.augment else 0,
                    precision=precision,
                )
                found = measure(
                    recipe, members=options.members, num_rows=options.rows, repeats=options.repeats, device=device
                )
                shown = ", ".join(
                    f"{number}: {1000 * found['packed'][number]:.0f} ms ({found['speedup'][number]:.2f} times as fast)"
                    for number in options.members
                )
                print(
                    f"{model}, {precision}, batch {batch_size}: an epoch takes {1000 * found['alone']:.0f} ms alone, "
                    f"and per member in packs of {shown}",
                    flush=True,
                )
    print(f"{options.rows:,} rows, {device.type}, {options.threads} thread(s), augmented: {options.augment}")


if __name__ == "__main__":
    main()
