"""Test Ray Tune: reproducible, resumable, and a diverging trial is never best."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mnist_pipe import paths
from mnist_pipe.atomic import digest
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster
from mnist_pipe.errors import PipelineError
from mnist_pipe.training import loop
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import recipe_of
from mnist_pipe.tuning.ledger import TrialRecord, best_trial, ledger_of
from mnist_pipe.tuning.search import samplings
from mnist_pipe.tuning.space import grid
from mnist_pipe.tuning.trial import METRIC, trial_recipe
from tests.support import ray_data
from tests.support.search import NUM_TRIALS, RECIPE, SPACE, params_of, run

ray = pytest.mark.ray
IN_PARTS: dict[str, Any] = {
    "space": {**SPACE, "model": ["mlp"], "batch_size": [64]},
    "scheduler": "fifo",
    "num_trials": 14,
    "num_epochs": 1,
    "max_concurrent_trials": 1,
}
"""Changes of a search that are run with `TRIALS_A_RUN` at 5."""

DRIVER = """
import signal, sys
from pathlib import Path
from mnist_pipe.cluster.ray_session import connected
from tests.support.search import run

_, folder, stop_after = sys.argv
ended = []

def stop(record):
    ended.append(record)
    if len(ended) == int(stop_after):
        print("stopped", flush=True)
        signal.pause()

with connected("a-test") as available:
    run(available, folder=Path(folder), on_trial=stop)
"""


@pytest.fixture(scope="module")
def reference(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TrialRecord], Path]:
    """Records and folder of an undisturbed search."""
    folder = tmp_path_factory.mktemp("reference")
    return run(cluster, folder=folder), folder


@ray
def test_every_trial_is_in_the_result_and_in_the_ledger(reference: tuple[list[TrialRecord], Path]) -> None:
    records, folder = reference
    assert [record.trial for record in records] == list(range(1, NUM_TRIALS + 1))
    assert ledger_of("search", storage=storage.open_uri(str(folder))).read() == records


@ray
def test_the_first_trial_is_the_recipe(reference: tuple[list[TrialRecord], Path]) -> None:
    first = reference[0][0].config
    assert first == {key: getattr(RECIPE, key) for key in first}
    assert first.keys() == SPACE.keys()


@ray
def test_a_recipe_outside_the_space_is_not_tried(cluster: Cluster, tmp_path: Path) -> None:
    space = {**SPACE, "model": ["linear"], "optimizer": ["nesterov"]}
    (record,) = run(cluster, folder=tmp_path, space=space, num_trials=1, num_epochs=1)
    assert (record.config["model"], record.config["optimizer"]) == ("linear", "nesterov")


@ray
def test_the_environment_of_trials_has_no_credentials(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that Tune gets no credential, which it would put into each trial's runtime environment, which Ray logs."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key")
    seen: list[str | None] = []
    arguments: dict[str, Any] = {"space": {"batch_size": [64]}, "num_trials": 1, "num_epochs": 1}
    run(cluster, folder=tmp_path, on_trial=lambda _: seen.append(os.environ.get("AWS_SECRET_ACCESS_KEY")), **arguments)
    assert seen == [None]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "planted-secret-key"


@ray
def test_asha_stops_some_trials_and_finishes_the_best(reference: tuple[list[TrialRecord], Path]) -> None:
    records, _ = reference
    epochs = {status: {len(r.history) for r in records if r.status == status} for status in ("finished", "stopped")}
    assert epochs["finished"] == {3}
    assert epochs["stopped"] <= {1, 2}
    assert epochs["stopped"]
    assert best_trial(records).status == "finished"


@ray
def test_each_trial_leaves_curves_for_tensorboard(reference: tuple[list[TrialRecord], Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    records, folder = reference
    for record in records:
        events = EventAccumulator(str(folder / "ray/search.0" / f"trial-{record.trial}")).Reload()
        assert [round(event.value, 6) for event in events.Scalars("validation_accuracy")] == [
            round(epoch["validation_accuracy"], 6) for epoch in record.history
        ]
        start = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        shown = metadata.parse_session_start_info_plugin_data(start).hparams
        assert {key: value.string_value or value.number_value for key, value in shown.items()} == record.config


@ray
@pytest.mark.long
def test_a_killed_search_resumes_to_the_same_result_and_repeats_no_trial(
    cluster: Cluster, reference: tuple[list[TrialRecord], Path], tmp_path: Path
) -> None:
    root, place = Path(__file__).parent.parent, storage.open_uri(str(tmp_path))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    with subprocess.Popen(
        [*command, "2"], cwd=root, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert "stopped\n" in iter(first.stdout.readline, "")  # it then waits to be killed
        os.killpg(first.pid, signal.SIGKILL)
    ledger = ledger_of("search", storage=place)
    known = ledger.read()
    assert len(known) == 2
    # A marked value distinguishes a restored trial from one that was run again; a file that is no record is to be
    # skipped.
    marked = known[0]
    figure = marked.history[0]["train_loss"]
    marked.history[0]["train_loss"] = 123.0
    ledger.record(marked, name=f"{marked.trial:05}")
    place.write("trials/search/00099.json", b'{"trial": 7, "sta')

    subprocess.run([*command, "0"], cwd=root, env=environment, check=True)
    resumed = ledger_of("search", storage=place).read()
    assert [record.trial for record in resumed] == list(range(1, NUM_TRIALS + 1))
    remembered = resumed[marked.trial - 1].history[0]
    assert remembered["train_loss"] == 123.0
    remembered["train_loss"] = figure
    assert resumed == reference[0]
    for folder in (reference[1], tmp_path):
        assert sorted(trial.user_attrs["trial"] for trial in study_of(folder)) == list(range(1, NUM_TRIALS + 1))


def study_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of the search in the journal that optuna-dashboard opens."""
    backend = JournalFileBackend(str(folder / paths.JOURNAL))
    return optuna.load_study(study_name="search", storage=JournalStorage(backend)).trials


