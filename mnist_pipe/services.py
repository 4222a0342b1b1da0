"""The local Prefect server and Ray head: start, find, stop. Both listen on loopback alone and ask for a secret.

Nothing here imports prefect or ray. They are started as processes of their own session, so that they outlive the shell
and never see its Ctrl-C, and are recorded in `.state/services.json`, so that only what was started here is ever ended.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import psutil

from mnist_pipe import files, layout
from mnist_pipe.errors import EnvironmentFault, describe, public_url

LOOPBACK = "127.0.0.1"
PREFECT_PORT, RAY_PORT, DASHBOARD_PORT, CLIENT_PORT = 4200, 6379, 8265, 10001  # the first that are tried
SECRETS = layout.STATE / "secrets"
LOGS = layout.STATE / "logs"
OBJECT_STORE_BYTES = 10**9  # every split of MNIST fits four times; Ray's own 30 % of the memory is no neighbour
START_SECONDS = 120.0  # a first start on a busy two-core machine takes about 20
GRACE_SECONDS = 6.0  # between asking and killing; a Ray head needs 2 to 4 to end its twenty processes
PROBE_SECONDS = 3.0

_LOCK = layout.STATE / "services.lock"
_PORTS_TRIED = 100
_LAUNCHES = 3  # another program can take the chosen port before the service binds it
_CLOCK_SECONDS = 2.0  # the wall clock may be corrected between two readings of a process' start
_TAIL_LINES = 12
_RAY_FOLDER_PREFIX = "mnist-pipe-"


class State(StrEnum):
    """How a service is."""

    RUNNING = "running"
    SILENT = "runs, but does not answer"
    DEAD = "died"
    STOPPED = "not running"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process that `up` started."""

    name: str
    """prefect or ray."""
    pid: int
    """Of its first process, which is also the number of its session."""
    created: float
    """When that process started, in seconds since 1970: a reused pid has another."""
    port: int
    """Where clients connect."""
    address: str
    """What PREFECT_API_URL or RAY_ADDRESS is set to."""
    url: str
    """The dashboard."""
    secret: str
    """The file that holds the password or token."""
    log: str
    """The file that holds what it printed."""
    folder: str
    """Its temporary files, removed with it; empty where it has none."""

    @property
    def ports(self) -> set[int]:
        """Of its clients and of its dashboard."""
        return {self.port, urlsplit(self.url).port or self.port}


def environment(root: Path) -> dict[str, str]:
    """What a stage's process must set before it imports prefect or ray.

    Without running services a stage brings its own, with the same secrets and on loopback too. A variable that the user
    has set is left out, and with it whatever belongs to the user's own Prefect server or Ray cluster.

    Raises:
        EnvironmentFault: the user's PREFECT_API_URL or RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    records = _read(root)
    variables = _QUIET | _prefect_home(root)
    if api_url := os.environ.get("PREFECT_API_URL"):
        _check_api(api_url)
    else:
        variables |= _prefect_access(root)
        if (server := records.get("prefect")) and _is_running(server) and _answers(server):
            variables["PREFECT_API_URL"] = server.address
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _check_cluster(address)
    else:
        variables |= _ray_access(root)
        if (head := records.get("ray")) and _is_running(head) and _connects(LOOPBACK, head.port):
            variables["RAY_ADDRESS"] = head.address
    return {name: value for name, value in variables.items() if not os.environ.get(name)} | _no_proxy()


def up(root: Path) -> list[Service]:
    """Start what is not running yet, wait until everything answers, and return it. Calling it twice changes nothing.

    Raises:
        EnvironmentFault: a service did not start; whatever this call had started is ended again.
    """
    root = root.resolve()
    with files.locked(root / _LOCK, purpose="starting and stopping services", wait=True):
        records = _read(root)
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in _LAUNCHERS:
                if not (name in records and _is_running(records[name])):
                    _launch(root, name, records, processes)
            _wait(root, records, processes)
        except BaseException:
            for name in processes:
                _end(records.pop(name))
            _write(root, records)
            raise
        return [records[name] for name in _LAUNCHERS]


def down(root: Path) -> list[Service]:
    """End what `up` started, with everything that it started in turn, and return what was still running."""
    root = root.resolve()
    with files.locked(root / _LOCK, purpose="starting and stopping services", wait=True):
        records = _read(root)
        running = [service for service in records.values() if _is_running(service)]
        for name in list(records):
            _end(records.pop(name))
            _write(root, records)
    return running


def status(root: Path) -> dict[str, tuple[State, Service | None]]:
    """How prefect and ray are, and what `up` recorded of them."""
    records = _read(root.resolve())
    found: dict[str, tuple[State, Service | None]] = dict.fromkeys(_LAUNCHERS, (State.STOPPED, None))
    for name, service in records.items():
        running = _is_running(service)
        state = State.RUNNING if running and _answers(service) else State.SILENT if running else State.DEAD
        found[name] = (state, service)
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError:
            return False
    return True


# --- the variables


_QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}


def _prefect_home(root: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(root / layout.PREFECT_HOME),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    }


def _prefect_access(root: Path, *, origin: str = f"http://{LOOPBACK}") -> dict[str, str]:
    """For our server, started by `up` or by a stage for itself, and for its clients."""
    password = _secret(root, "prefect")[1]
    return {
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origin,  # the default lets any web page call the server
    }


def _ray_access(root: Path) -> dict[str, str]:
    """For our Ray, started by `up` or by a stage for itself, and for its clients."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_secret(root, "ray")[0]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes Ray listen on loopback alone
        "AUTOSCALER_METRIC_PORT": "0",  # fixed ports otherwise, which a second Ray on the machine could not bind
        "DASHBOARD_METRIC_PORT": "0",
    }


