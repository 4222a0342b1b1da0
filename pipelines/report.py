"""Stage `report`: `reports/index.html`, one page that opens offline."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task

from mnist_pipe import files, layout
from mnist_pipe.evaluation.report import page
from pipelines import STAGES
from pipelines.stage import stage


@stage
def report() -> None:
    """Write the report."""
    write()
    get_run_logger().info(f"report: {layout.REPORT}")


@task
def write() -> None:
    """Write the page from the figures and pictures of the stages before."""
    files.write_bytes(layout.REPORT, page(Path(), stages=tuple(STAGES)).encode())
