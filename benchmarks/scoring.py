"""Measure how many rows a second `mnist-pipe score` scores.

The test split is repeated up to `--rows` rows, raw and standardised, and scored by an untrained convnet or by the
registered `--model`. The rate is printed both with and without the start of Ray and its actors.

    python -m benchmarks.scoring --rows 600000 --repeats 3
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mnist_pipe.local import services


def tiled(split: Any, num_rows: int) -> Any:
    """Return the split with its rows repeated to `num_rows` rows; every array keeps its dtype and its other axes."""
    rows = np.arange(num_rows) % len(split.labels)
    arrays = {name: value[rows] for name, value in vars(split).items() if isinstance(value, np.ndarray)}
    return dataclasses.replace(split, **arrays)


def main() -> None:
    """Print a line for each run, then the rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of raw and normalized")
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="NAME@ALIAS or NAME/VERSION; an untrained convnet by default")
    options = parser.parse_args()
    os.environ.update(services.ray_environment(Path.cwd()))
    import torch

    from mnist_pipe import models
    from mnist_pipe.data import splits
    from mnist_pipe.inference import batch, registered
    from mnist_pipe.inference.classifier import Classifier

    test: dict[str, Any] = {"raw": splits.read_raw(options.data / "raw/test.parquet")}
    test["normalized"] = splits.read_normalized(options.data / "normalized/test.parquet")
    if options.model:
        model = registered.load(options.model, root=Path.cwd())
    else:
        torch.manual_seed(0)
        network = models.build("convnet", channels=[16, 32, 64]).eval()
        card = {key: test["normalized"].provenance[key] for key in ("mean", "std")}
        model = Classifier(network, card=card, name="untrained/0")
    whole: dict[str, list[float]] = {"raw": [], "normalized": []}
    steady: dict[str, list[float]] = {"raw": [], "normalized": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("raw", splits.write_raw), ("normalized", splits.write_normalized)):
            write(Path(folder) / f"{name}.parquet", tiled(test[name], options.rows))
        for repeat in range(options.repeats):
            for name in whole:
                output = Path(folder) / f"{name}-{repeat}"
                done = batch.score(Path(folder) / f"{name}.parquet", output, model=model)
                whole[name].append(done.num_rows / done.seconds)
                steady[name].append(done.num_rows / (done.seconds - done.start_seconds))
                print(
                    f"round {repeat + 1}, {name}: {done.num_rows:,} rows in {done.seconds:.1f} s, "
                    f"{done.start_seconds:.1f} s of them until the first rows",
                    flush=True,
                )
    print(f"{model.name}, {sum(p.numel() for p in model.network.parameters()):,} parameters, {os.cpu_count()} CPUs")
    for kind, rates in (("with the start", whole), ("after the start", steady)):
        for name, found in rates.items():
            print(f"{name}, {kind}: median {statistics.median(found):,.0f} rows/s, lowest {min(found):,.0f} rows/s")


if __name__ == "__main__":
    main()
