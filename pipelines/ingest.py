"""Stage `ingest`: fetch and verify the published files, or read the user's own images, and write them as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger, task

from mnist_pipe import paths
from mnist_pipe.cluster.handoff import workspace
from mnist_pipe.data import ingestion, sources
from mnist_pipe.data.download import NoMirrorError
from mnist_pipe.data.splits import write_all, write_raw
from mnist_pipe.experiment import checkout_of
from mnist_pipe.fingerprint import PACKAGE
from mnist_pipe.params.schema import FORMATS, IngestParams
from pipelines import artifacts, retries

if TYPE_CHECKING:
    from mnist_pipe.data.decoding import Decode


@task(retries=1, retry_delay_seconds=2, retry_condition_fn=retries.after(NoMirrorError))
def fetch(dataset: str, params: IngestParams) -> dict[str, Path]:
    """Return the paths of the verified files of `dataset`; a retry does not fetch a finished file again."""
    return sources.fetch(
        dataset,
        mirrors=[_place(mirror) for mirror in params.mirrors],
        timeout_seconds=params.timeout_seconds,
        log=get_run_logger().info,
    )


def _place(path: str) -> str:
    """Return `path`; a relative one that exists only there, as a path in the experiment's or worker's checkout."""
    if "://" in path or Path(path).exists():
        return path
    checkouts = (checkout_of(Path.cwd()), PACKAGE.parent)
    return next((str(root / path) for root in checkouts if (root / path).exists()), path)


@task
def convert(dataset: str, found: dict[str, Path], fallback_for: str | None) -> dict[str, int]:
    """Check the files, write them as Parquet, and return the number of rows of each split."""
    splits = sources.load(dataset, found, fallback_for=fallback_for)
    write_all(paths.RAW, splits, write=write_raw)
    return {name: len(split.labels) for name, split in splits.items()}


@task
def read_own(params: IngestParams) -> dict[str, int]:
    """Read the user's own images, write them as Parquet, and return the number of rows of each split.

    Images in a bucket are decoded by a job of Ray Data, others by every CPU of this machine.
    """
    from mnist_pipe.cluster import storage
    from mnist_pipe.data.decoding import decode_here

    log = get_run_logger()
    place = storage.open_uri(params.path) if "://" in params.path else None
    path = place.root if place else str(Path(_place(params.path)))
    with _decoder() if place else nullcontext(decode_here) as decode_chunks, ExitStack() as shown:
        show: Callable[[int], None] | None = None

        def on_pictures(done: int, total: int) -> None:
            nonlocal show
            if show is None and done < total:  # one chunk is read before anybody could look
                show = _progress(shown, total=total)
            if show:
                show(done)

        splits = ingestion.read(
            params,
            path=path,
            filesystem=place.filesystem if place else None,
            decode_chunks=decode_chunks,
            on_pictures=on_pictures,
        )
    write_all(paths.RAW, splits, write=write_raw)
    log.info("%s", ingestion.sentence(splits["train"]))
    return {name: len(split.labels) for name, split in splits.items()}


@contextmanager
def _decoder() -> Iterator[Decode]:
    """Connect to Ray, and yield the function that decodes pictures there."""
    from mnist_pipe.cluster import ray_session
    from mnist_pipe.data.decoding import decode_on_cluster

    with ray_session.connected("ingest") as available:
        yield partial(decode_on_cluster, readers=available.num_cpus)


def _progress(shown: ExitStack, *, total: int) -> Callable[[int], None]:
    """Return a function that shows how many of all pictures are read, in the terminal and on the page of the run."""
    from tqdm import tqdm

    description = "Pictures that were read"
    page = shown.enter_context(artifacts.Progress("ingest", total=total, description=description))
    bar = shown.enter_context(tqdm(total=total, desc="ingest", unit=" pictures", leave=False, disable=None))

    def show(done: int) -> None:
        bar.update(done - bar.n)
        page.show(done)

    return show


@flow
def ingest(params: IngestParams) -> None:
    """Write `data/raw/{train,test}.parquet`, from the fallback data set if no mirror has the requested one."""
    with workspace():
        log = get_run_logger()
        dataset, fallback_for = params.dataset, None
        if dataset in FORMATS:
            dataset, rows = str(params.name), read_own(params)
        else:
            try:
                found = fetch(dataset, params)
            except NoMirrorError as error:
                if params.fallback is None:
                    raise
                dataset, fallback_for = params.fallback, params.dataset
                log.warning(
                    "FALLBACK: all stages use %s instead of %s. %s. "
                    "To retry, run: dvc repro --force ingest && dvc repro",
                    dataset,
                    fallback_for,
                    error,
                )
                found = fetch(dataset, params)
            rows = convert(dataset, found, fallback_for)
        log.info("%s: %s training and %s test images", dataset, f"{rows['train']:,}", f"{rows['test']:,}")
