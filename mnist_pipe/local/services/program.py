"""The definition of a service (how to start and probe it) and the record of one that was started."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_pipe import atomic, paths
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK

SECRETS = paths.STATE / "secrets"
LOGS = paths.STATE / "logs"
_FOLDER_PREFIX = "mnist-pipe-"
_CLAIM = "mnist-pipe-service.json"


def read(root: Path) -> dict[str, Service]:
    """Read the records of the services that were started and not stopped, by name.

    The file may have come with somebody else's copy of the project. What a command reads, and where it sends a secret,
    is therefore not taken from it.

    Raises:
        CorruptDataError: a record cannot have been written by `write`.
    """
    path = root / paths.SERVICES
    if not path.exists():
        return {}
    fix = "delete it and stop the services by hand"
    found = {}
    for name, record in atomic.read_json(path, fix=fix).items():
        own = {"log": str(log_file(root, name)), "secret": str(root / SECRETS / name) if record["secret"] else ""}
        found[name] = Service(**{**record, **own})
        if not name.isidentifier() or urlsplit(found[name].url).hostname != LOOPBACK:
            raise CorruptDataError.invalid(path, "a record", f"be of a service on {LOOPBACK}", got=repr(name), fix=fix)
    return found


def log_file(root: Path, name: str) -> Path:
    """Return the path of the file with a service's output."""
    return root / LOGS / f"{name}.log"


def write(root: Path, records: Mapping[str, Service]) -> None:
    """Replace all records on disk by `records`."""
    if records:
        content = {name: asdict(service) for name, service in records.items()}
        atomic.write_json(root / paths.SERVICES, content, mode=0o600)
    else:
        (root / paths.SERVICES).unlink(missing_ok=True)


def secret(root: Path, name: str) -> tuple[Path, str]:
    """Return the path of a service's secret and its content; create the secret on first use."""
    path = root / SECRETS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with atomic.locked(path.parent / f"{name}.lock", purpose=f"the secret of {name}", wait=True):
        if not path.exists():
            value = secrets.token_hex(32)
            # Prefect needs `user:password`; Ray's file must contain only the token.
            atomic.write_bytes(path, (f"mnist:{value}" if name == "prefect" else value).encode(), mode=0o600)
    path.chmod(0o600)
    return path, path.read_text().strip()


def new_folder() -> Path:
    """Create a temporary folder that only this user can access; it is removed when its service stops."""
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp"))


def claim_folder(service: Service) -> None:
    """Write into the service's folder whose it is, so that `remove_folder` finds its own claim there."""
    if service.folder:
        atomic.write_json(Path(service.folder) / _CLAIM, _claim(service), mode=0o600)


def remove_folder(service: Service) -> None:
    """Remove the service's folder, unless `claim_folder` did not mark it as this service's, as for a forged record."""
    folder = Path(service.folder)
    if not folder.name.startswith(_FOLDER_PREFIX) or folder.is_symlink() or not (folder / _CLAIM).is_file():
        return
    with suppress(CorruptDataError):
        if atomic.read_json(folder / _CLAIM) == _claim(service):
            shutil.rmtree(folder, ignore_errors=True)


def _claim(service: Service) -> dict[str, float]:
    return {"pid": service.pid, "created": service.created}


def flags(options: Mapping[str, object]) -> list[str]:
    """Return the options as a list of command-line arguments."""
    return [str(part) for option in options.items() for part in option]


class State(StrEnum):
    """The state of a service."""

    RUNNING = "running"
    SILENT = "runs, but does not answer"
    DEAD = "died"
    STOPPED = "not running"


@dataclass(frozen=True, kw_only=True)
class Service:
    """The record of a service that was started here."""

    name: str
    """Name of the service, a key of `PROGRAMS`."""
    pid: int
    """Process id of the main process, which is also its session id."""
    created: float
    """Start time of the main process, in seconds since 1970; tells it from a later process with the same pid."""
    port: int
    """Port for clients."""
    address: str
    """Value for PREFECT_API_URL or RAY_ADDRESS; for TensorBoard and MLflow, the location that they display."""
    url: str
    """URL of the dashboard."""
    secret: str
    """Path of the file with the password or token; empty if none is needed."""
    log: str
    """Path of the file with its output."""
    folder: str
    """Path of the folder with its temporary files, removed when it stops; empty if it has none."""

    @property
    def ports(self) -> set[int]:
        """The ports of its clients and of its dashboard."""
        return {self.port, urlsplit(self.url).port or self.port}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The command, ports and environment of one start of a service, on ports that are free now."""

    command: list[str]
    """Name of a program of the virtual environment, followed by its arguments."""
    port: int
    """Port for clients."""
    dashboard_port: int | None = None
    """Port of the dashboard, if it differs from `port`."""
    address: str
    """Same as `Service.address`."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables to set in the process."""
    unset: tuple[str, ...] = ()
    """The user's environment variables that the process must not inherit."""
    folder: str = ""
    """Same as `Service.folder`."""

    @property
    def url(self) -> str:
        """The URL of the dashboard."""
        return f"http://{LOOPBACK}:{self.dashboard_port or self.port}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """The definition of a service: how to start it, probe it and log in."""

    plan: Callable[[Path], Launch]
    """Function that plans a start for the project in the given folder."""
    probe: str
    """Path below the dashboard's URL that only the holder of the secret may read."""
    accepts: Callable[[Service, Any], bool] = lambda _service, _reply: True
    """Predicate: whether the JSON reply to the probe comes from a working service."""
    shows: Callable[[Path], str] | None = None
    """Function that returns the location that the service would display if started now.

    None for Prefect and Ray, which display only their own data.
    """
    has_secret: bool = True
    """Whether the service requires a password or token."""
    credential: str = "password"
    """Name of what a user must enter to log in, for instance `password`."""
    header: Callable[[str], str] = http_probe.basic
    """Function that returns the HTTP Authorization header for the secret."""

    def answers(self, service: Service) -> bool:
        """Return whether the service works and accepts its secret, which no other program on its port would."""
        reply = http_probe.get_json(f"{service.url}/{self.probe}", authorization=self.authorization(service))
        return reply is not None and self.accepts(service, reply)

    def authorization(self, service: Service) -> str:
        """Return the service's HTTP Authorization header, or an empty string if it needs no credentials."""
        return self.header(Path(service.secret).read_text().strip()) if service.secret else ""

    def login(self, service: Service) -> str:
        """Return how a user logs in: where the secret is stored, never the secret itself."""
        if not service.secret:
            return "no password: it listens on loopback only"
        return f"{self.credential}: the line in {os.path.relpath(service.secret)}"