def _no_proxy() -> dict[str, str]:
    """Keep the user's proxy out of the way to loopback, which Prefect's client would otherwise ask it for."""
    if not urllib.request.getproxies():
        return {}
    hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    value = ",".join(dict.fromkeys([*filter(None, hosts), LOOPBACK, "localhost"]))
    return {"no_proxy": value, "NO_PROXY": value}


def _secret(root: Path, name: str) -> tuple[Path, str]:
    """The file with the password or token, made on first use, and what it holds."""
    path = root / SECRETS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with files.locked(path.parent / f"{name}.lock", purpose=f"the secret of {name}", wait=True):
        if not path.exists():
            value = secrets.token_hex(32)
            # Prefect takes `user:password`; Ray's file must hold the token and nothing else.
            files.write_bytes(path, (f"mnist:{value}" if name == "prefect" else value).encode(), mode=0o600)
    path.chmod(0o600)
    return path, path.read_text().strip()


def _check_api(url: str) -> None:
    shown = public_url(url)

    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"{shown.rstrip('/')}/health", timeout=PROBE_SECONDS):
                return True
        except urllib.error.HTTPError:
            return True
        except (OSError, ValueError):
            return False

    if not _holds_soon(ask):
        fix = "start that server or unset the variable"
        raise EnvironmentFault(describe("PREFECT_API_URL", shown, "answer", got="no reply", fix=fix))


def _check_cluster(address: str) -> None:
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or a form that Ray itself explains better
    if not _holds_soon(lambda: _connects(host.strip("[]"), int(port))):
        fix = "start that cluster or unset the variable"
        raise EnvironmentFault(describe("RAY_ADDRESS", address, "answer", got="no reply", fix=fix))


