"""Time the data stages and the usual ways of doing the same with pandas, Ray Data and torchvision.

There are three steps: the four published files to raw Parquet, raw to normalized Parquet, and normalized Parquet to the
tensor for training. In each round every way runs each step once, alternately, on the same machine, with Ray already
started and a warm page cache. A ratio is computed within a round: the other way's time over ours. The other ways read
the files through torchvision and then store one column per pixel (pandas), one list per image (pandas) or a tensor
column (Ray Data). Unlike ours, they check nothing.

    python -m benchmarks.data --mirror ../shared/mnist --repeats 3
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_pipe.data import normalization, sources
from mnist_pipe.data.splits import SIDE, read_normalized, read_raw, write_all, write_normalized, write_raw
from mnist_pipe.local import services
from mnist_pipe.training.batches import to_device

VALIDATION_ROWS = 5_000
MEAN, STD = 0.1307, 0.3081  # given to the other ways, which need not compute the moments of the training rows
LIMITS = {"files to raw": 1.0, "raw to normalized": 1.0, "normalized to tensor": 0.08}  # maximum seconds for our way
SPLITS = ("train", "test")


def measure(mirror: Path, *, repeats: int, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Time every way of every step `repeats` times.

    Args:
        mirror: folder of the four published files, `*.gz`.
        repeats: number of rounds.
        log: called with one line for each measurement.

    Returns:
        For each step, `limit_seconds`, `ours` and one entry for each other way. An entry has the `seconds` of each
        round, their `median` and their `least`. The entry of another way also has `ratio`, the median over the rounds
        of its time over ours, and `least_ratio`, the smallest of them.
    """
    os.environ.update(services.ray_environment(Path.cwd()))  # Ray reads it only on import
    from mnist_pipe.cluster.ray_session import connected

    seconds: dict[str, dict[str, list[float]]] = {step: {} for step in LIMITS}
    with tempfile.TemporaryDirectory() as folder, connected("benchmark"):
        ways = _ways(mirror, Path(folder))
        for repeat in range(repeats):
            for step, contenders in ways.items():
                for name, run in contenders.items():
                    start = time.perf_counter()
                    result = run()
                    seconds[step].setdefault(name, []).append(time.perf_counter() - start)
                    if result is not None:
                        _check(name, result)
                    log(f"round {repeat + 1}, {step}, {name}: {seconds[step][name][-1]:.3f} s")
                    del result  # otherwise this result's memory would slow the next way down
    return {step: {"limit_seconds": LIMITS[step], **_summary(found)} for step, found in seconds.items()}


def _ways(mirror: Path, folder: Path) -> dict[str, dict[str, Callable[[], Tensor | None]]]:
    ours, wide, lists, tensors = (folder / name for name in ("ours", "wide", "lists", "tensors"))
    published = folder / "MNIST/raw"
    for place in (published, *(way / layer for way in (ours, wide, lists, tensors) for layer in ("raw", "normalized"))):
        place.mkdir(parents=True)
    for pair in sources.SPLITS.values():
        for name in pair:
            shutil.copy(mirror / f"{name}.gz", published)
    _start_ray_data()
    return {
        "files to raw": {
            "ours": lambda: _our_raw(mirror, ours),
            "torchvision, pandas, 785 columns": lambda: _each(lambda s: _wide_raw(folder, wide, s)),
            "torchvision, pandas, list column": lambda: _each(lambda s: _lists_raw(folder, lists, s)),
            "torchvision, Ray Data, tensor column": lambda: _each(lambda s: _tensors_raw(folder, tensors, s)),
        },
        "raw to normalized": {
            "ours": lambda: _our_normalized(ours),
            "pandas, 785 columns": lambda: _each(lambda s: _wide_normalized(wide, s)),
            "pandas, list column": lambda: _each(lambda s: _lists_normalized(lists, s)),
            "Ray Data, tensor column": lambda: _each(lambda s: _tensors_normalized(tensors, s)),
        },
        "normalized to tensor": {
            "ours": lambda: _our_tensor(ours),
            "pandas, 785 columns": lambda: _wide_tensor(wide),
            "pandas, list column": lambda: _lists_tensor(lists),
            "Ray Data, tensor column": lambda: _tensors_tensor(tensors),
            "torchvision, one pass of a DataLoader": lambda: _loader_tensor(folder),
        },
    }


