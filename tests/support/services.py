"""Local services in tests: a project to start them in, the commands of a person, and what they have opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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
    """What the person who runs the tests has set must not decide them."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "RAY_", "MLFLOW_", "DVC_", "DO_NOT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def new_root(folder: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).touch()
    return folder


def command(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """`mnist-pipe` as a person runs it: a process that has ended before anything is looked at."""
    program = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.Popen(program, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(root: Path, *arguments: str) -> str:
    process = command(root, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def run_twice_at_once(root: Path, name: str) -> None:
    """Two people run the same command at once, and are told the same."""
    both = [command(root, name), command(root, name)]
    outputs = [process.communicate(timeout=250)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]


def recorded(root: Path) -> dict[str, Service]:
    return {name: Service(**record) for name, record in atomic.read_json(root / paths.SERVICES).items()}


def family(*pids: int) -> list[psutil.Process]:
    """The living processes of these sessions, and everything below them."""
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
    """Status and body of a GET, or of a POST where there is data."""
    if authorization:
        headers["Authorization"] = authorization
    if data is not None:
        headers["Content-Type"] = "application/json"
    method = "GET" if data is None else "POST"
    reply = httpx.request(method, url, content=data, headers=headers, timeout=10, trust_env=False)
    return reply.status_code, reply.content


@contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Each of these loopback ports is somebody's while the block runs."""
    with ExitStack() as stack:
        for port in filter(is_free, ports):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, else it lingers
            listener.bind((LOOPBACK, port))
            listener.listen()
        yield


@contextmanager
def dead_server(*, silent: bool) -> Iterator[int]:
    """The port of a server that takes connections and never replies, or where there is none."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        if silent:
            listener.listen()
        yield listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
