"""Measure what ten thousand trials and sixteen nodes cost, with trials that do nothing.

`trials`: one search of 10,000 trials through `tuning.search`, with its sampler, scheduler, ledger, journal and curves:
the driver's memory and the seconds a trial, by the number of trials that have ended. It runs with `random`, whose
proposals cost nothing, and with `tpe`, which reads the earlier trials of a run of Tune for each proposal.

`nodes`: a search on a Ray of sixteen nodes on this machine: how many trials each node ran.

`registry`: 10,000 trials in MLflow: the time to write one, and to read a page of them.

    python -m benchmarks.scale trials --trials 10000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

from mnist_pipe import paths, preflight
from mnist_pipe.cluster import storage
from mnist_pipe.local import services

TRIALS, NODES, CPUS, TRIALS_A_NODE = 10_000, 16, 1, 8
STEP = 500
"""Number of trials between two measurements."""
SECONDS_A_TRIAL = 1.0
"""Length of a trial on the sixteen nodes, so that all of them have one."""
Log = Callable[[str], None]


def measure(*, trials: int = TRIALS, log: Log = lambda _: None) -> dict[str, Any]:
    """Measure all three."""
    return {
        "trials": {name: many_trials(name, trials=trials, log=log) for name in ("random", "tpe")},
        "nodes": many_nodes(log=log),
        "registry": registry(trials=trials, log=log),
    }


def many_trials(algorithm: str, *, trials: int, log: Log = lambda _: None) -> dict[str, Any]:
    """Run a search, and return by the number of ended trials the `seconds` and the driver's `megabytes`.

    `seconds_a_trial` are those of the first and of the last tenth, `kilobytes_a_trial` is the memory's growth from the
    first tenth to the end.
    """
    os.environ.update(services.ray_environment(Path.cwd()))
    from mnist_pipe.cluster.ray_session import connected

    points: list[tuple[int, float, float]] = []
    started, driver = time.perf_counter(), psutil.Process()

    def ended(_: Any) -> None:
        count.append(None)
        if len(count) % min(STEP, trials // 10) == 0:
            point = len(count), time.perf_counter() - started, driver.memory_info().rss / 1e6
            points.append(point)
            log("{}: {:,} trials, {:.1f} s, {:.0f} MB".format(algorithm, *point))

    count: list[None] = []
    with connected("benchmark") as available, tempfile.TemporaryDirectory() as folder:
        _search(available, folder=Path(folder), trials=trials, on_trial=ended, algorithm=algorithm)
    number, seconds, megabytes = (np.array(column) for column in zip(*points, strict=True))
    step, tenth = number[0], max(1, len(number) // 10)
    return {
        "number": number.tolist(),
        "seconds": seconds.round(1).tolist(),
        "megabytes": megabytes.round().tolist(),
        "seconds_a_trial": [
            round(float(np.diff(seconds[part]).mean() / step), 5)
            for part in (slice(0, tenth + 1), slice(-tenth - 1, None))
        ],
        "kilobytes_a_trial": round(float(1000 * (megabytes[-1] - megabytes[tenth]) / (number[-1] - number[tenth])), 2),
    }


def many_nodes(*, log: Log = lambda _: None) -> dict[str, Any]:
    """Run a search on sixteen nodes, and return the number of trials of the node with the fewest and with the most."""
    os.environ.update(services.ray_environment(Path.cwd()))
    from ray.cluster_utils import Cluster

    from mnist_pipe.cluster.ray_session import connected

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=CPUS, object_store_memory=80_000_000)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"RAY_ADDRESS": cluster.address, storage.VARIABLE: folder}
        try:
            with connected("benchmark") as available:
                started = time.perf_counter()
                _search(
                    available,
                    folder=Path(folder),
                    trials=NODES * TRIALS_A_NODE,
                    seconds=SECONDS_A_TRIAL,
                    marks=Path(folder),
                    algorithm="tpe",
                )
                seconds = time.perf_counter() - started
        finally:
            for variable in ("RAY_ADDRESS", storage.VARIABLE):
                del os.environ[variable]
            cluster.shutdown()
        counts = Counter(path.read_text() for path in Path(folder).glob("*.node"))
    found = sorted(counts.values())
    log(f"{sum(found)} trials of {SECONDS_A_TRIAL:g} s on {len(found)} of {NODES} nodes: {found} in {seconds:.0f} s")
    return {"nodes": len(found), "fewest": found[0], "most": found[-1], "seconds": round(seconds, 1)}


def registry(*, trials: int, log: Log = lambda _: None) -> dict[str, Any]:
    """Log a search to MLflow; return the seconds to write a trial, early and late, and to read a page of 100."""
    from mnist_pipe.registry.runs import open_experiment
    from mnist_pipe.registry.search_log import log_search
    from mnist_pipe.registry.store import open_store

    def trial(number: int) -> dict[str, Any]:
        history = [{"epoch": 1, "train_loss": 0.1, "validation_loss": 0.1, "validation_accuracy": number / trials}]
        config = {"model": "mlp", "optimizer": "adam", "learning_rate": 0.01, "batch_size": 128}
        return {"trial": number, "status": "finished", "config": config, "history": history}

    with tempfile.TemporaryDirectory() as folder:
        root, seconds = Path(folder), []
        for part in (range(1, trials // 10 + 1), range(trials // 10 + 1, 9 * trials // 10 + 1), None):
            started = time.perf_counter()
            numbers = part or range(9 * trials // 10 + 1, trials + 1)
            log_search("benchmark", [trial(number) for number in numbers], root=root, search_id="search-1")
            seconds.append((time.perf_counter() - started) / len(numbers))
            log(f"MLflow: {seconds[-1] * 1000:.1f} ms a trial up to trial {numbers[-1]:,}")
        with open_store(root, write=False) as client:
            experiment = open_experiment(client, "benchmark", root=root)
            started = time.perf_counter()
            client.search_runs([experiment], "tags.search = 'search-1'", max_results=100)
            page = time.perf_counter() - started
    log(f"MLflow: a page of 100 of {trials:,} trials in {page:.2f} s")
    return {"trials": trials, "seconds_a_trial": [round(seconds[0], 5), round(seconds[-1], 5)], "page_seconds": page}


def _search(
    available: Any,
    *,
    folder: Path,
    trials: int,
    algorithm: str,
    on_trial: Callable[[Any], None] = lambda _: None,
    seconds: float = 0.0,
    marks: Path | None = None,
) -> None:
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.tuning import search

    params = preflight.load_params(paths.PARAMS)
    training = read_normalized(paths.TRAINING_SPLITS["train"])
    with mock.patch("mnist_pipe.tuning.search.Trial", _no_op(seconds, marks)):
        search.search(
            params.search.model_copy(update={"num_trials": trials, "algorithm": algorithm}),
            defaults=search.Defaults(recipe=params.recipes[params.recipe], models=params.models),
            training=training.first(100),
            validation=training.first(100),
            session=search.Session(name="benchmark", storage=storage.open_uri(str(folder)), available=available),
            on_trial=on_trial,
        )


def _no_op(seconds: float, marks: Path | None) -> type:
    from mnist_pipe.tuning.trial import METRIC, Trial

    class NoOp(Trial):
        """Trial that reports a first epoch without any training, which ASHA then stops, and its last one."""

        def _train(self, proposal: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            import ray

            time.sleep(seconds)
            if marks is not None:
                node = ray.get_runtime_context().get_node_id()
                (marks / f"{proposal['trial']}.node").write_text(node)
            accuracy = 0.5 + 0.4 * np.random.default_rng(proposal["trial"]).random()
            for epoch in range(1, self._num_epochs + 1):
                losses = {"train_loss": 0.1, "train_accuracy": 0.5, "validation_loss": 0.1}
                yield {"epoch": epoch, **losses, METRIC: accuracy}

    return NoOp


def main() -> None:
    """Run `trials`, `nodes` or `registry`, and print what it measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("trials", "nodes", "registry"))
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--algorithm", default="random")
    options = parser.parse_args()
    log = partial(print, flush=True)
    if options.what == "trials":
        print(many_trials(options.algorithm, trials=options.trials, log=log))
    elif options.what == "nodes":
        print(many_nodes(log=log))
    else:
        print(registry(trials=options.trials, log=log))


if __name__ == "__main__":
    main()