def _each(run: Callable[[str], None]) -> None:
    for name in SPLITS:
        run(name)


def _our_raw(mirror: Path, folder: Path) -> None:
    found = {name: mirror / f"{name}.gz" for pair in sources.SPLITS.values() for name in pair}
    write_all(folder / "raw", sources.load("mnist", found), write=write_raw)


def _our_normalized(folder: Path) -> None:
    raw = [read_raw(folder / f"raw/{name}.parquet") for name in SPLITS]
    splits, _ = normalization.normalize(*raw, validation_rows=VALIDATION_ROWS, seed=0)
    write_all(folder / "normalized", splits, write=write_normalized)


def _our_tensor(folder: Path) -> Tensor:
    train = read_normalized(folder / "normalized/train.parquet")
    return to_device(train, device=torch.device("cpu")).images


def _published(folder: Path, name: str) -> Any:
    """Return torchvision's MNIST split `name`, read from the gzip files.

    torchvision keeps the unpacked files. They are removed first, so that each round pays for unpacking.
    """
    from benchmarks.vision import datasets

    images, labels = sources.SPLITS[name]
    for file in (images, labels):
        (folder / "MNIST/raw" / file).unlink(missing_ok=True)
        datasets.utils.extract_archive(str(folder / f"MNIST/raw/{file}.gz"), str(folder / "MNIST/raw"))
    # torchvision checks that the files of both splits exist.
    for pair in sources.SPLITS.values():
        for file in pair:
            (folder / "MNIST/raw" / file).touch()
    return datasets.MNIST(folder, train=name == "train")


def _images(folder: Path, name: str) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Return the images, each uint8 `(784,)`, and the labels, read one by one through Pillow from the data set."""
    pairs = [(np.asarray(image).reshape(-1), label) for image, label in _published(folder, name)]
    return [image for image, _ in pairs], [label for _, label in pairs]


def _wide_raw(published: Path, folder: Path, name: str) -> None:
    images, labels = _images(published, name)
    _write_wide(np.stack(images), labels, folder / f"raw/{name}.parquet")


def _write_wide(pixels: NDArray[Any], labels: Any, path: Path) -> None:
    frame = pd.DataFrame(pixels, columns=[f"pixel{number}" for number in range(pixels.shape[1])])
    frame["label"] = np.asarray(labels, dtype=np.uint8)
    frame.to_parquet(path)


def _lists_raw(published: Path, folder: Path, name: str) -> None:
    images, labels = _images(published, name)
    pd.DataFrame({"image": images, "label": np.asarray(labels, dtype=np.uint8)}).to_parquet(
        folder / f"raw/{name}.parquet"
    )


def _tensors_raw(published: Path, folder: Path, name: str) -> None:
    import ray.data
    from ray.data.extensions import ArrowTensorArray

    dataset = _published(published, name)  # whole arrays: Ray Data does not pay for Pillow, as the others do
    images, labels = ArrowTensorArray.from_numpy(dataset.data.numpy()), pa.array(dataset.targets.numpy().astype("u1"))
    ray.data.from_arrow(pa.table({"image": images, "label": labels})).write_parquet(
        str(folder / "raw" / name), mode=ray.data.SaveMode.OVERWRITE
    )


def _parts(name: str, num_rows: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield the name of each normalized split made of the raw split `name`, and its row numbers, int64 `(rows,)`."""
    if name == "test":
        yield "test", np.arange(num_rows)
        return
    order = np.random.default_rng(0).permutation(num_rows)
    yield "validation", np.sort(order[:VALIDATION_ROWS])
    yield "train", np.sort(order[VALIDATION_ROWS:])


def _wide_normalized(folder: Path, name: str) -> None:
    frame = pd.read_parquet(folder / f"raw/{name}.parquet")
    pixels = (frame.drop(columns="label").to_numpy().astype(np.float32) / 255 - MEAN) / STD
    labels = frame["label"].to_numpy()
    for part, rows in _parts(name, len(frame)):
        _write_wide(pixels[rows].astype(np.float32), labels[rows], folder / f"normalized/{part}.parquet")


