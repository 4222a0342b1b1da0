"""Measure the overhead of a search, and the time of a real one, each also with plain Ray Tune.

`overhead`: trials that do nothing but report once run through `tuning.search`, with its sampler, scheduler, ledger and
curves, and as a function trainable of plain Tune. Plain Tune runs once with its processes reused and once, for fewer
trials, without.

`real`: `tuning.search` over the space of `params.yaml`, and the script of Ray's and PyTorch's tutorials over the same
space: a function trainable with a DataLoader of torchvision's data set, a constant learning rate, random search, ASHA
and as many trials at a time as there are CPUs. Neither sees the test split.

    python -m benchmarks.search overhead --trials 100
    python -m benchmarks.search real --trials 32
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from mnist_pipe import paths, preflight
from mnist_pipe.cluster import storage
from mnist_pipe.local import services
from mnist_pipe.params.schema import Params

EPOCHS = 3
REUSED = {"with processes reused": True, "with a process each": False}


def overhead(*, trials: int, without_reuse: int = 10, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Time `trials` trials that do nothing, through our search and through plain Tune, after Ray has started.

    Plain Tune with a process for each trial runs only `without_reuse` trials; its time is scaled up to `trials`.

    Returns:
        `trials`; `seconds` by way; `first_trial_seconds`: the time until our first trial has ended.
    """
    os.environ.update(services.ray_environment(Path.cwd()))
    from mnist_pipe.cluster.ray_session import connected

    seconds: dict[str, float] = {}
    with connected("benchmark") as available, tempfile.TemporaryDirectory() as folder:
        import ray

        ray.get(ray.remote(lambda: None).remote())
        seconds["ours"], first = no_op_seconds(available, trials=trials, folder=Path(folder) / "ours")
        log(f"ours: {seconds['ours']:.1f} s for {trials} trials, the first ended after {first:.1f} s")
        for name, reuse in REUSED.items():
            started = time.perf_counter()
            count = trials if reuse else without_reuse
            _stock(_report, {}, num_trials=count, reuse=reuse, folder=Path(folder) / name)
            seconds[name] = (time.perf_counter() - started) * trials / count
            log(f"plain Tune, {name}: {seconds[name]:.1f} s for {trials} trials")
    return {"trials": trials, "seconds": seconds, "first_trial_seconds": first}