@ray
def test_a_diverging_trial_is_reported_and_never_best(cluster: Cluster, tmp_path: Path) -> None:
    space = {
        **SPACE,
        "model": ["lenet5"],
        "optimizer": ["nesterov", "adam"],
        "learning_rate": {"nesterov": [1e18, 1e19]},
    }
    records = run(
        cluster, folder=tmp_path, space=space, num_trials=5, num_epochs=1, algorithm="random", scheduler="fifo"
    )
    by_optimizer = {record.config["optimizer"]: record.status for record in records}
    assert by_optimizer == {"nesterov": "diverged", "adam": "finished"}
    assert best_trial(records).config["optimizer"] == "adam"


@ray
def test_independent_trials_train_together_with_the_same_results(cluster: Cluster, tmp_path: Path) -> None:
    space = {
        **SPACE,
        "model": ["mlp"],
        "optimizer": ["adam", "nesterov"],
        "learning_rate": {"nesterov": [0.01, 1e20]},
        "batch_size": [64],
    }
    told: list[TrialRecord] = []
    arguments: dict[str, Any] = {"num_trials": 12, "algorithm": "random", "scheduler": "fifo"}
    with ThreadPoolExecutor(1) as thread:  # the pipeline hands each trial to a thread too
        arguments["on_trial"] = lambda trial: thread.submit(told.append, trial)
        records = run(cluster, folder=tmp_path, space=space, **arguments)
    optimizers = [record.config["optimizer"] for record in told]
    assert len(list(itertools.groupby(optimizers))) == 2  # all trials of a pack end together
    assert [record.trial for record in records] == list(range(1, 13))
    assert ledger_of("search", storage=storage.open_uri(str(tmp_path))).read() == records
    curves = {path.parent.name for path in (tmp_path / "ray/search.0").glob("trial-*/*tfevents*")}
    assert curves == {f"trial-{number}" for number in range(1, 13)}
    statuses = {record.status for record in records}
    assert statuses == {"finished", "diverged"}
    given = {"recipe": RECIPE.model_dump(), "models": {}, "num_epochs": 3, "precision": "auto", "seed": 0}
    device = torch.device("cpu")
    training = to_device(ray_data.split(3200).first(1000), device=device)
    validation = to_device(ray_data.split(501, seed=1), device=device)
    for record in records:
        recipe = trial_recipe(record.config, given)
        model, optimizer = loop.new_run(recipe, device=device)
        epochs = loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation)
        try:
            alone = list(epochs)
        except loop.DivergedError:
            assert record.status == "diverged"
        else:
            assert [epoch["validation_accuracy"] for epoch in record.history] == pytest.approx(
                [epoch["validation_accuracy"] for epoch in alone], abs=0.01
            )