def _lists_normalized(folder: Path, name: str) -> None:
    frame = pd.read_parquet(folder / f"raw/{name}.parquet")
    pixels = (np.stack(frame["image"].to_list()).astype(np.float32) / 255 - MEAN) / STD
    labels = frame["label"].to_numpy()
    for part, rows in _parts(name, len(frame)):
        images = list(pixels[rows].astype(np.float32))
        pd.DataFrame({"image": images, "label": labels[rows]}).to_parquet(folder / f"normalized/{part}.parquet")


def _tensors_normalized(folder: Path, name: str) -> None:
    """Normalize the raw split `name` with Ray Data; this way need not separate a validation split."""
    import ray.data

    def standardise(batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return batch | {"image": ((batch["image"].astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)}

    ray.data.read_parquet(str(folder / "raw" / name)).map_batches(standardise, batch_size=1000).write_parquet(
        str(folder / "normalized" / name), mode=ray.data.SaveMode.OVERWRITE
    )


def _wide_tensor(folder: Path) -> Tensor:
    frame = pd.read_parquet(folder / "normalized/train.parquet")
    return torch.tensor(frame.drop(columns="label").to_numpy()).reshape(-1, 1, SIDE, SIDE)


def _lists_tensor(folder: Path) -> Tensor:
    frame = pd.read_parquet(folder / "normalized/train.parquet")
    return torch.tensor(np.stack(frame["image"].to_list())).reshape(-1, 1, SIDE, SIDE)


def _tensors_tensor(folder: Path) -> Tensor:
    import ray.data

    dataset = ray.data.read_parquet(str(folder / "normalized/train"))
    batches = dataset.iter_torch_batches(batch_size=1000, device="cpu")
    return torch.cat([batch["image"] for batch in batches]).unsqueeze(1)


def _loader_tensor(folder: Path) -> Tensor:
    """Return one epoch's images, float32 `(60000, 1, 28, 28)`, with transforms applied image by image."""
    from benchmarks.vision import datasets, transforms

    steps = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize([MEAN], [STD])]
    dataset = datasets.MNIST(folder, train=True, transform=transforms.Compose(steps))
    return torch.cat([images for images, _ in torch.utils.data.DataLoader(dataset, batch_size=1000)])


def _start_ray_data() -> None:
    """Run a first Ray Data task, so that no measurement includes its imports and start."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.range(100).map_batches(lambda batch: batch).materialize()


def _check(name: str, images: Tensor) -> None:
    """Check that a way's result is standardised float32 `(N, 1, 28, 28)`, with enough rows."""
    assert images.dtype == torch.float32, name
    assert images.shape[0] >= 60_000 - VALIDATION_ROWS, name
    assert images.shape[1:] == (1, SIDE, SIDE), name
    assert abs(images.mean().item()) < 0.01, name
    assert abs(images.std().item() - 1) < 0.01, name


def _summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, found in seconds.items():
        summary[name] = {"seconds": found, "median": statistics.median(found), "least": min(found)}
        if name != "ours":
            ratios = [other / ours for other, ours in zip(found, seconds["ours"], strict=True)]
            summary[name] |= {"ratio": statistics.median(ratios), "least_ratio": min(ratios)}
    return summary


def main() -> None:
    """Print a line for each measurement, then a table; with `--output` also write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mirror", type=Path, default=Path("../shared/mnist"), help="folder of the four .gz files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measure(options.mirror.resolve(), repeats=options.repeats, log=lambda line: print(line, flush=True))
    for step, ways in found.items():
        for name, summary in ways.items():
            if name == "limit_seconds":
                continue
            comparison = f"limit {ways['limit_seconds']:g} s"
            if name != "ours":
                comparison = f"{summary['ratio']:.1f} times ours, at least {summary['least_ratio']:.1f} times"
            print(f"{step}, {name}: median {summary['median']:.3f} s, least {summary['least']:.3f} s; {comparison}")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
