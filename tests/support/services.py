"""Helpers for local services: projects to start them in, a user's commands, and the processes and ports they open."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from mnist_pipe import atomic, paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import Service
from mnist_pipe.local.services.process import is_free


@pytest.fixture(autouse=True)
def clean_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of the user who runs the tests, so that they do not change the results."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "RAY_", "MLFLOW_", "DVC_", "DO_NOT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def new_root(folder: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).touch()
    return folder


def command(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `mnist-pipe` as a user does, in a process of its own, and return the process."""
    program = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.Popen(program, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(root: Path, *arguments: str) -> str:
    process = command(root, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def run_twice_at_once(root: Path, name: str) -> None:
    """Run a command twice at once, and check that both print the same."""
    both = [command(root, name), command(root, name)]
    outputs = [process.communicate(timeout=250)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]


def recorded(root: Path) -> dict[str, Service]:
    return {name: Service(**record) for name, record in atomic.read_json(root / paths.SERVICES).items()}


def family(*pids: int) -> list[psutil.Process]:
    """Return the living processes of these sessions, and all their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in pids:
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return [p for p in found.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
    except psutil.Error:
        return False


def request(url: str, *, authorization: str = "", data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Send a GET, or a POST if there is `data`, and return the status and the body."""
    if authorization:
        headers["Authorization"] = authorization
    if data is not None:
        headers["Content-Type"] = "application/json"
    method = "GET" if data is None else "POST"
    reply = httpx.request(method, url, content=data, headers=headers, timeout=10, trust_env=False)
    return reply.status_code, reply.content


@contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Occupy these loopback ports while the block runs."""
    with ExitStack() as stack:
        for port in filter(is_free, ports):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, or the port lingers
            listener.bind((LOOPBACK, port))
            listener.listen()
        yield


@contextmanager
def dead_server(*, silent: bool) -> Iterator[int]:
    """Yield the port of a server that accepts connections but never replies, or of no server if not `silent`."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        if silent:
            listener.listen()
        yield listener.getsockname()[1]


@contextmanager
def answering_server(reply: bytes = b"\0\0\0\4\0\0\0\0\0") -> Iterator[int]:
    """Yield the port of a server that sends `reply`, by default HTTP/2's empty settings, to who connects."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(reply)
            self.request.recv(1 << 16)

    with socketserver.ThreadingTCPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
