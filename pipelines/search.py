"""Stage `search`: search models, optimizers and their settings with Ray Tune, scored on the validation split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.errors import BusyError
from mnist_pipe.params.schema import Precision, RecipeParams, SearchParams
from pipelines import artifacts, retries

if TYPE_CHECKING:
    from mnist_pipe.cluster.storage import Storage
    from mnist_pipe.tuning.finals import Finalist

MAX_ROWS = 200
"""Largest number of rows of the table of trials on Prefect's page."""


@task
def tune(
    params: SearchParams,
    recipe: RecipeParams,
    models: dict[str, dict[str, Any]],
    precision: Precision,
    run_name: str,
) -> tuple[list[dict[str, Any]], list[Finalist]]:
    """Run the search on Ray; return its trials as plain dicts, in the order of the proposals, and those of the final.

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
    from mnist_pipe.tuning.finals import final
    from mnist_pipe.tuning.ledger import TrialRecord
    from mnist_pipe.tuning.search import Defaults, Session, search

    logger = get_run_logger()
    progress = artifacts.Progress("search", total=params.num_trials, description="Trials that have ended")

    def show(trial: TrialRecord) -> None:
        point = {**recipe.model_dump(), **trial.config}
        what = f"{point['model']} {point['optimizer']} lr {point['learning_rate']:.2g}"
        result = (
            f", validation accuracy {trial.score:.2%} after {len(trial.history)} epochs" if trial.score >= 0 else ""
        )
        logger.info(
            "trial %d of %d on %s: %s, %s%s", trial.trial, params.num_trials, trial.address, what, trial.status, result
        )

    with progress, ray_session.connected(run_name) as available:
        artifacts.link(available.job_url, key="ray-job", text=f"Ray job {run_name}")
        preflight.check_workers(
            "search.max_concurrent_trials",
            params.max_concurrent_trials,
            num_cpus=available.num_cpus,
            num_gpus=available.num_gpus,
            where="the cluster",
        )
        splits = {name: read_normalized(path) for name, path in paths.TRAINING_SPLITS.items()}
        place = storage.project_storage(Path.cwd())
        artifacts.link(_curves(place, run_name), key="tensorboard", text=f"TensorBoard: curves of {run_name}")
        num_ended = itertools.count(1)
        with SearchLog(_experiment(splits["train"].provenance), root=Path.cwd(), search_id=run_name) as log:

            def on_trial(trial: TrialRecord) -> None:
                show(trial)
                log.add(vars(trial))
                progress.show(next(num_ended))

            def on_run(trial: TrialRecord, seed: int, run: TrialRecord) -> None:
                logger.info(
                    "trial %d in full, seed %d: validation accuracy %.2f %%", trial.trial, seed, 100 * run.score
                )
                log.add(_of_final(trial.trial, seed, run))

            defaults = Defaults(recipe=recipe, models=models, precision=precision)
            session = Session(name=run_name, storage=place, available=available)
            trials = search(
                params,
                defaults=defaults,
                training=splits["train"].first(params.train_rows),
                validation=splits["validation"],
                session=session,
                on_trial=on_trial,
            )
            finalists = []
            if params.final_seeds:
                finalists = final(
                    trials,
                    params,
                    defaults=defaults,
                    training=splits["train"].first(recipe.train_rows),
                    validation=splits["validation"],
                    session=session,
                    on_run=on_run,
                )
    return [vars(trial) for trial in trials], finalists


def _of_final(trial: int, seed: int, run: Any) -> dict[str, Any]:
    """Return a run of the final as MLflow's log takes a trial."""
    return {**vars(run), "trial": f"{trial}-seed-{seed}"}


def _curves(place: Storage, run_name: str) -> str:
    """Return the URL of TensorBoard with the runs of the search or, if it does not run, that of their folder."""
    from mnist_pipe.cluster.ray_session import attempts

    page = artifacts.addresses(Path.cwd()).get("tensorboard")
    if page:
        return f"{page}/?runFilter={run_name}#timeseries"
    key = f"ray/{run_name}.{len(attempts(place, run_name))}"
    folder = place.local(key)
    return folder.as_uri() if folder else f"{place.uri}/{key}"


@task(
    retries=2, retry_delay_seconds=2, retry_condition_fn=retries.after(BusyError)
)  # another writer may hold the database
def log_to_mlflow(trials: list[dict[str, Any]], run_name: str) -> None:
    """Complete the search's run in MLflow, with a child run for each trial."""
    from mnist_pipe.data.parquet import read_provenance
    from mnist_pipe.registry.search_log import log_search, run_of

    experiment, root = _experiment(read_provenance(paths.TRAINING_SPLITS["train"])), Path.cwd()
    log_search(experiment, trials, root=root, search_id=run_name)
    run_id = run_of(experiment, root=root, search_id=run_name)
    artifacts.link(artifacts.mlflow_run(run_id, root=root), key="mlflow-run", text=f"MLflow run {run_name}")


def _experiment(provenance: Mapping[str, Any]) -> str:
    """Return the name of the MLflow experiment of searches on the data set."""
    return f"{provenance['dataset']}-search"


@task
def write_results(
    trials: list[dict[str, Any]], table: list[dict[str, Any]], finalists: list[Finalist]
) -> dict[str, Any]:
    """Write the table of trials, the best configuration and the search's metrics; return the best configuration."""
    import pandas as pd

    from mnist_pipe.atomic import atomic_file, write_json
    from mnist_pipe.tuning.finals import best_finalist
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
    if finalists:
        chosen = best_finalist(finalists)
        result = {
            "config": chosen.trial.config,
            "trial": chosen.trial.trial,
            "validation_accuracy": chosen.mean,
            "validation_loss": chosen.loss,
            "final": [
                {"trial": one.trial.trial, "accuracies": one.scores, "mean": one.mean, "deviation": one.deviation}
                for one in finalists
            ],
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
        from mnist_pipe.tuning.finals import name_of, seeds_of

        trials, finalists = tune(params, recipe, models, precision, run_name)
        table = [_row(trial, params, recipe) for trial in trials]
        result = write_results(trials, table, finalists)
        runs = [
            _of_final(one.trial.trial, seed, run)
            for one in finalists
            for seed, run in zip(seeds_of(params), one.runs, strict=True)
        ]
        log_to_mlflow([*trials, *runs], run_name)
        note = "All trials" if len(table) <= MAX_ROWS else f"The first {MAX_ROWS} of {len(table):,} trials"
        create_table_artifact(key="trials", table=table[:MAX_ROWS], description=note)
        get_run_logger().info(
            "best: trial %d, validation accuracy %.2f %%", result["trial"], 100 * result["validation_accuracy"]
        )
        for name in (run_name, *(name_of(run_name, seed) for seed in seeds_of(params))):
            forget(name)


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
