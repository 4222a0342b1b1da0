"""Reading of tables in a fixed order with Ray Data: ahead of use, in bounded memory, without console output.

This module imports nothing heavy, because every reader's process imports it before it reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mnist_pipe.errors import PipelineError

if TYPE_CHECKING:
    import ray.data

_PREFETCHED = 4  # blocks that are ready in the process that uses them
_MAX_TASKS = 10_000
_PAUSE_SECONDS = 0.03


def read_in_order(
    items: Sequence[tuple[Any, ...]],
    read: Callable[..., Iterable[pa.Table]],
    *,
    node: str | None,
    then: Callable[[ray.data.Dataset], ray.data.Dataset] = lambda dataset: dataset,
    readers: int = 1,
    sharers: int = 1,
    block_bytes: int = 64 * 2**20,
) -> Generator[pa.Table]:
    """Yield the tables of `read(*item)` in the order of `items`, read ahead by Ray Data in bounded memory.

    Args:
        items: the arguments of each call of `read`.
        read: returns the tables of one item; it runs in Ray actors.
        node: the id of the only Ray node that can read the items; None allows any node.
        then: further transformations, applied before the tables reach this process.
        readers: the number of items that are read at once.
        sharers: the number of concurrent calls of this function, among which the object store is divided.
        block_bytes: the approximate size, in bytes, to which tables are joined or cut.

    Raises:
        PipelineError: `read` or a function of `then` raised it.
    """
    import ray.data

    _silence_console()
    dataset = ray.data.from_items(list(range(len(items))), override_num_blocks=min(len(items), _MAX_TASKS)).map_batches(
        _Reader,
        fn_constructor_args=(items, read),
        batch_size=None,
        # The workers of a training hold every CPU, so a reader that required one would never start.
        num_cpus=0,
        # Actors, because a task's process exits after a second without work, and a new one costs 2.5 s of CPU time.
        compute=ray.data.ActorPoolStrategy(size=readers),
        label_selector={"ray.io/node-id": node} if node else None,
    )
    dataset = then(dataset)
    _configure(dataset.context, block_bytes=block_bytes, sharers=sharers)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise type(error.cause)(str(error.cause).splitlines()[0]) from None  # Ray Data appends its own advice
        raise


def _configure(context: ray.data.DataContext, *, block_bytes: int, sharers: int) -> None:
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = block_bytes
    context.override_object_store_memory_limit_fraction = 0.5 / sharers
    context.custom_execution_callback_classes = [_ThrottleScheduler]
    # Retry a storage that does not answer, after at most 2, 4, 8, 16 and 32 seconds.
    context.retried_map_errors, context.max_map_retries = ["AWS Error"], 6


def _silence_console() -> None:
    """Remove the console handlers of Ray Data's logger; failures are raised, and its log file remains."""
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):
            logger.removeHandler(handler)


class _Reader:
    """The reader of the items whose numbers are in a block; each actor has one instance."""

    def __init__(self, items: Sequence[tuple[Any, ...]], read: Callable[..., Iterable[pa.Table]]) -> None:
        self._items, self._read = items, read

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        """Yield the tables of the items whose numbers `batch["item"]` holds, int64 `(items,)`."""
        for number in batch["item"].tolist():
            yield from self._read(*self._items[number])


class _ThrottleScheduler:
    """A pause in Ray Data's scheduling loop, as a class for `DataContext.custom_execution_callback_classes`.

    The loop blocks until some block is ready, so it spins while ready blocks wait for a slow consumer. With an idle
    consumer on two busy CPUs, it took 0.4 of a CPU, and the interpreter's lock; with this pause, it takes 0.08.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...
