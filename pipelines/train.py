"""Stage `train`: train the search's best configuration with Ray Train, with a checkpoint after every epoch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.cluster.storage import VARIABLE, Storage
from mnist_pipe.params.schema import RecipeParams, TrainParams
from pipelines import artifacts

if TYPE_CHECKING:
    from mnist_pipe.training.streaming import Shards


@task
def fit(recipe: dict[str, Any], train_rows: int | None, params: TrainParams, run_name: str) -> dict[str, Any]:
    """Train on Ray and return `{"history": ..., "num_workers": ...}`.

    Afterwards the last checkpoint is in `state_of(run_name)`. The history has one dict of metrics for each epoch.

    Args:
        recipe: the fields of the `Recipe` to train.
        train_rows: number of training rows to use, counted from the first; None uses all. Ignored when streaming.
        params: the workers, the devices and the way of reading the data.
        run_name: name of the run, whose checkpoints an interrupted run resumes from.
    """
    from mnist_pipe import preflight
    from mnist_pipe.cluster import ray_session, storage
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.training import ray_train
    from mnist_pipe.training.loop import progress_line
    from mnist_pipe.training.progress import Progress
    from mnist_pipe.training.recipe import Recipe

    info, num_epochs = get_run_logger().info, recipe["num_epochs"]
    shown = artifacts.Progress("train", total=num_epochs, description="Epochs that have ended")

    class Log(Progress):
        """Writer of the run's progress to the flow's log and, for editors that show it, to `reports/curves.csv`."""

        def __init__(self) -> None:
            self._history: list[dict[str, float]] = []

        def on_start(self, addresses: list[str]) -> None:
            info("%d worker%s: %s", len(addresses), "s" * (len(addresses) > 1), ", ".join(addresses))

        def on_epoch(self, metrics: dict[str, float]) -> None:
            info("%s", progress_line(metrics, num_epochs=num_epochs))
            self._history.append(metrics)
            _write_curves(self._history)
            shown.show(int(metrics["epoch"]))

        def on_save(self, position: dict[str, Any]) -> None:
            info(
                "a node is about to leave: saved a checkpoint at epoch %d, step %d",
                position["epoch"] + 1,
                position["step"],
            )

        def on_wait(self) -> None:
            info("waiting for free nodes: no worker has started yet")

    path, place = paths.TRAINING_SPLITS["train"], storage.project_storage(Path.cwd())

    with shown, ray_session.connected(run_name) as available:
        artifacts.link(available.job_url, key="ray-job", text=f"Ray job {run_name}")
        preflight.check_workers(
            "train.num_workers",
            params.num_workers,
            use_gpu=params.use_gpu,
            num_cpus=available.num_cpus,
            num_gpus=available.num_gpus,
            where="the cluster",
        )
        result = ray_train.fit(
            Recipe(**recipe),
            training=_rows(path, place) if params.data == "stream" else read_normalized(path).first(train_rows),
            validation=read_normalized(paths.TRAINING_SPLITS["validation"]),
            name=run_name,
            storage=place,
            state=state_of(run_name),
            scale=ray_session.scale(
                available,
                num_workers=params.num_workers,
                use_gpu=params.use_gpu,
                batch_size=recipe["batch_size"],
            ),
            progress=Log(),
        )
    return {"history": result.history, "num_workers": len(result.addresses)}


def _rows(path: Path, place: Storage) -> Shards:
    """Return the rows of `path`, read from the shared storage if there is one, so that every node can read them."""
    from mnist_pipe.training import streaming

    if not os.environ.get(VARIABLE):
        return streaming.shards(path)
    return streaming.shards(place.path(f"objects/{place.put(path)}"), filesystem=place.filesystem)


_COLUMNS = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]


def _write_curves(history: list[dict[str, float]]) -> None:
    import pandas as pd

    from mnist_pipe.atomic import atomic_file

    with atomic_file(paths.CURVES) as temporary:  # a resumed run has its keys in another order
        pd.DataFrame(history, columns=_COLUMNS).to_csv(temporary, index=False)


def state_of(run_name: str) -> Path:
    """Return the folder of a run's last checkpoint."""
    return paths.RUNS / run_name


@task
def write_candidate(
    recipe: dict[str, Any],
    history: list[dict[str, float]],
    run_name: str,
    *,
    num_workers: int,
    tta: bool,
) -> None:
    """Write `models/candidate`, calibrated on the validation split, the learning curves and the training's metrics.

    Args:
        recipe: the fields of the `Recipe` that was trained.
        history: the metrics of each epoch.
        run_name: name of the run whose last checkpoint is read.
        num_workers: number of workers that trained, for the report.
        tta: whether the model is to be loaded with test-time augmentation.
    """
    import torch

    from mnist_pipe.atomic import write_json
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.evaluation.calibration import fit_temperature
    from mnist_pipe.models import forward, saved
    from mnist_pipe.training import checkpoint, ema, loop
    from mnist_pipe.training.recipe import Recipe

    full, validation = Recipe(**recipe), read_normalized(paths.TRAINING_SPLITS["validation"])
    model, optimizer = loop.new_run(full, device=torch.device("cpu"), facts=validation.facts)
    checkpoint.load_state(state_of(run_name), model=model, optimizer=optimizer)
    card = checkpoint.model_card(
        full.to_dict(),
        model=model,
        metrics=history[-1],
        data=paths.TRAINING_SPLITS,
        tta=tta,
    )
    with ema.averaged(optimizer):
        logits = forward.logits(saved.for_inference(model, card=card), validation.images)
        card["temperature"] = fit_temperature(logits, validation.labels)
        saved.save_model(paths.CANDIDATE, model, card=card)
    _write_curves(history)
    write_json(paths.TRAIN_REPORT, {**history[-1], "model": recipe["model"], "num_workers": num_workers})


@flow
def train(params: TrainParams, recipe: RecipeParams, models: dict[str, dict[str, Any]], run_name: str) -> None:
    """Train the best configuration of the search; resume from the checkpoints of an earlier run of this name."""
    with workspace():
        from mnist_pipe.atomic import read_json
        from mnist_pipe.training.recipe import recipe_of

        best = read_json(paths.BEST, fix="run: dvc repro search")["config"]
        run = {"precision": params.precision, "seed": params.seed}
        if params.num_epochs != "auto":
            run["num_epochs"] = params.num_epochs
        full = recipe_of(recipe.model_dump(), found=best, models=models, **run).to_dict()
        result = fit(full, recipe.train_rows, params, run_name)
        write_candidate(
            full,
            result["history"],
            run_name,
            num_workers=result["num_workers"],
            tta=recipe.test_time_augmentation,
        )
        accuracy = 100 * result["history"][-1]["validation_accuracy"]
        get_run_logger().info("trained %s: validation accuracy %.2f %%", full["model"], accuracy)
        forget(run_name)


@task
def forget(run_name: str) -> None:
    """Remove the checkpoints from which a killed run resumes, so that a finished training runs again when requested."""
    from mnist_pipe.cluster import storage
    from mnist_pipe.cluster.ray_session import attempts

    place = storage.project_storage(Path.cwd())
    for attempt in attempts(place, run_name):
        place.remove(attempt)
    shutil.rmtree(state_of(run_name), ignore_errors=True)
