"""The final training: the search's best configuration on Ray Train, with a checkpoint every epoch."""

from __future__ import annotations

import shutil
from typing import Any

from prefect import flow, get_run_logger, task

from mnist_pipe import layout
from mnist_pipe.params import TrainParams


@task
def fit(recipe: dict[str, Any], params: TrainParams, run_name: str) -> dict[str, Any]:
    """Train on Ray; return the history, the workers and the folder of the last checkpoint."""
    from mnist_pipe import preflight
    from mnist_pipe.training import distributed
    from mnist_pipe.training.loop import Recipe

    logger = get_run_logger()

    def show(metrics: dict[str, float]) -> None:
        logger.info("%s", distributed.progress_line(metrics, num_epochs=params.num_epochs))

    with distributed.cluster() as available:
        preflight.check_workers(
            "train.num_workers",
            params.num_workers,
            use_gpu=params.use_gpu,
            num_cpus=available.num_cpus,
            num_gpus=available.num_gpus,
            where="the cluster",
        )
        scale = distributed.scale(available, num_workers=params.num_workers, use_gpu=params.use_gpu)
        result = distributed.fit(
            Recipe(**recipe),
            data=layout.NORMALIZED,
            name=run_name,
            storage=layout.RAY_RESULTS,
            scale=scale,
            on_epoch=show,
        )
    return {"history": result.history, "state": str(result.state), "num_workers": scale.num_workers}


@task
def write_candidate(recipe: dict[str, Any], history: list[dict[str, float]], state: str, num_workers: int) -> None:
    """Write `models/candidate`, the learning curves and the training's metrics."""
    from pathlib import Path

    import pandas as pd
    import torch

    from mnist_pipe.files import replacing, write_json
    from mnist_pipe.training import checkpoint, loop

    full = loop.Recipe(**recipe)
    model, optimizer = loop.new_run(full, device=torch.device("cpu"))
    checkpoint.load_state(Path(state), model=model, optimizer=optimizer)
    card = checkpoint.model_card(full.to_dict(), model=model, metrics=history[-1], data=layout.TRAINING_SPLITS)
    checkpoint.save_model(layout.CANDIDATE, model, card=card)
    with replacing(layout.CURVES) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    write_json(layout.TRAIN_REPORT, {**history[-1], "model": recipe["model"], "num_workers": num_workers})


@flow(name="train")
def train(params: TrainParams, models: dict[str, dict[str, Any]]) -> None:
    """Train the best configuration that the search found."""
    from mnist_pipe.files import read_json
    from mnist_pipe.identity import run_name as name_of

    config = read_json(layout.BEST, fix="run: dvc repro search")["config"]
    recipe = {
        **config,
        "model_params": models.get(config["model"], {}),
        **params.model_dump(exclude={"num_workers", "use_gpu"}),
    }
    run_name = name_of("train", params=recipe, inputs=layout.TRAINING_SPLITS.values())
    result = fit(recipe, params, run_name)
    write_candidate(recipe, result["history"], result["state"], result["num_workers"])
    accuracy = 100 * result["history"][-1]["validation_accuracy"]
    get_run_logger().info("trained %s: validation accuracy %.2f %%", recipe["model"], accuracy)
    # What a killed run resumes from; a finished one, asked for again, is to be trained again.
    for attempt in layout.RAY_RESULTS.glob(f"{run_name}.*"):
        shutil.rmtree(attempt, ignore_errors=True)