def _holds_soon(probe: Callable[[], bool]) -> bool:
    """Whether `probe` is true, asked in a thread, because looking up a name has no time-out of its own."""
    held: list[bool] = []
    asking = threading.Thread(target=lambda: held.append(probe()), daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return held == [True]


# --- starting


def _launch(root: Path, name: str, records: dict[str, Service], processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Start one service in place of its record. The record is on disk before anything else can go wrong."""
    if name in records:
        _end(records[name])  # what a killed service left behind
    log = root / LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        processes[name], records[name] = _LAUNCHERS[name](root, stream)
    _write(root, records)


def _launch_prefect(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    port = _free_port(PREFECT_PORT)
    url = f"http://{LOOPBACK}:{port}"
    variables = _prefect_home(root) | _prefect_access(root, origin=url)
    # Host and port go by variables: the pages that the server hands out take the API's address from them.
    variables |= {"PREFECT_SERVER_API_HOST": LOOPBACK, "PREFECT_SERVER_API_PORT": str(port)}
    unset = {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"}
    process = _spawn(root, ["prefect", "server", "start"], variables, unset=unset, log=log)
    return process, Service(
        name="prefect",
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        port=port,
        address=f"{url}/api",
        url=url,
        secret=str(root / SECRETS / "prefect"),
        log=log.name,
        folder="",
    )


def _launch_ray(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    port, dashboard = _free_port(RAY_PORT), _free_port(DASHBOARD_PORT)
    # Ray's sockets lie 64 characters below this folder and Linux allows them 107 in all, so the project's own path may
    # be too long. A fresh folder is nobody else's: two checkouts, or two users, never meet in it.
    folder = tempfile.mkdtemp(prefix=_RAY_FOLDER_PREFIX, dir="/tmp")
    options = {
        "--node-ip-address": LOOPBACK,
        "--port": port,
        "--dashboard-host": LOOPBACK,
        "--dashboard-port": dashboard,
        "--ray-client-server-port": _free_port(CLIENT_PORT),
        "--dashboard-agent-listen-port": 0,  # 0: any free port; the fixed default allows one Ray a machine
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--include-dashboard": "true",
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--temp-dir": folder,
        "--log-color": "false",
    }
    # --block: the first process stays, ends the others when it is asked to end, and takes them with it when one dies.
    flags = [str(part) for option in options.items() for part in option]
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", *flags]
    process = _spawn(root, command, _ray_access(root), unset={"RAY_ADDRESS", "RAY_AUTH_TOKEN"}, log=log)
    return process, Service(
        name="ray",
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        port=port,
        address=f"{LOOPBACK}:{port}",
        url=f"http://{LOOPBACK}:{dashboard}",
        secret=str(root / SECRETS / "ray"),
        log=log.name,
        folder=folder,
    )


_LAUNCHERS = {"prefect": _launch_prefect, "ray": _launch_ray}


def _spawn(
    root: Path, command: list[str], variables: Mapping[str, str], *, unset: set[str], log: BinaryIO
) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name(command[0])
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        [sys.executable, str(program), *command[1:]],
        cwd=root,
        env=inherited | _QUIET | _no_proxy() | dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _free_port(first: int) -> int:
    for port in range(first, first + _PORTS_TRIED):
        if is_free(port):
            return port
    rule = f"be free somewhere from {first} to {first + _PORTS_TRIED - 1}"
    raise EnvironmentFault(describe(LOOPBACK, "a port", rule, got="none", fix="stop what listens there"))


def _wait(root: Path, records: dict[str, Service], processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Until every service answers; one that lost its port to another program is started again on the next."""
    deadline = time.monotonic() + START_SECONDS
    launches = dict.fromkeys(_LAUNCHERS, 1)
    waiting = set(_LAUNCHERS)
    while waiting:
        for name in sorted(waiting):
            service = records[name]
            code = processes[name].poll() if name in processes else None
            if code is None and _answers(service):
                waiting.discard(name)
            elif code is not None and launches[name] < _LAUNCHES and not all(map(is_free, service.ports)):
                launches[name] += 1
                _launch(root, name, records, processes)
            elif code is not None or time.monotonic() > deadline:
                got = "silence" if code is None else f"exit code {code}"
                fix = "it printed (more in the file):\n" + _tail(Path(service.log))
                if name not in processes:
                    fix = "end it with `mnist-pipe down` and start again"
                raise EnvironmentFault(
                    describe(service.log, name, f"answer within {START_SECONDS:.0f} seconds", got=got, fix=fix)
                )
        time.sleep(0.05)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


# --- finding


def _read(root: Path) -> dict[str, Service]:
    path = root / layout.SERVICES
    if not path.exists():
        return {}
    content = files.read_json(path, fix="delete it and end the services by hand")
    return {name: Service(**record) for name, record in content.items()}


def _write(root: Path, records: Mapping[str, Service]) -> None:
    if records:
        content = {name: asdict(service) for name, service in records.items()}
        files.write_json(root / layout.SERVICES, content, mode=0o600)
    else:
        (root / layout.SERVICES).unlink(missing_ok=True)


def _process(service: Service) -> psutil.Process | None:
    """Its first process, be it a zombie; None where it is gone or its pid is someone else's now."""
    try:
        process = psutil.Process(service.pid)
        return process if abs(process.create_time() - service.created) < _CLOCK_SECONDS else None
    except psutil.NoSuchProcess:
        return None


def _is_running(service: Service) -> bool:
    process = _process(service)
    return process is not None and _lives(process)


def _answers(service: Service) -> bool:
    """Whether it does its work for those who hold the secret, which no other program on that port could."""
    secret = Path(service.secret).read_text().strip()
    if service.name == "prefect":
        token = base64.b64encode(secret.encode()).decode()
        return _get(f"{service.address}/admin/version", f"Basic {token}") is not None
    reply = _get(f"{service.url}/nodes?view=summary", f"Bearer {secret}")
    nodes = reply["data"]["summary"] if reply else []
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)


def _get(url: str, authorization: str) -> Any:
    """The JSON that a local server replies, or None."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Authorization": authorization})
    try:
        with opener.open(request, timeout=PROBE_SECONDS) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return None


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


# --- ending


def _end(service: Service) -> None:
    """Ask its first process to end, wait, and kill whatever of it is left."""
    family = _family(service)
    if process := _process(service):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        _await_end(family)
    # Once more: processes that were born meanwhile, and the orphans of a first process that was killed.
    family |= _family(service)
    for process in filter(_lives, family):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(family)
    if Path(service.folder).name.startswith(_RAY_FOLDER_PREFIX):
        shutil.rmtree(service.folder, ignore_errors=True)


def _await_end(processes: Iterable[psutil.Process]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _family(service: Service) -> set[psutil.Process]:
    """All processes of its session, and all that those started. Nothing where the pid is someone else's now: the kernel
    gives out no number that a session still bears, so then the session is gone.
    """
    if psutil.pid_exists(service.pid) and _process(service) is None:
        return set()
    processes = {process.pid: process for process in psutil.process_iter(["ppid", "create_time"])}
    family = {
        pid
        for pid, process in processes.items()
        if _session(pid) == service.pid and (process.info["create_time"] or 0) >= service.created - _CLOCK_SECONDS
    }
    while born := {pid for pid, process in processes.items() if process.info["ppid"] in family} - family:
        family |= born
    return {processes[pid] for pid in family}


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
