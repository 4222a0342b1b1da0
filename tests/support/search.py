"""Helpers that run searches on Ray over the small data set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster, connected
from mnist_pipe.params.schema import RecipeParams, SearchParams
from mnist_pipe.tuning.ledger import TrialRecord
from mnist_pipe.tuning.search import Defaults, Session, search
from tests.support import ray_data

NUM_TRIALS = 8
SPACE: dict[str, Any] = {
    "model": ["mlp", "convnet"],
    "optimizer": ["adam", "nesterov"],
    "learning_rate": {},
    "weight_decay": [1e-6, 1e-4],
    "batch_size": [32, 64],
    "rotation_degrees": [0.0, 5.0],
    "translation_pixels": [0.0, 2.0],
}
RECIPE = RecipeParams(
    model="mlp",
    model_params={"hidden": [15], "activation": "relu"},
    optimizer="adam",
    learning_rate=0.01,
    weight_decay=1e-5,
    batch_size=64,
    train_rows=None,
    num_epochs=9,
    schedule="triangle",
    label_smoothing=0.1,
    average_decay=0.0,
    rotation_degrees=2.0,
    translation_pixels=1.0,
    test_time_augmentation=False,
)
"""Operating point inside `SPACE`."""


def run(
    available: Cluster, *, folder: Path, on_trial: Callable[[TrialRecord], None] = lambda _: None, **changes: Any
) -> list[TrialRecord]:
    """Run a search over blobs with its ledger and results in `folder`; `changes` override the section `search`."""
    return search(
        params_of(**changes),
        defaults=Defaults(recipe=RECIPE, models={"convnet": {"channels": [4, 8]}}),
        training=ray_data.split(3200).first(1000),
        validation=ray_data.split(501, seed=1),
        session=Session(name="search", storage=storage.open_uri(str(folder)), available=available),
        on_trial=on_trial,
    )


def params_of(**changes: Any) -> SearchParams:
    """Return the section `search` with `changes`, which are not validated, so that rates may diverge."""
    params = SearchParams(
        space=SPACE,
        num_trials=NUM_TRIALS,
        num_epochs=3,
        train_rows=1000,
        algorithm="tpe",
        grid_points=2,
        scheduler="asha",
        reduction_factor=3,
        final_seeds=0,
        final_candidates=1,
        max_concurrent_trials="auto",
        seed=0,
    )
    return params.model_copy(update=changes)


def run_until_killed(address: str, folder: Path, num_trials: int, changes: dict[str, Any]) -> None:
    """Run a search on the Ray at `address`, and kill this process as soon as `num_trials` have ended."""
    os.environ["RAY_ADDRESS"] = address
    ended = []

    def end(record: TrialRecord) -> None:
        ended.append(record)
        if len(ended) == num_trials:
            os.kill(os.getpid(), signal.SIGKILL)

    with connected("a-test") as available:
        run(available, folder=folder, on_trial=end, **changes)
