"""Stage `register`: register the candidate as a model version and, if every gate passes, as the champion."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from mnist_pipe import atomic, lineage, paths, timings
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.data.parquet import read_provenance
from mnist_pipe.errors import BusyError
from mnist_pipe.evaluation import markdown
from mnist_pipe.experiment import Experiment
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import model_card, registration, versions
from pipelines import artifacts, retries

VALIDATION = paths.PREDICTIONS / "validation.parquet"


@task
def trace() -> dict[str, Any]:
    """Return the candidate's lineage."""
    card = atomic.read_json(paths.CANDIDATE / paths.CARD, fix="run: dvc repro train")
    return lineage.collect(Path.cwd(), card=card, provenance=read_provenance(VALIDATION))


@task(
    retries=2, retry_delay_seconds=2, retry_condition_fn=retries.after(BusyError)
)  # another writer may hold the database
def record(params: RegisterParams, origin: dict[str, Any], experiment: Experiment | None) -> dict[str, Any]:
    """Register the candidate, move the alias if it passes, and write `reports/registration.json`."""
    import pandas as pd

    name = origin["dataset"] + versions.CLASSIFIER
    evaluation = atomic.read_json(paths.EVALUATION, fix="run: dvc repro evaluate")
    curves = pd.read_csv(paths.CURVES).to_dict("records")
    training = timings.read(Path.cwd()).get("train")
    candidate = registration.Candidate(
        folder=paths.CANDIDATE,
        predictions=VALIDATION,
        metrics=evaluation,
        lineage=origin,
        text=model_card.render(
            name, card=atomic.read_json(paths.CANDIDATE / paths.CARD), evaluation=evaluation, lineage=origin
        ),
        curves=[{str(key): value for key, value in epoch.items()} for epoch in curves],
        trained=(training.ended_at - training.seconds, training.ended_at) if training else None,
        experiment=experiment,
    )
    registered = registration.register(candidate, root=Path.cwd(), name=name, params=params)
    atomic.write_json(paths.REGISTRATION, asdict(registered))
    return asdict(registered)


@flow
def register(params: RegisterParams, experiment: Experiment | None = None) -> None:
    """Register the candidate, which `experiment` made if it is not None, and report the result of each gate."""
    with workspace():
        outcome = record(params, trace(), experiment)
        title = f"{outcome['name']} version {outcome['version']}"
        model = versions.find(f"{outcome['name']}/{outcome['version']}", root=Path.cwd())
        url = artifacts.mlflow_run(model.run_id, root=Path.cwd())
        artifacts.link(url, key="mlflow-run", text=f"MLflow run of {title}")
        log, rows = get_run_logger(), []
        for gate in outcome["gates"]:
            verdict = "passed" if gate["passed"] else "failed"
            rows.append((gate["name"], verdict, markdown.plain(gate["text"])))
            log.info("gate %s %s: %s", gate["name"], verdict, gate["text"])
        log.info("%s: %s", title, outcome["reason"])
        table = markdown.table(("gate", "", ""), rows)
        text = f"**{title}.** {markdown.plain(outcome['reason'])}\n\n{table}\n"
        create_markdown_artifact(text, key="gates", description=title)
