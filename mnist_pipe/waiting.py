"""Waits for what is outside this process: announced after 3 s, and ended after at most 20 s."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mnist_pipe import command_line

T = TypeVar("T")

NOTICE_SECONDS = 3.0
LIMIT_SECONDS = 20.0
"""The longest wait for a service, a server or another process, in seconds, with all its retries."""


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Print `waiting for <what>` on standard error if the block takes more than 3 s."""
    notice = threading.Timer(NOTICE_SECONDS, lambda: command_line.show(f"waiting for {what}", error=True))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`, or raise its exception, after at most `seconds`.

    `work` runs in a thread: some of what libraries do, a DNS lookup for example, has no time-out of its own.

    Raises:
        TimeoutError: `work` is not done in time; its thread is left to end with the answer or with the process.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no reply within {seconds:g} seconds")
    return results[0]
