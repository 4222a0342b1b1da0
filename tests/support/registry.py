"""Model registry and candidates for it; `conftest.py` makes the fixtures available to every test."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from mnist_pipe import paths
from mnist_pipe.evaluation.predictions import Predictions, write_predictions
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import registration, store
from mnist_pipe.registry.registration import Registration

NAME = "toy-classifier"
LINEAGE = {"dataset": "toy", "git_revision": "abc", "git_dirty": False, "versions": {"torch": "2"}}
METRICS = {"dataset": "toy", "test": {"accuracy": 0.75, "interval": [0.7, 0.8]}, "validation": {"num_rows": 1000}}
PARAMS = RegisterParams(max_p_value_against_baseline=0.01, max_p_value_against_champion=0.05, max_calibration_error=0.1)
TEXT = "---\nlicense: mit\n---\n\n# A card\n\nOf a toy.\n"
CURVES = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}]
TRAINED = (1_700_000_000.0, 1_700_000_060.5)
ROWS = 1000
BASELINE_ERRORS = 100

Candidate = tuple[Path, Path]
"""Folder of a model, and the file of its predictions on the validation split."""
MakeCandidate = Callable[[int, int], Candidate]
"""Function that creates a candidate from a seed and a number of errors."""


def write_candidate(folder: Path, seed: int, errors: int) -> Candidate:
    """Write a linear model of that seed, and predictions whose first `errors` are wrong (the baseline's first 100)."""
    import torch  # every test imports this module, but few need torch

    from mnist_pipe import models
    from mnist_pipe.models import saved

    torch.manual_seed(seed)
    model = models.build("linear")
    torch.nn.init.normal_(model.get_parameter("output.weight"))
    card = {
        "model": "linear",
        "model_params": {},
        "recipe": {"optimizer": "adam", "learning_rate": 0.1, "seed": seed},
        "dataset": "toy",
        "mean": 0.1307,
        "std": 0.3081,
        "picture": "digit",
        "data_sha256": {"train": "aa", "validation": "bb"},
    }
    saved.save_model(folder / f"model-{seed}", model, card=card)
    rows = np.arange(ROWS)
    label = (rows % 10).astype(np.uint8)
    predictions = Predictions(
        index=rows.astype(np.uint32),
        label=label,
        baseline_prediction=((label + (rows < BASELINE_ERRORS)) % 10).astype(np.uint8),
        prediction=((label + (rows < errors)) % 10).astype(np.uint8),
        probability=np.full(ROWS, 1 - errors / ROWS, dtype=np.float32),
        true_probability=np.full(ROWS, 0.9, dtype=np.float32),
        provenance={"dataset": "toy", "source_sha256": "cc"},
    )
    path = folder / f"predictions-{seed}" / "validation.parquet"
    write_predictions(path, predictions)
    return folder / f"model-{seed}", path


def register(root: Path, candidate: Candidate, **changes: Any) -> Registration:
    """Register the candidate as `NAME` with the metrics and limits above, except for `changes`."""
    known: dict[str, Any] = {"metrics": METRICS, "lineage": LINEAGE, "text": TEXT, "curves": CURVES, "trained": TRAINED}
    known["experiment"] = None
    facts = {key: changes.pop(key, value) for key, value in known.items()}
    arguments: dict[str, Any] = {"root": root, "name": NAME, "params": PARAMS, **changes}
    folder, predictions = candidate
    return registration.register(registration.Candidate(folder=folder, predictions=predictions, **facts), **arguments)


def in_process(work: Callable[[], Any]) -> multiprocessing.Process:
    """Start `work` in a process forked from one with imports only, as threads and connections must not be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.registry", "mlflow.store.tracking.sqlalchemy_store"])
    # The server that forks was started in the environment of some earlier test.
    process: Any = context.Process(target=call_pickled, args=(cloudpickle.dumps(work), dict(os.environ)))
    process.start()
    return process


def call_pickled(work: bytes, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    cloudpickle.loads(work)()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database with only MLflow's schema, shared because its creation takes a second or more."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.prepare(root)
    return root / paths.MLFLOW_DB


@pytest.fixture
def registry_root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Project folder with an empty registry."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "project"
    (folder / paths.STATE).mkdir(parents=True)
    shutil.copy(empty_database, folder / paths.MLFLOW_DB)
    return folder


@pytest.fixture
def make_candidate(tmp_path: Path) -> MakeCandidate:
    """Function that calls `write_candidate` for a folder of the test."""
    return partial(write_candidate, tmp_path / "candidates")
