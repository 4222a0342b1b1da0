"""Stage `baseline`: the linear softmax classifier, whose accuracy every other model must beat."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.params.schema import BaselineParams


@task
def train_linear(params: BaselineParams) -> dict[str, float]:
    """Train on this machine's CPU, write `models/baseline`, and return the last epoch's metrics."""
    import torch

    from mnist_pipe import hardware
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.models import saved
    from mnist_pipe.training import checkpoint, loop
    from mnist_pipe.training.batches import to_device
    from mnist_pipe.training.recipe import Recipe

    hardware.limit_threads()
    recipe = Recipe(model="linear", optimizer="adam", precision="float32", **params.model_dump())
    cpu = torch.device("cpu")
    splits = [read_normalized(path) for path in paths.TRAINING_SPLITS.values()]
    training, validation = (to_device(split, device=cpu) for split in splits)
    model, optimizer = loop.new_run(recipe, device=cpu, facts=splits[0].facts)
    *_, metrics = loop.train(recipe, model=model, optimizer=optimizer, training=training, validation=validation)
    card = checkpoint.model_card(recipe.to_dict(), model=model, metrics=metrics, data=paths.TRAINING_SPLITS)
    saved.save_model(paths.BASELINE, model, card=card)
    return metrics


@flow
def baseline(params: BaselineParams) -> None:
    """Train the baseline and report its metrics."""
    with workspace():
        from mnist_pipe.atomic import write_json

        metrics = train_linear(params)
        write_json(paths.BASELINE_REPORT, metrics)
        get_run_logger().info("baseline: validation accuracy %.2f %%", 100 * metrics["validation_accuracy"])
