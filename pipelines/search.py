"""Stage `search`: search models, optimizers and their settings with Ray Tune, scored on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.errors import BusyError
from mnist_pipe.params.schema import Precision, RecipeParams, SearchParams
from pipelines import retries


@task
def tune(
    params: SearchParams,
    recipe: RecipeParams,
    models: dict[str, dict[str, Any]],
    precision: Precision,
    run_name: str,
) -> list[dict[str, Any]]:
    """Run the search on Ray and return its trials as plain dicts, in the order of the proposals.

    Args:
        params: the search space, the budget and the algorithms.
        recipe: the configuration whose fields are used where the space does not search them.
        models: constructor arguments by model.
        precision: precision of the computation in each trial.
        run_name: name of Ray's job and of the ledger from which an interrupted search resumes.
    """
    from mnist_pipe import preflight
    from mnist_pipe.cluster import ray_session, storage
    from mnist_pipe.data.splits import read_normalized
    from mnist_pipe.registry.search_log import SearchLog
    from mnist_pipe.tuning.ledger import TrialRecord
    from mnist_pipe.tuning.search import Defaults, Session, search

    logger = get_run_logger()

    def show(trial: TrialRecord) -> None:
        point = {**recipe.model_dump(), **trial.config}
        what = f"{point['model']} {point['optimizer']} lr {point['learning_rate']:.2g}"
        result = (
            f", validation accuracy {trial.score:.2%} after {len(trial.history)} epochs" if trial.score >= 0 else ""
        )
        logger.info(
            "trial %d of %d on %s: %s, %s%s", trial.trial, params.num_trials, trial.address, what, trial.status, result
        )

    with ray_session.connected(run_name) as available:
        preflight.check_workers(
            "search.max_concurrent_trials",
            params.max_concurrent_trials,
            num_cpus=available.num_cpus,
            num_gpus=available.num_gpus,
            where="the cluster",
        )
        splits = {name: read_normalized(path) for name, path in paths.TRAINING_SPLITS.items()}
        place = storage.project_storage(Path.cwd())
        with SearchLog(_experiment(splits["train"].provenance), root=Path.cwd(), search_id=run_name) as log:

            def on_trial(trial: TrialRecord) -> None:
                show(trial)
                log.add(vars(trial))

            trials = search(
                params,
                defaults=Defaults(recipe=recipe, models=models, precision=precision),
                training=splits["train"].first(params.train_rows),
                validation=splits["validation"],
                session=Session(name=run_name, storage=place, available=available),
                on_trial=on_trial,
            )
    return [vars(trial) for trial in trials]


@task(
    retries=2, retry_delay_seconds=2, retry_condition_fn=retries.after(BusyError)
)  # another writer may hold the database
def log_to_mlflow(trials: list[dict[str, Any]], run_name: str) -> None:
    """Complete the search's run in MLflow, with a child run for each trial."""
    from mnist_pipe.data.parquet import read_provenance
    from mnist_pipe.registry.search_log import log_search

    experiment = _experiment(read_provenance(paths.TRAINING_SPLITS["train"]))
    log_search(experiment, trials, root=Path.cwd(), search_id=run_name)


def _experiment(provenance: Mapping[str, Any]) -> str:
    """Return the name of the MLflow experiment of searches on the data set."""
    return f"{provenance['dataset']}-search"


@task
def write_results(trials: list[dict[str, Any]], table: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the table of trials, the best configuration and the search's metrics; return the best trial."""
    import pandas as pd

    from mnist_pipe.atomic import atomic_file, write_json
    from mnist_pipe.tuning.ledger import TrialRecord, best_trial

    winner = best_trial([TrialRecord(**trial) for trial in trials])
    with atomic_file(paths.TRIALS) as temporary:
        pd.DataFrame(table, dtype=object).to_csv(temporary, index=False)  # integers stay integers beside gaps
    result = {
        "config": winner.config,
        "trial": winner.trial,
        "validation_accuracy": winner.score,
        "validation_loss": winner.history[-1]["validation_loss"],
    }
    write_json(paths.BEST, result)
    statuses = [trial["status"] for trial in trials]
    write_json(
        paths.SEARCH_REPORT,
        {
            "num_trials": len(trials),
            **{f"num_{status}": statuses.count(status) for status in ("finished", "stopped", "diverged", "failed")},
            "best_trial": winner.trial,
            "best_validation_accuracy": winner.score,
        },
    )
    return result


@flow
def search(
    params: SearchParams,
    recipe: RecipeParams,
    models: dict[str, dict[str, Any]],
    run_name: str,
    precision: Precision = "auto",
) -> None:
    """Run the search, record every trial, and write the best configuration.

    An interrupted search with the same `run_name` is resumed.
    """
    with workspace():
        trials = tune(params, recipe, models, precision, run_name)
        table = [_row(trial, params, recipe) for trial in trials]
        result = write_results(trials, table)
        log_to_mlflow(trials, run_name)
        create_table_artifact(key="trials", table=table, description="All trials")
        get_run_logger().info(
            "best: trial %d, validation accuracy %.2f %%", result["trial"], 100 * result["validation_accuracy"]
        )
        forget(run_name)


@task
def forget(run_name: str) -> None:
    """Remove the records from which a killed search resumes, so that a finished search runs again when requested."""
    from mnist_pipe.cluster import storage
    from mnist_pipe.tuning.ledger import ledger_of

    ledger_of(run_name, storage=storage.project_storage(Path.cwd())).remove()


def _row(trial: Mapping[str, Any], params: SearchParams, recipe: RecipeParams) -> dict[str, Any]:
    from mnist_pipe.tuning.space import row

    last = trial["history"][-1] if trial["history"] else {}
    return {
        "trial": trial["trial"],
        "status": trial["status"],
        **row(trial["config"], space=params.space, recipe=recipe.model_dump()),
        "epochs": len(trial["history"]),
        **{key: last.get(key) for key in ("train_loss", "validation_loss", "validation_accuracy")},
    }
