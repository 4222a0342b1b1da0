"""Stage `normalize`: check, split and standardise the images."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from mnist_pipe import atomic, paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.data import normalization
from mnist_pipe.data.splits import read_raw, write_all, write_normalized
from mnist_pipe.params.schema import NormalizeParams


@task
def standardise(params: NormalizeParams) -> dict[str, int]:
    """Write the three splits and the report, and return the number of rows of each split."""
    raw = {name: read_raw(paths.RAW / f"{name}.parquet") for name in ("train", "test")}
    splits, report = normalization.normalize(
        raw["train"],
        raw["test"],
        validation_rows=params.validation_rows,
        seed=params.seed,
    )
    write_all(paths.NORMALIZED, splits, write=write_normalized)
    atomic.write_json(paths.DATA_REPORT, report)
    return {name: len(normalized.labels) for name, normalized in splits.items()}


@flow
def normalize(params: NormalizeParams) -> None:
    """Write `data/normalized/{train,validation,test}.parquet` and `reports/data.json`."""
    with workspace():
        rows = standardise(params)
        if rows["validation"] < params.validation_rows:
            requested, got = params.validation_rows, rows["validation"]
            get_run_logger().warning(
                "validation_rows: %s requested, %s used, a fifth of the training split", requested, got
            )
        get_run_logger().info("rows: %s", ", ".join(f"{name} {number:,}" for name, number in rows.items()))
