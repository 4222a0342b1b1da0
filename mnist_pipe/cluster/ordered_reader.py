"""Tables in a fixed order from Ray Data: read ahead by actors, in bounded memory, without a word on the console.

Nothing heavy is imported here, since every reader's process imports it before it reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mnist_pipe.errors import PipelineError

if TYPE_CHECKING:
    import ray.data

_AHEAD = 4  # blocks that lie ready where they are used
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
) -> Iterator[pa.Table]:
    """The tables of `read(*item)` for each item, in the order of `items`, read ahead by Ray Data in bounded memory.

    Args:
        node: the one Ray node that the items can be read on; None for any.
        then: what is made of the tables before they come here.
        readers: how many items are read at once.
        sharers: how many of these go on at once; each takes its share of the object store.
        block_bytes: tables are joined or cut to about this size.

    Raises:
        PipelineError: what `read`, or a function of `then`, raised.
    """
    import ray.data

    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):  # the console: what fails is raised, and the log file stays
            logger.removeHandler(handler)
    dataset = ray.data.from_items(list(range(len(items))), override_num_blocks=min(len(items), _MAX_TASKS)).map_batches(
        _Reader,
        fn_constructor_args=(items, read),
        batch_size=None,
        # The workers of a training hold every CPU, and would wait for ever for a reader that asks for one.
        num_cpus=0,
        # Actors: the process of a task ends after a second without work, and a new one costs 2.5 s of a processor.
        compute=ray.data.ActorPoolStrategy(size=readers),
        label_selector={"ray.io/node-id": node} if node else None,
    )
    dataset = then(dataset)
    context = dataset.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = block_bytes
    context.override_object_store_memory_limit_fraction = 0.5 / sharers
    context.custom_execution_callback_classes = [_ThrottleScheduler]
    # A storage that is away for a while is asked again, after 2, 4, 8, 16 and 32 seconds at most.
    context.retried_map_errors, context.max_map_retries = ["AWS Error"], 6
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_AHEAD)
    except ray.exceptions.RayTaskError as fault:
        if isinstance(fault.cause, PipelineError):
            raise type(fault.cause)(str(fault.cause).splitlines()[0]) from None  # Ray Data adds advice of its own
        raise


class _Reader:
    """What an actor of Ray Data calls for a block of numbers of items."""

    def __init__(self, items: Sequence[tuple[Any, ...]], read: Callable[..., Iterable[pa.Table]]) -> None:
        self._items, self._read = items, read

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        for number in batch["item"].tolist():
            yield from self._read(*self._items[number])


class _ThrottleScheduler:
    """A callback of Ray Data's scheduling loop.

    The loop waits for a block to be ready. While blocks that are ready wait for us it spins, and would take nine tenths
    of a processor, and the interpreter's lock, from the training.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...
