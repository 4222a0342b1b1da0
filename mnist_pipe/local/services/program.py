"""What is known of a service: how it is started and asked, and the record of one that was started."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_pipe import atomic, paths
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK

SECRETS = paths.STATE / "secrets"
LOGS = paths.STATE / "logs"
FOLDER_PREFIX = "mnist-pipe-"


def read(root: Path) -> dict[str, Service]:
    """The services that were started and not stopped, by name."""
    path = root / paths.SERVICES
    if not path.exists():
        return {}
    content = atomic.read_json(path, fix="delete it and end the services by hand")
    return {name: Service(**record) for name, record in content.items()}


def write(root: Path, records: Mapping[str, Service]) -> None:
    """Record these services, and no others."""
    if records:
        content = {name: asdict(service) for name, service in records.items()}
        atomic.write_json(root / paths.SERVICES, content, mode=0o600)
    else:
        (root / paths.SERVICES).unlink(missing_ok=True)


def secret(root: Path, name: str) -> tuple[Path, str]:
    """The file with the password or token, made on first use, and what it holds."""
    path = root / SECRETS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with atomic.locked(path.parent / f"{name}.lock", purpose=f"the secret of {name}", wait=True):
        if not path.exists():
            value = secrets.token_hex(32)
            # Prefect takes `user:password`; Ray's file must hold the token and nothing else.
            atomic.write_bytes(path, (f"mnist:{value}" if name == "prefect" else value).encode(), mode=0o600)
    path.chmod(0o600)
    return path, path.read_text().strip()


def new_folder() -> Path:
    """A fresh folder for this user alone, removed with its service."""
    return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))


def flags(options: Mapping[str, object]) -> list[str]:
    """The options as the command line has them."""
    return [str(part) for option in options.items() for part in option]


class State(StrEnum):
    """How a service is."""

    RUNNING = "running"
    SILENT = "runs, but does not answer"
    DEAD = "died"
    STOPPED = "not running"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process that was started here."""

    name: str
    """One of `PROGRAMS`."""
    pid: int
    """Of its main process, which is also the number of its session."""
    created: float
    """When that process started, in seconds since 1970; tells it from a later process with the same pid."""
    port: int
    """Where clients connect."""
    address: str
    """What PREFECT_API_URL or RAY_ADDRESS is set to; for TensorBoard and MLflow, what they show."""
    url: str
    """The dashboard."""
    secret: str
    """The file that holds the password or token; empty where none is asked for."""
    log: str
    """The file that holds what it printed."""
    folder: str
    """Its temporary files, removed with it; empty where it has none."""

    @property
    def ports(self) -> set[int]:
        """Of its clients and of its dashboard."""
        return {self.port, urlsplit(self.url).port or self.port}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a service is started this time, on ports that are free now."""

    command: list[str]
    """The name of a program of the virtual environment, and its arguments."""
    port: int
    dashboard_port: int | None = None
    """Where it is another than `port`."""
    address: str
    variables: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables of the user's that the process must not get."""
    folder: str = ""

    @property
    def url(self) -> str:
        """The dashboard."""
        return f"http://{LOOPBACK}:{self.dashboard_port or self.port}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """How one service is started and spoken to."""

    plan: Callable[[Path], Launch]
    """How to start it for the project in that folder."""
    probe: str
    """The path below its dashboard that only the holder of the secret may read."""
    accepts: Callable[[Service, Any], bool] = lambda _service, _reply: True
    """Whether the JSON that it replies there is that of a service that works."""
    shows: Callable[[Path], str] | None = None
    """What one started now would show; None for Prefect and Ray, which show what happens in them."""
    has_secret: bool = True
    asks: str = "password"
    """What it wants of a person."""
    header: Callable[[str], str] = http_probe.basic
    """Makes the Authorization header of the secret."""

    def answers(self, service: Service) -> bool:
        """Whether it does its work for those who hold the secret, which no other program on that port could."""
        reply = http_probe.get_json(f"{service.url}/{self.probe}", authorization=self.authorization(service))
        return reply is not None and self.accepts(service, reply)

    def authorization(self, service: Service) -> str:
        """The HTTP header that lets its owner in; empty where it asks for nothing."""
        return self.header(Path(service.secret).read_text().strip()) if service.secret else ""

    def login(self, service: Service) -> str:
        """How a person logs in: where the secret is, never what it is."""
        if not service.secret:
            return "no password: on loopback alone"
        return f"{self.asks}: the line in {os.path.relpath(service.secret)}"