def real(*, trials: int, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run a real search of `trials` trials in our way and in plain Tune's.

    Returns:
        `trials`; for `ours` and `stock` (plain Tune) the `seconds` and the best `validation_accuracy`; `ratio`: the
        seconds of `stock` over ours.
    """
    params = preflight.load_params(paths.PARAMS)
    os.environ.update(services.ray_environment(Path.cwd()))
    from benchmarks import example  # not at the top: processes of plain Tune whose trials do nothing would import torch
    from mnist_pipe.cluster.ray_session import connected

    found: dict[str, Any] = {}
    with connected("benchmark") as available, tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = _ours(params, available=available, folder=Path(folder) / "ours", num_trials=trials)
        found["ours"] = _result(time.perf_counter() - started, max(record.score for record in records), "ours", log)
        example.unpack(Path(folder))
        config = _space(params)
        started = time.perf_counter()
        results = _stock(
            partial(_train, folder=folder, models=params.models),
            config,
            num_trials=trials,
            reuse=True,
            folder=Path(folder) / "stock",
        )
        best = max(result.metrics["accuracy"] for result in results if not result.error)
        found["stock"] = _result(time.perf_counter() - started, float(best), "plain Tune", log)
    return {"trials": trials, **found, "ratio": found["stock"]["seconds"] / found["ours"]["seconds"]}


def no_op_seconds(available: Any, *, trials: int, folder: Path) -> tuple[float, float]:
    """Run our search with trials that do nothing; return its seconds, and the seconds until the first trial ended."""
    first: list[float] = []
    started = time.perf_counter()
    _ours(
        preflight.load_params(paths.PARAMS),
        available=available,
        folder=folder,
        trainable=_no_op(),
        num_trials=trials,
        on_trial=lambda _: first.append(time.perf_counter() - started),
    )
    return time.perf_counter() - started, first[0]


def _result(seconds: float, accuracy: float, name: str, log: Callable[[str], None]) -> dict[str, float]:
    log(f"{name}: validation accuracy {accuracy:.2%} after {seconds:.1f} s")
    return {"seconds": seconds, "validation_accuracy": accuracy}


def _ours(
    params: Params,
    *,
    available: Any,
    folder: Path,
    num_trials: int,
    trainable: type | None = None,
    on_trial: Callable[[Any], None] = lambda _: None,
) -> list[Any]:
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.tuning import search

    with mock.patch("mnist_pipe.tuning.search.Trial", trainable) if trainable else nullcontext():
        return search.search(
            params.search.model_copy(update={"num_trials": num_trials}),
            defaults=search.Defaults(recipe=params.recipes[params.recipe], models=params.models),
            training=read_normalized(paths.TRAINING_SPLITS["train"]).first(params.search.train_rows),
            validation=read_normalized(paths.TRAINING_SPLITS["validation"]),
            session=search.Session(name="benchmark", storage=storage.project_storage(folder), available=available),
            on_trial=on_trial,
        )


def _no_op() -> type:
    from mnist_pipe.tuning.trial import METRIC, Trial

    class NoOp(Trial):
        """Trial that reports its last epoch without any training."""

        def _train(self, proposal: Mapping[str, Any]) -> Iterator[dict[str, Any]]:  # noqa: ARG002
            yield {"epoch": EPOCHS, "train_loss": 0.0, "train_accuracy": 0.5, "validation_loss": 0.0, METRIC: 0.5}

    return NoOp


def _stock(
    trainable: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    num_trials: int,
    reuse: bool,
    folder: Path,
) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    tuner = tune.Tuner(
        trainable,
        param_space=config or {"rate": tune.loguniform(1e-4, 1e-1)},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=num_trials,
            reuse_actors=reuse,
            scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=3),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    return tuner.fit()


def _report(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"accuracy": config["rate"]})


def _space(params: Params) -> dict[str, Any]:
    """Return the space of `params.yaml` for plain Tune, without muon, which torch does not offer for convolutions."""
    from ray import tune

    from mnist_pipe.training.optimizers import OPTIMIZERS

    space = params.search.space
    optimizers = [name for name in space["optimizer"] if name != "muon"]
    return {
        "model": tune.choice(space["model"]),
        "optimizer": tune.choice(optimizers),
        **{f"rate.{name}": tune.loguniform(*OPTIMIZERS[name].learning_rate) for name in optimizers},
        "weight_decay": tune.loguniform(*space["weight_decay"]),
        "batch_size": tune.choice(space["batch_size"]),
        "degrees": tune.uniform(*space["rotation_degrees"]),
        "pixels": tune.uniform(*space["translation_pixels"]),
    }


def _train(config: dict[str, Any], *, folder: str, models: dict[str, dict[str, Any]]) -> None:
    """Train for three epochs on 55,000 rows, and report the accuracy on the other 5,000 after each."""
    import torch
    from ray import tune
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Subset

    from benchmarks.vision import datasets, transforms
    from mnist_pipe.models import build

    torch.manual_seed(0)
    plain = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    shift = config["pixels"] / 28
    moved = [transforms.RandomAffine(config["degrees"], translate=(shift, shift)), *plain]
    rows = torch.randperm(60_000, generator=torch.Generator().manual_seed(0)).tolist()
    train = Subset(datasets.MNIST(folder, train=True, transform=transforms.Compose(moved)), rows[5_000:])
    validation = Subset(datasets.MNIST(folder, train=True, transform=transforms.Compose(plain)), rows[:5_000])
    model = build(config["model"], **models[config["model"]])
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adadelta": torch.optim.Adadelta,
    }
    name = config["optimizer"]
    optimizer = classes[name](model.parameters(), lr=config[f"rate.{name}"], weight_decay=config["weight_decay"])
    for _ in range(EPOCHS):
        model.train()
        for images, labels in DataLoader(train, batch_size=config["batch_size"], shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            batches = DataLoader(validation, batch_size=1000)
            correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
        tune.report({"accuracy": correct / len(validation)})


def main() -> None:
    """Run `overhead` or `real`, and print what it measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("overhead", "real"))
    parser.add_argument("--trials", type=int)
    options = parser.parse_args()
    log = partial(print, flush=True)
    if options.what == "overhead":
        overhead(trials=options.trials or 100, log=log)
    else:
        real(trials=options.trials or 32, log=log)


if __name__ == "__main__":
    main()