@ray
def test_a_search_whose_trials_train_together_resumes_from_its_ledger(cluster: Cluster, tmp_path: Path) -> None:
    space = {**SPACE, "model": ["mlp"], "optimizer": ["adam"], "batch_size": [64]}
    rules: dict[str, Any] = {"space": space, "algorithm": "random", "scheduler": "fifo", "num_epochs": 1}
    first = run(cluster, folder=tmp_path, **rules)
    for record in first[:2]:
        (tmp_path / "trials/search" / f"{record.trial:05}.json").unlink()
    first[4].history[0]["train_loss"] = 123.0
    ledger_of("search", storage=storage.open_uri(str(tmp_path))).record(first[4], name=f"{first[4].trial:05}")
    resumed = run(cluster, folder=tmp_path, **rules)
    assert [record.config for record in resumed] == [record.config for record in first]
    assert resumed[4].history[0]["train_loss"] == 123.0


@ray
def test_a_search_of_many_trials_proposes_the_same_in_several_runs_of_tune(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {**IN_PARTS, "algorithm": "random"}
    whole = run(cluster, folder=tmp_path / "whole", **rules)
    monkeypatch.setattr("mnist_pipe.tuning.search.TRIALS_A_RUN", 5)
    assert run(cluster, folder=tmp_path / "parts", **rules) == whole
    assert {path.name for path in (tmp_path / "parts/ray").iterdir()} == {"search.0"}


@ray
@pytest.mark.parametrize("algorithm", ["tpe", "cma-es", "gp"])
def test_a_search_of_many_trials_resumes_in_any_run_of_tune(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setattr("mnist_pipe.tuning.search.TRIALS_A_RUN", 5)
    monkeypatch.setattr("mnist_pipe.tuning.search.KEPT_TRIALS", 4)
    rules = {**IN_PARTS, "algorithm": algorithm}
    first = run(cluster, folder=tmp_path, **rules)
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {"search.0", "search.1", "search.2"}
    assert [record.trial for record in first] == list(range(1, 15))
    assert len({digest(record.config) for record in first}) == 14
    for record in first[7:]:
        (tmp_path / "trials/search" / f"{record.trial:05}.json").unlink()
    assert [record.config for record in run(cluster, folder=tmp_path, **rules)] == [record.config for record in first]


def test_a_sampler_that_learns_begins_a_run_with_the_best_trials_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_pipe.tuning.search.TRIALS_A_RUN", 40)
    monkeypatch.setattr("mnist_pipe.tuning.search.KEPT_TRIALS", 20)
    params = params_of(num_trials=120)
    numbers, means = [], []
    for part in samplings(params, recipe=RECIPE.model_dump(), points=[]):
        scores = []
        for index in map(str, range(part["num_samples"])):
            proposal = part["search_alg"].suggest(index)
            numbers.append(proposal["trial"])
            scores.append(-abs(math.log10(proposal["learning_rate"]) + 2.5))
            part["search_alg"].on_trial_complete(index, {METRIC: scores[-1]})
        means.append(sum(scores[:10]) / 10)
    assert numbers == list(range(1, 121))
    assert means[0] < min(means[1:])  # the first ten trials of a study that knows none are random


def test_a_grid_goes_on_in_the_next_run_of_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_pipe.tuning.search.TRIALS_A_RUN", 3)
    params, recipe = params_of(num_trials=8, algorithm="grid"), RECIPE.model_dump()
    points = grid(recipe, space=params.space, num_points=1)
    proposals = [
        part["search_alg"].suggest(str(index))
        for part in samplings(params, recipe=recipe, points=points)
        for index in range(part["num_samples"])
    ]
    assert [proposal["trial"] for proposal in proposals] == list(range(1, 9))
    assert [
        {name: proposal[name] for name in point} for proposal, point in zip(proposals, points, strict=False)
    ] == points[:8]


@ray
def test_a_search_whose_trials_all_diverge_fails_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    space = {**SPACE, "model": ["lenet5"], "optimizer": ["nesterov"], "learning_rate": {"nesterov": [1e18, 1e19]}}
    with pytest.raises(PipelineError) as caught:
        run(cluster, folder=tmp_path, space=space, num_trials=2, num_epochs=1)
    assert str(caught.value) == "search: all 2 trials diverged; lower search.space.learning_rate"


@ray
def test_constructor_arguments_and_epochs_can_be_searched(cluster: Cluster, tmp_path: Path) -> None:
    channels = [[4], [4, 8]]
    space = {
        "model": ["convnet", "linear"],
        "model_params": {"convnet": {"channels": channels}},
        "learning_rate": {},
        "num_epochs": [1, 2],
        "schedule": ["constant", "triangle"],
        "label_smoothing": [0.0, 0.2],
    }
    records = run(cluster, folder=tmp_path, space=space, num_trials=6, scheduler="fifo")
    for record in records:
        assert record.status == "finished"
        assert len(record.history) == record.config["num_epochs"]
        assert set(record.config) == set(space) - ({"model_params"} if record.config["model"] == "linear" else set())
    convnets = [record.config for record in records if record.config["model"] == "convnet"]
    assert all(config["model_params"]["channels"] in channels for config in convnets)
    assert len(convnets) < len(records)
    recipe = recipe_of(RECIPE.model_dump(), found=convnets[0], models={"convnet": {"channels": [9], "crop": 3}})
    assert recipe.model_params == {"channels": convnets[0]["model_params"]["channels"], "crop": 3}
    assert (recipe.schedule, recipe.optimizer) == (convnets[0]["schedule"], RECIPE.optimizer)


@ray
@pytest.mark.slow
def test_concurrent_trials_agree_with_sequential_ones(cluster: Cluster, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"algorithm": "random", "scheduler": "fifo", "num_trials": 4, "num_epochs": 1}
    two = run(cluster, folder=tmp_path / "two", max_concurrent_trials=2, **arguments)
    one = run(cluster, folder=tmp_path / "one", max_concurrent_trials=1, **arguments)
    assert [record.config for record in two] == [record.config for record in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=0.02)  # one thread each, but all of them in the reference


def _record(trial: int, *, accuracy: float, loss: float = 0.1, status: str = "finished") -> TrialRecord:
    history = [{"epoch": 1, "validation_accuracy": accuracy, "validation_loss": loss}]
    return TrialRecord(trial=trial, status=status, config={}, history=history)


def test_the_best_trial_has_the_highest_accuracy_then_the_lowest_loss() -> None:
    assert best_trial([_record(1, accuracy=0.9), _record(2, accuracy=0.95)]).trial == 2
    assert best_trial([_record(1, accuracy=0.9, loss=0.3), _record(2, accuracy=0.9, loss=0.2)]).trial == 2
    assert best_trial([_record(1, accuracy=0.9), _record(2, accuracy=0.9)]).trial == 1
    assert best_trial([_record(1, accuracy=0.5), _record(2, accuracy=0.99, status="diverged")]).trial == 1
