"""The definition of a service (how to start and probe it) and the record of one that was started."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_pipe import atomic, paths
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import checkout

SECRETS = checkout.SECRETS
LOGS = paths.STATE / "logs"
_FOLDER_PREFIX = "mnist-pipe-"
_CLAIM = "mnist-pipe-service.json"
_FIX = "delete it and stop the services by hand"


def read(root: Path) -> dict[str, Service]:
    """Read the records of the services that were started and not stopped, by name.

    In a copy of a checkout there are none, because those that it has are the original's. The file may also have come
    with somebody else's copy of the project. What a command reads, and where it sends a secret, is therefore not taken
    from it.

    Raises:
        CorruptDataError: a record cannot have been written by `write`.
    """
    path = root / paths.SERVICES
    if not path.exists() or not checkout.is_own(root):
        return {}
    content = atomic.read_json(path, fix=_FIX)
    if not isinstance(content, dict):
        raise CorruptDataError.invalid(path, "the file", "have an object", got=type(content).__name__, fix=_FIX)
    return {name: _service(name, record, root=root) for name, record in content.items()}


def _service(name: str, record: Any, *, root: Path) -> Service:
    """Return the service that a record describes, with its paths in the place to which its checkout was moved."""
    where = root / paths.SERVICES
    try:
        own = {"log": str(log_file(root, name)), "secret": str(root / SECRETS / name) if record["secret"] else ""}
        known = {one.name: record[one.name] for one in fields(Service) if one.name in record}
        service = Service(**{**known, **own})
    except (LookupError, TypeError, ValueError):  # not an object, or a field without a default is missing
        rule = "have every field of this version"
        raise CorruptDataError.invalid(where, f"the record of {name[:40]!r}", rule, got="another", fix=_FIX) from None
    if wrong := _wrong(service):
        rule, got = "be as this version writes it", repr(getattr(service, wrong))[:60]
        raise CorruptDataError.invalid(where, f"{wrong} of {name[:40]!r}", rule, got=got, fix=_FIX)
    has_url = re.fullmatch(rf"http://{re.escape(LOOPBACK)}:[1-9][0-9]{{0,4}}", service.url)
    if service.name != name or not name.isidentifier() or not has_url:
        rule = f"be of a service on {LOOPBACK}"
        raise CorruptDataError.invalid(where, "a record", rule, got=repr(name)[:60], fix=_FIX)
    return service


def _wrong(service: Service) -> str:
    """Return the name of the first field with a value that this module does not write, or an empty string."""
    times = {"created": service.created, "since_boot": service.since_boot}
    texts = {key: value for key, value in vars(service).items() if key not in (*times, "pid", "port")}
    checks = {
        **{key: isinstance(value, str) and "\0" not in value for key, value in texts.items()},
        **{key: type(value) in (int, float) and abs(value) < 1e12 for key, value in times.items()},
        "pid": type(service.pid) is int and 1 < service.pid < 2**31,
        "port": type(service.port) is int and 0 < service.port < 2**16,
    }
    return next((key for key, is_right in checks.items() if not is_right), "")


def log_file(root: Path, name: str) -> Path:
    """Return the path of the file with a service's output."""
    return root / LOGS / f"{name}.log"


def write(root: Path, records: Mapping[str, Service]) -> None:
    """Replace all records on disk by `records`."""
    if records:
        checkout.adopt(root)
        content = {name: asdict(service) for name, service in records.items()}
        atomic.write_json(root / paths.SERVICES, content, mode=0o600)
    else:
        (root / paths.SERVICES).unlink(missing_ok=True)


def secret(root: Path, name: str) -> tuple[Path, str]:
    """Return the path of a service's secret and its content; create the secret on first use."""
    checkout.adopt(root)
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
    MOVED = "runs for the place from which this folder was moved"
    ELSEWHERE = "runs in another container"
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
    """Start time of the main process, in seconds since 1970."""
    port: int
    """Port for clients."""
    address: str
    """Value for PREFECT_API_URL or RAY_ADDRESS; for the others, the location that they display."""
    url: str
    """URL of the dashboard."""
    secret: str
    """Path of the file with the password or token; empty if none is needed."""
    log: str
    """Path of the file with its output."""
    folder: str
    """Path of the folder with its temporary files, removed when it stops; empty if it has none."""
    since_boot: float = 0.0
    """The same in seconds since the start of the machine; tells the process from a later one with the same pid.

    It does not change when the clock is set. It is 0 if version 0.1 started the service.
    """
    root: str = ""
    """Path of the project when the service was started; empty if version 0.1 started it."""
    namespace: str = ""
    """Name of the kernel's namespace in which `pid` counts: a container has one of its own."""

    @property
    def ports(self) -> set[int]:
        """The ports of its clients and of its dashboard."""
        return {self.port, urlsplit(self.url).port or self.port}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The command, ports and environment of one start of a service, on ports that are free now."""

    command: list[str]
    """Path of a program, or name of one of the virtual environment, followed by its arguments."""
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
        """Return the service's HTTP Authorization header, or an empty string if there are no credentials."""
        try:
            return self.header(Path(service.secret).read_text().strip()) if service.secret else ""
        except (OSError, ValueError):
            return ""  # so that it does not answer; who starts it again gets a new secret

    def login(self, service: Service) -> str:
        """Return how a user logs in: where the secret is stored, never the secret itself."""
        if not service.secret:
            return "no password: it listens on loopback only"
        return f"{self.credential}: the line in {os.path.relpath(service.secret)}"
