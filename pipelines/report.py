"""Stage `report`: write `reports/index.html`, one self-contained page that opens offline."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow, get_run_logger, task

from mnist_pipe import atomic, paths
from mnist_pipe.cluster import handoff
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.errors import BusyError, InputError
from mnist_pipe.evaluation.report import render_page
from mnist_pipe.registry import registration, versions
from pipelines import STAGES, artifacts, retries


@flow
def report() -> None:
    """Write `reports/index.html`."""
    with workspace():
        write()
        attach()
        if not os.environ.get(handoff.REQUEST):  # on a cluster the page is sent to the client, and its folder removed
            artifacts.link(paths.REPORT.resolve().as_uri(), key="report", text="Report")
        get_run_logger().info(f"report: {paths.REPORT}")


@task
def write() -> None:
    """Render the page from the metrics and plots of the earlier stages, and write it."""
    atomic.write_bytes(paths.REPORT, render_page(Path(), stages=tuple(STAGES)).encode())


@task(retries=2, retry_delay_seconds=2, retry_condition_fn=retries.after(BusyError))
def attach() -> None:
    """Log the page and the plots to the run of the registered model, if the registry here has it."""
    registered = atomic.read_json(paths.REGISTRATION, fix="run: dvc repro register")
    spec = f"{registered['name']}/{registered['version']}"
    try:
        model = versions.find(spec, root=Path.cwd())
    except InputError:
        # reports/registration.json came with a checkout, and the model was registered elsewhere.
        get_run_logger().info("%s is not in this registry: the report is not attached to it", spec)
        return
    registration.log_report(model, root=Path.cwd(), page=paths.REPORT, plots=paths.PLOTS)
    url = artifacts.mlflow_run(model.run_id, root=Path.cwd())
    artifacts.link(url and f"{url}/artifacts", key="mlflow-run", text=f"MLflow run of {spec}, with this report")
    versions.champion(registered["name"], root=Path.cwd())  # kept, so that the first `mnist-pipe predict` is fast
