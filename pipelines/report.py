"""Stage `report`: write `reports/index.html`, one self-contained page that opens offline."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from mnist_pipe import atomic, paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.evaluation.report import render_page
from pipelines import STAGES


@flow
def report() -> None:
    """Write `reports/index.html`."""
    with workspace():
        write()
        get_run_logger().info(f"report: {paths.REPORT}")


@task
def write() -> None:
    """Render the page from the metrics and plots of the earlier stages, and write it."""
    atomic.write_bytes(paths.REPORT, render_page(Path(), stages=tuple(STAGES)).encode())
