"""The local services: start, find, stop. All listen on loopback alone and, but for TensorBoard, ask for a secret.

`mnist-pipe up` starts what a stage joins, Prefect and Ray; `mnist-pipe dashboards` what only shows, TensorBoard and
MLflow. A service is one entry of `_PROGRAMS`. Nothing here imports prefect, ray or mlflow. They are started as
processes of their own session, so that they outlive the shell and never see its Ctrl-C, and are recorded in
`.state/services.json`, so that only what was started here is ever ended.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import psutil

from mnist_pipe import atomic, paths
from mnist_pipe.errors import EnvironmentFault, describe, public_url

T = TypeVar("T")

JOINED = ("prefect", "ray")  # what a stage joins
LOOPBACK = "127.0.0.1"
PREFECT_PORT, RAY_PORT, DASHBOARD_PORT, CLIENT_PORT = 4200, 6379, 8265, 10001  # the first that are tried
TENSORBOARD_PORT, MLFLOW_PORT = 6006, 5000
MLFLOW_USER = "mnist"
SECRETS = paths.STATE / "secrets"
LOGS = paths.STATE / "logs"
OBJECT_STORE_BYTES = 10**9  # every split of MNIST fits four times; Ray's own 30 % of the memory is no neighbour
START_SECONDS = 120.0  # a first start on a busy two-core machine takes about 20
GRACE_SECONDS = 6.0  # between asking and killing; a Ray head needs 2 to 4 to end its twenty processes
PROBE_SECONDS = 3.0

_LOCK = paths.STATE / "services.lock"
_PORTS_TRIED = 100
_LAUNCHES = 3  # another program can take the chosen port before the service binds it
_CLOCK_SECONDS = 2.0  # the wall clock may be corrected between two readings of a process' start
_TAIL_LINES = 12
_FOLDER_PREFIX = "mnist-pipe-"


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
    """One of `_PROGRAMS`."""
    pid: int
    """Of its first process, which is also the number of its session."""
    created: float
    """When that process started, in seconds since 1970: a reused pid has another."""
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


def environment(root: Path) -> dict[str, str]:
    """What a stage's process must set before it imports prefect or ray.

    Without running services a stage brings its own, with the same secrets and on loopback too. A variable that the user
    has set is left out, and with it whatever belongs to the user's own Prefect server or Ray cluster.

    Raises:
        EnvironmentFault: the user's PREFECT_API_URL or RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    variables = _prefect_home(root)
    if api_url := os.environ.get("PREFECT_API_URL"):
        _check_api(api_url)
    else:
        variables |= _prefect_access(root)
        if (server := _read(root).get("prefect")) and _is_running(server) and _answers(server):
            variables["PREFECT_API_URL"] = server.address
    return {name: value for name, value in variables.items() if not os.environ.get(name)} | ray_environment(root)


def ray_environment(root: Path) -> dict[str, str]:
    """What a process that uses ray and not prefect must set before it imports ray; else as `environment`.

    Raises:
        EnvironmentFault: the user's RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    variables = dict(_QUIET)
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _check_cluster(address)
    else:
        variables |= _ray_access(root)
        if (head := _read(root).get("ray")) and _is_running(head) and _connects(LOOPBACK, head.port):
            variables["RAY_ADDRESS"] = head.address
    return {name: value for name, value in variables.items() if not os.environ.get(name)} | _no_proxy()


def up(root: Path, *, names: Sequence[str] = JOINED) -> list[Service]:
    """Start what is not running yet, wait until everything answers, and return it. Calling it twice changes nothing.

    A service that shows something else than it would now, because the storage changed, is started anew.

    Raises:
        EnvironmentFault: a service did not start; whatever this call had started is ended again.
    """
    root = root.resolve()
    with atomic.locked(root / _LOCK, purpose="starting and stopping services", wait=True):
        records = _read(root)
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in names:
                if not (name in records and _is_running(records[name]) and _is_current(root, records[name])):
                    _launch(root, name, records, processes)
            _wait(root, names, records, processes)
        except BaseException:
            for name in processes:
                _end(records.pop(name))
            _write(root, records)
            raise
        return [records[name] for name in names]


def down(root: Path) -> list[Service]:
    """End what was started here, with everything that it started in turn, and return what was still running."""
    root = root.resolve()
    with atomic.locked(root / _LOCK, purpose="starting and stopping services", wait=True):
        records = _read(root)
        running = [records[name] for name in _PROGRAMS if name in records and _is_running(records[name])]
        for name in list(records):
            _end(records.pop(name))
            _write(root, records)
    return running


def status(root: Path) -> dict[str, tuple[State, Service | None]]:
    """How Prefect and Ray are, and the others where they were started, with what was recorded of them."""
    records = _read(root.resolve())
    found: dict[str, tuple[State, Service | None]] = dict.fromkeys(JOINED, (State.STOPPED, None))
    for name in filter(records.__contains__, _PROGRAMS):
        service = records[name]
        running = _is_running(service)
        state = State.RUNNING if running and _answers(service) else State.SILENT if running else State.DEAD
        found[name] = (state, service)
    return found


def how(name: str, state: State, service: Service | None) -> str:
    """How a service is, in a line: where it is and how to log in, or what to do."""
    if service is None:
        return f"{state}; start it with: {starter(name)}"
    if state is State.RUNNING:
        return f"{service.url}   {login(service)}"
    fix = starter(name) if state is State.DEAD else f"mnist-pipe down, then {starter(name)}"
    return f"{state}; see {os.path.relpath(service.log)} and run: {fix}"


def starter(name: str) -> str:
    """The command that starts the service of that name."""
    return "mnist-pipe up" if name in JOINED else "mnist-pipe dashboards"


def login(service: Service) -> str:
    """How a person logs in: where the secret is, never what it is."""
    if not service.secret:
        return "no password: on loopback alone"
    return f"{_PROGRAMS[service.name].asks}: the line in {os.path.relpath(service.secret)}"


def authorization(service: Service) -> str:
    """The HTTP header that lets its owner in; empty where it asks for nothing."""
    if not service.secret:
        return ""
    secret = Path(service.secret).read_text().strip()
    return _PROGRAMS[service.name].header(secret)


def basic(credentials: str) -> str:
    """The Authorization header of `user:password`."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def bearer(token: str) -> str:
    """The Authorization header of a token."""
    return f"Bearer {token}"


