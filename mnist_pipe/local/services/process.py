"""Start the processes of a service in their own session, find them again, and stop them and no others."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from mnist_pipe import paths
from mnist_pipe.errors import UnavailableError
from mnist_pipe.local.http_probe import LOOPBACK, SECONDS
from mnist_pipe.local.services.program import Service, remove_folder

GRACE_SECONDS = 6.0
"""Time between SIGTERM and SIGKILL, in seconds; a Ray head needs 2 to 4 s to stop its twenty processes."""

_PORTS_TRIED = 100
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty SETTINGS
_CLOCK_SECONDS = 2.0  # the wall clock may be adjusted between two readings of a process's start time
_TICK_SECONDS = 0.02  # the kernel counts the time since the start of the machine in ticks of 0.01 s


def spawn(root: Path, command: Sequence[str], *, env: dict[str, str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a program that outlives the shell and never gets its Ctrl-C: a path, or one of this virtual environment."""
    with suppress(OSError):  # a disk without locks, or a process that outlived an earlier start
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not Path(command[0]).is_absolute():
        command = [sys.executable, str(Path(sys.executable).with_name(command[0])), *command[1:]]
    return subprocess.Popen(
        command,
        cwd=root,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def is_running(service: Service) -> bool:
    """Return whether the service's main process is alive."""
    process = _main_process(service)
    return process is not None and _is_alive(process)


def started_at(process: psutil.Process) -> float:
    """Return when a process started, in seconds since the start of the machine, whatever the clock was set to since."""
    return float(process.create_time() - psutil.boot_time())


def namespace() -> str:
    """Return the name of the kernel's namespace in which this process sees others; empty if it has no name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_elsewhere(service: Service) -> bool:
    """Return whether the service runs in another container, whose processes cannot be seen from here."""
    if service.namespace in ("", namespace()):
        return False
    # Every process of a service has its log as standard output, and with it the lock that `spawn` got.
    try:
        with Path(service.log).open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_in_place(root: Path, service: Service) -> bool:
    """Return whether the service was started from where `root` is now, or from another path that still leads there."""
    try:
        return not service.root or (Path(service.root) / paths.STATE).samefile(root / paths.STATE)
    except OSError:
        return False


def end(service: Service) -> None:
    """Terminate the service's main process, wait, kill the remaining processes, and remove its temporary files."""
    family = _family(service)
    if process := _main_process(service):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        _await_end(family)
    # Searched again: processes may have started meanwhile, and a main process that was killed leaves orphans.
    family |= _family(service)
    for process in filter(_is_alive, family):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(family)
    remove_folder(service)


def free_port(first: int) -> int:
    """Return the first free port of the loopback interface, starting at `first`.

    Raises:
        UnavailableError: a hundred consecutive ports are taken.
    """
    for port in range(first, first + _PORTS_TRIED):
        if is_free(port):
            return port
    state = f"from {first} to {first + _PORTS_TRIED - 1} is free"
    raise UnavailableError.missing("no port", state=state, where=LOOPBACK, fix="stop a program that uses one of them")


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of the loopback interface."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError:
            return False
    return True


def speaks_http2(host: str, port: int) -> bool:
    """Return whether a server at `host:port`, such as Ray's, answers the first bytes of HTTP/2.

    A server that hangs still accepts connections: its kernel does. `ray.init` would wait for it for 160 s, and then
    exit the process.
    """
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            connection.sendall(_HTTP2_PREFACE)
            return connection.recv(1) != b""
    except OSError:
        return False


def _main_process(service: Service) -> psutil.Process | None:
    """Return the service's main process (possibly a zombie), or None if it exited or its pid was reused."""
    try:
        process = psutil.Process(service.pid)
        return process if _is_since(process, service, also_later=False) else None
    except psutil.NoSuchProcess:
        return None


def _await_end(processes: Iterable[psutil.Process]) -> None:
    # psutil.wait_procs would wait the whole time for a zombie that nobody reaps, as in a container without init.
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _family(service: Service) -> set[psutil.Process]:
    """Return all processes of the service's session and all their descendants.

    The set is empty if the pid was reused: the kernel does not reuse a number that is still a session's id, so the
    session no longer exists.
    """
    if psutil.pid_exists(service.pid) and _main_process(service) is None:
        return set()
    processes = {process.pid: process for process in psutil.process_iter(["ppid"])}
    family = {
        pid
        for pid, process in processes.items()
        if _session(pid) == service.pid and _is_since(process, service, also_later=True)
    }
    while born := {pid for pid, process in processes.items() if process.info["ppid"] in family} - family:
        family |= born
    return {processes[pid] for pid in family}


def _is_since(process: psutil.Process, service: Service, *, also_later: bool) -> bool:
    """Return whether a process started when the service did or, with `also_later`, since then."""
    try:
        if service.since_boot:
            later, tolerance = started_at(process) - service.since_boot, _TICK_SECONDS
        else:
            later, tolerance = process.create_time() - service.created, _CLOCK_SECONDS
    except psutil.Error:
        return False
    return later > -tolerance if also_later else abs(later) < tolerance


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
