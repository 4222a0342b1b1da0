"""Run a command so that none of its processes is left when it ends.

DVC ignores Ctrl-C while a stage runs; on SIGTERM it dies and leaves the stage running. Ray and Prefect install their
own signal handlers and start daemons. So the work runs in a child process in its own session, and this small parent
controls it: on SIGINT, SIGTERM, SIGHUP or the death of its own parent it interrupts the child, and after a grace period
it kills every descendant.

Each process may be killed at any moment, and Python needs a tenth of a second before it can notice a death. So each is
told its parent, and compares when it starts. If this process and the child are killed together, a shell in the child's
process group, which waits for the child's death, kills what is left of the group.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import psutil

from mnist_pipe import command_line
from mnist_pipe.errors import UnavailableError, message_and_code
from mnist_pipe.paths import DVC_RWLOCKS

GRACE_SECONDS = 3.5
"""Time from the first signal to SIGKILL, in seconds; a stage must have ended within 5 s."""
_PR_SET_CHILD_SUBREAPER = 36
_INNER = "MNIST_PIPE_SUPERVISED"  # the supervisor's pid


def run_supervised(module: str, arguments: Sequence[str], *, grace_seconds: float = GRACE_SECONDS) -> int | None:
    """Run `python -m module arguments` in a supervised child and return its exit code; in that child, return None.

    A command that must leave no processes behind calls this first, and does its work if the result is None. It has
    `grace_seconds` to end after a signal.

    Raises:
        UnavailableError: a signal that this process did not send ended the child.
    """
    parent = os.getppid()
    if _INNER in os.environ:
        die_with_parent(int(os.environ.pop(_INNER)), grace_seconds=grace_seconds)
        kill_group_after_death(grace_seconds=grace_seconds)
        return None
    if _is_dvc_gone(parent):
        return 128 + signal.SIGTERM
    os.environ[_INNER] = str(os.getpid())
    code = supervise([sys.executable, "-m", module, *arguments], grace_seconds=grace_seconds, parent=parent)
    if code < 0:
        name = signal.Signals(-code).name
        fix = "the kernel does that when memory runs out: free some, and run it again" if name == "SIGKILL" else ""
        state = f"was ended by {name}"
        raise UnavailableError.missing("the process", state=state, where=next(iter(arguments), module), fix=fix)
    return code


def supervise(command: Sequence[str], *, grace_seconds: float = GRACE_SECONDS, parent: int | None = None) -> int:
    """Run `command` to its end and return its exit code, or 128 + the signal that stopped this process.

    `parent` is the process whose death stops this one, its parent by default.
    """
    _adopt_orphans()
    parent = parent or os.getppid()
    caught: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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


def die_with_parent(parent: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """Interrupt this process when its parent, the process `parent`, exits, in case the supervisor itself is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace_seconds)
        _end_descendants(gently=False)
        os._exit(128 + signal.SIGTERM)

    if os.getppid() != parent:  # killed while this process started, which has no descendants yet
        sys.exit(128 + signal.SIGTERM)
    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def kill_group_after_death(*, grace_seconds: float = GRACE_SECONDS) -> None:
    """Let a shell kill this process's group, which must be its own, some time after this process has died."""
    # The shell is of the group, so that no other group can get its number. Its standard input ends when this process
    # dies, the only one with the other end, so that nothing needs to be polled.
    standard_input, _ = os.pipe()
    subprocess.Popen(["/bin/sh", "-c", f"read _; sleep {grace_seconds}; kill -KILL 0"], stdin=standard_input)
    os.close(standard_input)


def _is_dvc_gone(parent: int) -> bool:
    """Return whether DVC started this process and has died since, so that `parent` is the one that adopted it.

    While a stage runs, DVC records the process that writes the stage's outputs.
    """
    if "DVC_STAGE" not in os.environ:
        return False
    try:
        records = [json.loads(path.read_bytes())["write"] for path in DVC_RWLOCKS if path.exists()]
        writers = {record["pid"] for written in records for record in written.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # the file is DVC's own, so that it may be damaged or of another version
    return bool(writers) and parent not in writers


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
        command_line.show(message, error=True)
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
