"""Test the final of a search: the best configurations, each with several seeds, chosen by their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster
from mnist_pipe.training import loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import recipe_of
from mnist_pipe.tuning.finals import Finalist, best_finalist, final, seeds_of
from mnist_pipe.tuning.ledger import TrialRecord, ledger_of
from mnist_pipe.tuning.search import Defaults, Session
from tests.support import ray_data
from tests.support.search import RECIPE, SPACE, params_of, run

SHORT = RECIPE.model_copy(update={"num_epochs": 2})


def record(trial: int, *, accuracy: float, loss: float = 0.1, status: str = "finished") -> TrialRecord:
    history = [{"epoch": 1, "validation_accuracy": accuracy, "validation_loss": loss}]
    return TrialRecord(trial=trial, status=status, config={"batch_size": trial}, history=history)


def finalist(trial: int, *accuracies: float, loss: float = 0.1, status: str = "finished") -> Finalist:
    runs = tuple(record(1, accuracy=accuracy, loss=loss, status=status) for accuracy in accuracies)
    return Finalist(trial=record(trial, accuracy=0.5), runs=runs)


def test_the_highest_mean_is_chosen_then_the_lowest_loss_then_the_earlier_trial() -> None:
    lucky, steady = finalist(1, 0.99, 0.90), finalist(2, 0.96, 0.95)
    assert best_finalist([lucky, steady]) is steady
    assert [steady.mean, steady.deviation] == pytest.approx([0.955, 0.01 / 2**0.5])
    assert best_finalist([finalist(1, 0.9, loss=0.3), finalist(2, 0.9, loss=0.2)]).trial.trial == 2
    assert best_finalist([finalist(2, 0.9), finalist(1, 0.9)]).trial.trial == 1
    assert best_finalist([finalist(1, 0.99, status="diverged"), finalist(2, 0.1)]).trial.trial == 2
    assert finalist(1, 0.9).deviation == 0


@pytest.mark.ray
def test_the_best_configurations_are_trained_in_full_with_each_seed(cluster: Cluster, tmp_path: Path) -> None:
    space = {**SPACE, "model": ["mlp"]}
    records = run(cluster, folder=tmp_path, space=space, num_trials=5, num_epochs=1, scheduler="fifo")
    params = params_of(space=space, num_epochs=1, final_seeds=2, final_candidates=2)
    training, validation = ray_data.split(3200).first(800), ray_data.split(501, seed=1)
    place = storage.open_uri(str(tmp_path))
    told: list[tuple[int, int]] = []
    arguments: dict[str, Any] = {
        "defaults": Defaults(recipe=SHORT),
        "training": training,
        "validation": validation,
        "session": Session(name="search", storage=place, available=cluster),
    }
    finalists = final(records, params, **arguments, on_run=lambda trial, seed, _: told.append((trial.trial, seed)))
    best = sorted(records, key=lambda one: -one.score)[:2]
    assert {one.trial.trial for one in finalists} == {one.trial for one in best}
    assert finalists[0].mean >= finalists[1].mean
    assert sorted(told) == sorted((one.trial, seed) for one in best for seed in (1, 2))
    device = torch.device("cpu")
    for one in finalists:
        for seed, own in zip(seeds_of(params), one.runs, strict=True):
            assert own.config == one.trial.config
            recipe = recipe_of(SHORT.model_dump(), found=own.config, models={}, seed=seed)
            model, optimizer = loop.new_run(recipe, device=device)
            alone = loop.train(
                recipe,
                model=model,
                optimizer=optimizer,
                training=to_device(training, device=device),
                validation=to_device(validation, device=device),
            )
            assert [epoch["validation_accuracy"] for epoch in own.history] == pytest.approx(
                [epoch["validation_accuracy"] for epoch in alone], abs=0.02
            )
    # It resumes: a marked value distinguishes a restored run from one that was run again.
    ledger = ledger_of("search-seed-2", storage=place)
    first, _ = ledger.read()
    first.history[0]["train_loss"] = 123.0
    ledger.record(first, name="00001")
    (tmp_path / "trials/search-seed-2/00002.json").unlink()
    again = final(records, params, **arguments)
    assert {run.history[0]["train_loss"] for one in again for run in one.runs} >= {123.0}
    assert [one.scores for one in again] == [one.scores for one in finalists]