def soon(ask: Callable[[], T]) -> T | None:
    """What `ask` returns within 3 seconds, or None. In a thread: looking up a name has no time-out of its own."""
    replies: list[T] = []
    asking = threading.Thread(target=lambda: replies.append(ask()), daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return replies[0] if replies else None


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
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a worker prints goes to its log, and to no logger on the way
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}


def _prefect_home(root: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(root / paths.PREFECT_HOME),
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
    with atomic.locked(path.parent / f"{name}.lock", purpose=f"the secret of {name}", wait=True):
        if not path.exists():
            value = secrets.token_hex(32)
            # Prefect takes `user:password`; Ray's file must hold the token and nothing else.
            atomic.write_bytes(path, (f"mnist:{value}" if name == "prefect" else value).encode(), mode=0o600)
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

    if not soon(ask):
        fix = "start that server or unset the variable"
        raise EnvironmentFault(describe("PREFECT_API_URL", shown, "answer", got="no reply", fix=fix))


def _check_cluster(address: str) -> None:
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or a form that Ray itself explains better
    if not soon(lambda: _connects(host.strip("[]"), int(port))):
        fix = "start that cluster or unset the variable"
        raise EnvironmentFault(describe("RAY_ADDRESS", address, "answer", got="no reply", fix=fix))


# --- starting


def _launch(root: Path, name: str, records: dict[str, Service], processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Start one service in place of its record. The record is on disk before anything else can go wrong."""
    if name in records:
        _end(records[name])  # what a killed service left behind
    log = root / LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        processes[name], records[name] = _PROGRAMS[name].launch(root, stream)
    _write(root, records)


def _launch_prefect(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    port = _free_port(PREFECT_PORT)
    url = f"http://{LOOPBACK}:{port}"
    variables = _prefect_home(root) | _prefect_access(root, origin=url)
    # Host and port go by variables: the pages that the server hands out take the API's address from them.
    variables |= {"PREFECT_SERVER_API_HOST": LOOPBACK, "PREFECT_SERVER_API_PORT": str(port)}
    unset = {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"}
    process = _spawn(root, ["prefect", "server", "start"], variables, unset=unset, log=log)
    secret = str(root / SECRETS / "prefect")
    return process, _service("prefect", process, port=port, address=f"{url}/api", url=url, secret=secret, log=log)


def _launch_ray(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    port, dashboard = _free_port(RAY_PORT), _free_port(DASHBOARD_PORT)
    # Ray's sockets lie 64 characters below this folder and Linux allows them 107 in all, so the project's own path may
    # be too long. A fresh folder is nobody else's: two checkouts, or two users, never meet in it.
    folder = _new_folder()
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
    return process, _service(
        "ray",
        process,
        port=port,
        address=f"{LOOPBACK}:{port}",
        url=f"http://{LOOPBACK}:{dashboard}",
        secret=str(root / SECRETS / "ray"),
        log=log,
        folder=folder,
    )


def _launch_tensorboard(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    port, curves = _free_port(TENSORBOARD_PORT), _shown_by_tensorboard(root)
    command = ["tensorboard", "--logdir", curves, "--host", LOOPBACK, "--port", str(port)]
    process = _spawn(root, command, {}, unset=set(), log=log)
    url = f"http://{LOOPBACK}:{port}"
    return process, _service("tensorboard", process, port=port, address=curves, url=url, secret="", log=log)


def _launch_mlflow(root: Path, log: BinaryIO) -> tuple[subprocess.Popen[bytes], Service]:
    """The server of a registry that exists: MLflow would make a missing one in place, and not whole or absent."""
    path, password = _secret(root, "mlflow")
    port, folder = _free_port(MLFLOW_PORT), _new_folder()
    url = f"http://{LOOPBACK}:{port}"
    # The users' own database is made anew each time, so that the password is always the one in the file.
    settings = Path(folder) / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/users.db\n"
        "auth_cache_ttl_seconds = 600\n"  # otherwise each request of a page hashes the password for half a second
    )
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a scheduler and its workers, for what is not used here
        # By a variable, because an address may hold a password and `ps` shows every argument.
        "MLFLOW_BACKEND_STORE_URI": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / paths.MLFLOW_DB}",
    }
    options = {
        "--app-name": "basic-auth",
        "--host": LOOPBACK,
        "--port": port,
        "--workers": 1,
        "--default-artifact-root": root / paths.MLFLOW_ARTIFACTS,
        "--allowed-hosts": f"{LOOPBACK}:{port}",
        "--cors-allowed-origins": url,
    }
    flags = [str(part) for option in options.items() for part in option]
    command = ["mlflow", "server", "--no-serve-artifacts", *flags]
    process = _spawn(root, command, variables, unset={"MLFLOW_TRACKING_URI"}, log=log)
    shown = _shown_by_mlflow(root)
    return process, _service(
        "mlflow", process, port=port, address=shown, url=url, secret=str(path), log=log, folder=folder
    )


def _shown_by_tensorboard(root: Path) -> str:
    """The folder of Ray's results in the storage, where the search writes its curves."""
    storage = os.environ.get("MNIST_PIPE_STORAGE")
    if not storage:
        return str(root / paths.RAY_RESULTS)
    return f"{storage.rstrip('/')}/ray" if "://" in storage else str(root / storage / "ray")


def _shown_by_mlflow(root: Path) -> str:
    return public_url(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / paths.MLFLOW_DB}")


def _is_current(root: Path, service: Service) -> bool:
    """Whether it shows what one started now would show; Prefect and Ray show what happens in them."""
    shows = {"tensorboard": _shown_by_tensorboard, "mlflow": _shown_by_mlflow}.get(service.name)
    return shows is None or service.address == shows(root)


def _service(
    name: str,
    process: subprocess.Popen[bytes],
    *,
    port: int,
    address: str,
    url: str,
    secret: str,
    log: BinaryIO,
    folder: str = "",
) -> Service:
    return Service(
        name=name,
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        port=port,
        address=address,
        url=url,
        secret=secret,
        log=log.name,
        folder=folder,
    )


def _new_folder() -> str:
    """A fresh folder for this user alone, removed with its service."""
    return tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp")


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


def _wait(
    root: Path, names: Sequence[str], records: dict[str, Service], processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    """Until every service answers; one that lost its port to another program is started again on the next."""
    deadline = time.monotonic() + START_SECONDS
    launches = dict.fromkeys(names, 1)
    waiting = set(names)
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
    path = root / paths.SERVICES
    if not path.exists():
        return {}
    content = atomic.read_json(path, fix="delete it and end the services by hand")
    return {name: Service(**record) for name, record in content.items()}


def _write(root: Path, records: Mapping[str, Service]) -> None:
    if records:
        content = {name: asdict(service) for name, service in records.items()}
        atomic.write_json(root / paths.SERVICES, content, mode=0o600)
    else:
        (root / paths.SERVICES).unlink(missing_ok=True)


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
    return _PROGRAMS[service.name].answers(service)


def _prefect_answers(service: Service) -> bool:
    return _get(f"{service.address}/admin/version", authorization(service)) is not None


def _ray_answers(service: Service) -> bool:
    reply = _get(f"{service.url}/nodes?view=summary", authorization(service))
    nodes = reply["data"]["summary"] if reply else []
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)


def _tensorboard_answers(service: Service) -> bool:
    reply = _get(f"{service.url}/data/environment", authorization(service))
    return isinstance(reply, dict) and reply.get("data_location") == service.address


def _mlflow_answers(service: Service) -> bool:
    reply = _get(f"{service.url}/api/2.0/mlflow/experiments/search?max_results=1", authorization(service))
    return reply is not None


@dataclass(frozen=True, kw_only=True)
class _Program:
    """How one service is started and spoken to."""

    launch: Callable[[Path, BinaryIO], tuple[subprocess.Popen[bytes], Service]]
    answers: Callable[[Service], bool]
    asks: str = "password"
    """What it wants of a person."""
    header: Callable[[str], str] = basic
    """Makes the Authorization header of the secret."""


_PROGRAMS = {
    "prefect": _Program(launch=_launch_prefect, answers=_prefect_answers),
    "ray": _Program(launch=_launch_ray, answers=_ray_answers, asks="token", header=bearer),
    "tensorboard": _Program(launch=_launch_tensorboard, answers=_tensorboard_answers),
    "mlflow": _Program(
        launch=_launch_mlflow,
        answers=_mlflow_answers,
        asks=f"user {MLFLOW_USER}, password",
        header=lambda password: basic(f"{MLFLOW_USER}:{password}"),
    ),
}


def _get(url: str, credentials: str) -> Any:
    """The JSON that a local server replies, or None."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Authorization": credentials} if credentials else {})
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
    if Path(service.folder).name.startswith(_FOLDER_PREFIX):
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
