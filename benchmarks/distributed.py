"""Measure the overhead of Ray Train: a run through `training.ray_train` and the same run without it.

For a run's overhead, a linear classifier is trained for five short epochs with `fit` on one worker, with `fit` on two
workers and with `loop.train` in this process. What remains after subtracting the last is Ray's overhead. For an epoch's
overhead, `fit` with one worker is compared with `loop.train`, and `fit` with two workers with two processes of
`torch.distributed.run` on the same rows, with one thread each. The time of an epoch is the mean of those after the
first. The driver learns of an epoch when the controller next polls, up to 0.2 s later.

    python -m benchmarks.distributed --repeats 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mnist_pipe import paths
from mnist_pipe.cluster import storage
from mnist_pipe.local import services

SHORT: dict[str, Any] = {
    "model": "linear",
    "optimizer": "nesterov",
    "learning_rate": 0.01,
    "batch_size": 5000,
    "num_epochs": 5,
}
LONG: dict[str, Any] = {
    "model": "convnet",
    "model_params": {"channels": [16, 32, 64]},
    "optimizer": "nesterov",
    "learning_rate": 0.01,
    "batch_size": 250,
    "num_epochs": 5,
}


def measure(*, repeats: int, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure whole runs and single epochs, with one worker and with two, `repeats` times.

    Returns:
        `rounds`: the seconds of every measurement by its name, for each round; `seconds_over_loop` and
        `seconds_over_loop_of_two`: the overhead of a run with one worker and with two, in seconds; `epoch_ratio` and
        `epoch_ratio_of_two`: an epoch's time over that of `loop.train`, and over that of plain torch.distributed. The
        last four are medians over the rounds.
    """
    os.environ.update(services.ray_environment(Path.cwd()))
    from mnist_pipe.cluster.ray_session import connected

    rounds: list[dict[str, float]] = []
    with connected("benchmark") as available:
        import ray

        ray.get(ray.remote(lambda: None).remote())
        for number in range(repeats):
            found = {
                "loop, run": sum(_loop(SHORT)),
                "fit, run": fit_seconds(SHORT, available=available, num_workers=1)[0],
                "fit of two, run": fit_seconds(SHORT, available=available, num_workers=2)[0],
                "loop, epoch": statistics.mean(_loop(LONG)[1:]),
                "fit, epoch": fit_seconds(LONG, available=available, num_workers=1)[1],
                "fit of two, epoch": fit_seconds(LONG, available=available, num_workers=2)[1],
                "torch.distributed of two, epoch": _two(),
            }
            log(f"round {number + 1}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items()))
            rounds.append(found)
    over = statistics.median(found["fit, run"] - found["loop, run"] for found in rounds)
    over_of_two = statistics.median(found["fit of two, run"] - found["loop, run"] for found in rounds)
    epoch = statistics.median(found["fit, epoch"] / found["loop, epoch"] for found in rounds)
    two = statistics.median(found["fit of two, epoch"] / found["torch.distributed of two, epoch"] for found in rounds)
    log(
        f"overhead of a run: {over:.1f} s with one worker, {over_of_two:.1f} s with two; ratio of an epoch: "
        f"{epoch:.3f} with one worker, {two:.3f} with two"
    )
    return {
        "rounds": rounds,
        "seconds_over_loop": over,
        "seconds_over_loop_of_two": over_of_two,
        "epoch_ratio": epoch,
        "epoch_ratio_of_two": two,
    }


def _splits() -> tuple[Any, Any]:
    from mnist_pipe.data.splits import read_normalized

    return tuple(read_normalized(paths.TRAINING_SPLITS[name]) for name in ("train", "validation"))  # type: ignore[return-value]


def _loop(settings: dict[str, Any]) -> list[float]:
    """Return the seconds of each epoch of `loop.train`; the first includes moving the data and building the model."""
    import torch

    from mnist_pipe.training import loop
    from mnist_pipe.training.batches import to_device
    from mnist_pipe.training.recipe import Recipe

    training, validation = _splits()
    torch.set_num_threads(os.cpu_count() or 1)
    recipe, device = Recipe(**settings), torch.device("cpu")
    times = [time.perf_counter()]
    rows, others = to_device(training, device=device), to_device(validation, device=device)
    model, optimizer = loop.new_run(recipe, device=device)
    for _ in loop.train(recipe, model=model, optimizer=optimizer, training=rows, validation=others):
        times.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def fit_seconds(
    settings: dict[str, Any], *, available: Any, num_workers: int, cpus_per_worker: int | None = None
) -> tuple[float, float]:
    """Return the seconds of the whole run through Ray Train, and the mean of its epochs after the first."""
    from benchmarks.clock import Clock
    from mnist_pipe.cluster import ray_session
    from mnist_pipe.training import ray_train
    from mnist_pipe.training.recipe import Recipe

    training, validation = _splits()
    scale = ray_session.scale(available, num_workers=num_workers, use_gpu=False, batch_size=settings["batch_size"])
    if cpus_per_worker is not None:
        scale = replace(scale, cpus_per_worker=cpus_per_worker)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ray_train.fit(
            Recipe(**settings),
            training=training,
            validation=validation,
            name="benchmark",
            storage=storage.project_storage(Path(folder)),
            state=Path(folder) / "state",
            scale=scale,
            progress=clock,
        )
        seconds = time.perf_counter() - started
    return seconds, (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)


def _two() -> float:
    """Return the seconds of an epoch of two plain torch.distributed processes, the mean of those after the first."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds.json"
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, str(result)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
        )
        return float(json.loads(result.read_text()))


def _process(result: Path) -> None:
    """Train as one of the two processes that `torch.distributed.run` starts; rank 0 writes the seconds to `result`."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from mnist_pipe.training import loop, sync_batchnorm
    from mnist_pipe.training.batches import Ranks, to_device
    from mnist_pipe.training.recipe import Recipe

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    device = torch.device("cpu")
    training, validation = (to_device(split, device=device) for split in _splits())
    recipe = Recipe(**LONG)
    model, optimizer = loop.new_run(recipe, device=device)
    sync_batchnorm.synchronize(model)
    parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def total(values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values)
        return values

    ranks = Ranks(rank=dist.get_rank(), size=2, all_reduce=total)
    times = [time.perf_counter()]
    data: dict[str, Any] = {"training": training, "validation": validation, "ranks": ranks}
    for _ in loop.train(recipe, model=parallel, optimizer=optimizer, **data):
        times.append(time.perf_counter())
    if ranks.rank == 0:
        seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
        result.write_text(json.dumps(statistics.mean(seconds[1:])))
    dist.destroy_process_group()


def main() -> None:
    """Print a line for each round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    measure(repeats=parser.parse_args().repeats, log=partial(print, flush=True))


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        _process(Path(sys.argv[1]))
    else:
        main()
