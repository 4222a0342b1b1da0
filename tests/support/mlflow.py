"""MLflow servers that tests register with over HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from mnist_pipe import telemetry
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port

_SECONDS = 90.0  # to wait for a server on a busy machine


@contextmanager
def server(folder: Path, *, store: str, **more: str) -> Iterator[str]:
    """Run an MLflow server with its files in `folder` and its database at the URI `store`, and yield its address.

    `more` are environment variables.
    """
    port = free_port(5600)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")),
    ]
    env = {**os.environ, **telemetry.OFF, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **more}
    env.pop("MLFLOW_TRACKING_URI", None)
    url = f"http://{LOOPBACK}:{port}"
    with running(command, log=folder / "server.log", env=env):
        _wait(lambda: httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success, log=folder / "server.log")
        yield url


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL that listens on a socket only, and yield the URI of an empty database."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
    if programs is None:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    pytest.importorskip("psycopg2", reason="no psycopg2: make cluster")
    become: list[str | Path] = []
    with ExitStack() as stack:
        # Not pytest's folder: its parents are closed to other users, and the path of a socket is short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist-pipe-postgres-", dir="/tmp")))
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            become = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
            shutil.chown(folder, "postgres", "postgres")
        data = folder / "data"
        initdb: list[str | Path] = [
            *become,
            programs / "initdb",
            "--auth",
            "trust",
            "--username",
            "postgres",
            "--no-sync",
            "-D",
            data,
        ]
        subprocess.run(initdb, check=True, capture_output=True, timeout=_SECONDS, cwd=folder)
        command: list[str | Path] = [
            *become,
            programs / "postgres",
            "-D",
            data,
            "-k",
            folder,
            "-h",
            "",
            "-c",
            "max_connections=200",
        ]
        with running(command, log=folder / "log", stop=signal.SIGINT, cwd=folder):
            _wait((folder / ".s.PGSQL.5432").exists, log=folder / "log")
            create: list[str | Path] = [*become, programs / "createdb", "-h", folder, "-U", "postgres", "mlflow"]
            _wait(lambda: subprocess.run(create, cwd=folder, check=False).returncode == 0, log=folder / "log")
            yield f"postgresql+psycopg2://postgres@/mlflow?host={folder}"


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program and its children while the block runs."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # children of a program that was killed
            os.killpg(process.pid, signal.SIGKILL)


def _wait(condition: Callable[[], bool], *, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
