"""Stage `ingest`: fetch and verify the published files, and write them as Parquet."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.data import sources
from mnist_pipe.data.download import NoMirrorError
from mnist_pipe.data.splits import write_all, write_raw
from mnist_pipe.fingerprint import PACKAGE
from mnist_pipe.params.schema import IngestParams
from pipelines import retries


@task(retries=1, retry_delay_seconds=2, retry_condition_fn=retries.after(NoMirrorError))
def fetch(dataset: str, params: IngestParams) -> dict[str, Path]:
    """Return the paths of the verified files of `dataset`; a retry does not fetch a finished file again."""
    return sources.fetch(
        dataset,
        mirrors=[_place(mirror) for mirror in params.mirrors],
        folder=_place(params.folder),
        timeout_seconds=params.timeout_seconds,
        log=get_run_logger().info,
    )


def _place(mirror: str) -> str:
    """Return `mirror`, as a path in the worker's checkout if it is a relative folder that exists only there."""
    there = PACKAGE.parent / mirror
    return str(there) if "://" not in mirror and not Path(mirror).is_dir() and there.is_dir() else mirror


@task
def convert(dataset: str, found: dict[str, Path], fallback_for: str | None) -> dict[str, int]:
    """Check the files, write them as Parquet, and return the number of rows of each split."""
    splits = sources.load(dataset, found, fallback_for=fallback_for)
    write_all(paths.RAW, splits, write=write_raw)
    return {name: len(split.labels) for name, split in splits.items()}


@flow
def ingest(params: IngestParams) -> None:
    """Write `data/raw/{train,test}.parquet`, from the fallback data set if no mirror has the requested one."""
    with workspace():
        log = get_run_logger()
        dataset, fallback_for = params.dataset, None
        try:
            found = fetch(dataset, params)
        except NoMirrorError as error:
            if params.fallback is None:
                raise
            dataset, fallback_for = params.fallback, params.dataset
            log.warning(
                "FALLBACK: all stages use %s instead of %s. %s. To retry, run: dvc repro --force ingest && dvc repro",
                dataset,
                fallback_for,
                error,
            )
            found = fetch(dataset, params)
        rows = convert(dataset, found, fallback_for)
        log.info("%s: %s training and %s test images", dataset, f"{rows['train']:,}", f"{rows['test']:,}")
