"""Run a command so that none of its processes is left when it ends.

DVC ignores Ctrl-C while a stage runs; on SIGTERM it dies and leaves the stage running. Ray and Prefect install their
own signal handlers and start daemons. So the work runs in a child process in its own session, and this small parent
controls it: on SIGINT, SIGTERM, SIGHUP or the death of its own parent it interrupts the child, and after a grace period
it kills every descendant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import psutil

from mnist_pipe.errors import message_and_code

GRACE_SECONDS = 3.5
"""Time from the first signal to SIGKILL, in seconds; a stage must have ended within 5 s."""
_PR_SET_CHILD_SUBREAPER = 36
_INNER = "MNIST_PIPE_SUPERVISED"


def run_supervised(module: str, arguments: Sequence[str], *, grace_seconds: float = GRACE_SECONDS) -> int | None:
    """Run `python -m module arguments` in a supervised child and return its exit code; in that child, return None.

    A command that must leave no processes behind calls this first, and does its work if the result is None. It has
    `grace_seconds` to end after a signal.
    """
    if _INNER in os.environ:
        die_with_parent(grace_seconds=grace_seconds)
        return None
    os.environ[_INNER] = "1"
    return supervise([sys.executable, "-m", module, *arguments], grace_seconds=grace_seconds)


def supervise(command: Sequence[str], *, grace_seconds: float = GRACE_SECONDS) -> int:
    """Run `command` to its end and return its exit code, or 128 + the signal that stopped this process."""
    _adopt_orphans()
    caught: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    parent = os.getppid()
    child = subprocess.Popen(command, start_new_session=True)  # so the terminal's Ctrl-C reaches only this process
    try:
        deadline = None
        while child.poll() is None:
            if not caught and os.getppid() != parent:
                caught.append(signal.SIGTERM)
            if caught and deadline is None:
                deadline = time.monotonic() + grace_seconds
                child.send_signal(signal.SIGINT)
            if deadline is not None and time.monotonic() > deadline:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.1)
    finally:
        _end_descendants(gently=not caught)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + caught[0] if caught else int(child.wait())


def die_with_parent(*, grace_seconds: float = GRACE_SECONDS) -> None:
    """Interrupt this process when its parent exits, in case the supervisor itself is killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace_seconds)
        _end_descendants(gently=False)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def raise_when(find_error: Callable[[], Exception | None], *, grace_seconds: float = GRACE_SECONDS) -> None:
    """Raise in the main thread, from now on, the error that `find_error` returns, which is called every second.

    The main thread then has `grace_seconds` to end; what the error was about may be what it waits for.
    """

    def watch() -> None:
        while (error := find_error()) is None:
            time.sleep(1)
        found.append(error)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(grace_seconds)
        message, code = message_and_code(error)
        print(message, file=sys.stderr, flush=True)
        _end_descendants(gently=False)
        os._exit(code)

    def on_signal(_number: int, _: FrameType | None) -> None:
        raise found[0]

    found: list[Exception] = []
    signal.signal(signal.SIGUSR1, on_signal)
    threading.Thread(target=watch, daemon=True, name="raise-when").start()


def _adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants (on Linux), so that daemons can be found and killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_descendants(*, gently: bool) -> None:
    own = psutil.Process()
    if gently:
        remaining = own.children(recursive=True)
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(remaining, timeout=GRACE_SECONDS)
    # A killed process leaves its own children to this one, so the search is repeated.
    while remaining := [p for p in own.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(remaining, timeout=1)
