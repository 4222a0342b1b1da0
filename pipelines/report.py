"""Stage `report`: `reports/index.html`, one page that opens offline."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from mnist_pipe import atomic, paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.evaluation.report import render_page
from pipelines import STAGES


@flow
def report() -> None:
    """Write the report."""
    with workspace():
        write()
        get_run_logger().info(f"report: {paths.REPORT}")


@task
def write() -> None:
    """Write the page from the figures and pictures of the stages before."""
    atomic.write_bytes(paths.REPORT, render_page(Path(), stages=tuple(STAGES)).encode())
