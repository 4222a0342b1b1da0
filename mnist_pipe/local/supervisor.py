"""Run one command so that nothing of it is left when it ends.

DVC ignores Ctrl-C while a stage runs and, on SIGTERM, dies and leaves the stage behind; Ray and Prefect install signal
handlers of their own and start daemons. So the work runs in a child in its own session, and this small parent alone
decides: on SIGINT, SIGTERM or the death of its own parent it asks the child to stop, and after a grace period it ends
every process that came from it.
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
from collections.abc import Sequence
from types import FrameType

import psutil

GRACE_SECONDS = 3.5
"""From the first signal to SIGKILL; a stage must be gone within 5 s."""
_PR_SET_CHILD_SUBREAPER = 36
_INNER = "MNIST_PIPE_SUPERVISED"


def run_again(module: str, arguments: Sequence[str]) -> int | None:
    """Run `python -m module arguments` in a supervised child and return its exit code; in that child, None.

    A command that must leave nothing behind begins with this, and goes on where it gets None.
    """
    if _INNER in os.environ:
        die_with_parent()
        return None
    os.environ[_INNER] = "1"
    return supervise([sys.executable, "-m", module, *arguments])


def supervise(command: Sequence[str]) -> int:
    """Run `command` to its end and return its exit code, or 128 + the signal that stopped it."""
    _adopt_orphans()
    caught: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    parent = os.getppid()
    child = subprocess.Popen(command, start_new_session=True)  # the terminal's Ctrl-C reaches this process alone
    try:
        deadline = None
        while child.poll() is None:
            if not caught and os.getppid() != parent:
                caught.append(signal.SIGTERM)
            if caught and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
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


def die_with_parent() -> None:
    """Interrupt this process when its parent is gone, for the case that even the supervisor was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE_SECONDS)
        _end_descendants(gently=False)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def _adopt_orphans() -> None:
    """Have the kernel hand us the daemons of our descendants, so that they can be found and ended."""
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
    # A killed process may have handed us children of its own in the meantime.
    while remaining := [p for p in own.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(remaining, timeout=1)
