"""Start, find and stop the local services, which listen on loopback only and require a secret where their program can.

`mnist-pipe up` starts the services that a stage connects to, Prefect and Ray; `mnist-pipe dashboards` starts those that
only display results, TensorBoard, optuna-dashboard, MLflow and Prometheus. A service is a module of this package and an
entry of `PROGRAMS`. No module here imports prefect, ray or mlflow. Each service runs in its own session, so that it
outlives the shell and never gets its Ctrl-C, and is recorded in `.state/services.json`, so that only services started
here are ever stopped.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from mnist_pipe import atomic, command_line, paths
from mnist_pipe.errors import BusyError, UnavailableError
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import (
    mlflow_server,
    optuna_dashboard,
    prefect_server,
    process,
    prometheus,
    ray_head,
    tensorboard,
)
from mnist_pipe.local.services.environment import (
    QUIET,
    environment,
    home,
    no_proxy,
    prefect_environment,
    ray_environment,
)
from mnist_pipe.local.services.program import (
    LOGS,
    SECRETS,
    Program,
    Service,
    State,
    claim_folder,
    log_file,
    read,
    write,
)
from mnist_pipe.waiting import announced

__all__ = [
    "JOINED", "LOGS", "PROGRAMS", "SECRETS", "Service", "State",
    "authorization", "describe", "down", "environment", "facts", "home", "joined", "lost",
    "prefect_environment", "ray_environment", "start_command", "status", "up",
]  # fmt: skip

PROGRAMS: dict[str, Program] = {
    "prefect": prefect_server.PROGRAM,
    "ray": ray_head.PROGRAM,
    "tensorboard": tensorboard.PROGRAM,
    "optuna": optuna_dashboard.PROGRAM,
    "mlflow": mlflow_server.PROGRAM,
    "prometheus": prometheus.PROGRAM,
}
JOINED = ("prefect", "ray")  # the services that a stage connects to
START_SECONDS = 120.0  # a first start on a busy two-core machine takes about 20 s

_LOCK = paths.STATE / "services.lock"
_LAUNCHES = 3  # another program can take the chosen port before the service binds it
_TAIL_LINES = 12
_MISSED = 3  # probes of 3 s, one second apart; with the grace period of a stage that is ended, less than 20 s


def up(root: Path, *, names: Sequence[str] = JOINED) -> list[Service]:
    """Start the services `names` that do not run yet, wait until all answer, and return their records.

    A second call changes nothing. A service that displays another location than it would now, because the storage or
    the registry's address changed, is restarted.

    Raises:
        BusyError: a service runs in another container.
        CorruptDataError: the records are damaged.
        UnavailableError: a service did not start; the services that this call had started are stopped again.
    """
    root = root.resolve()
    with _locked(root):
        records = read(root)
        _check_here(root, records)
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in names:
                if not (name in records and process.is_running(records[name]) and _is_current(root, records[name])):
                    _launch(root, name, records, started)
            with announced(f"{' and '.join(names)} to start"):
                _wait_until_ready(root, names, records, started)
        except BaseException:
            for name in started:
                process.end(records.pop(name))
            write(root, records)
            raise
        return [records[name] for name in names]


def down(root: Path) -> list[Service]:
    """Stop all recorded services with all their descendants, and return those that were still running.

    Raises:
        BusyError: a service runs in another container.
        CorruptDataError: the records are damaged.
    """
    root = root.resolve()
    with _locked(root):
        records = read(root)
        _check_here(root, records)
        running = [records[name] for name in PROGRAMS if name in records and process.is_running(records[name])]
        for name in list(records):
            process.end(records.pop(name))
            write(root, records)
    return running


def status(root: Path) -> dict[str, tuple[State, Service | None]]:
    """Return, by name, the state and record of Prefect and Ray, and of the other services that were started."""
    root = root.resolve()
    records = read(root)
    found: dict[str, tuple[State, Service | None]] = dict.fromkeys(JOINED, (State.STOPPED, None))
    for name in filter(records.__contains__, PROGRAMS):
        service = records[name]
        state = State.DEAD
        if process.is_elsewhere(service):
            state = State.ELSEWHERE
        elif process.is_running(service) and not process.is_in_place(root, service):
            state = State.MOVED
        elif process.is_running(service):
            state = State.RUNNING if PROGRAMS[name].answers(service) else State.SILENT
        found[name] = (state, service)
    return found


def lost(joined: Sequence[Service]) -> Callable[[], UnavailableError | None]:
    """Return a function, to be called every second, that returns the error of a service that was lost, or None.

    A service in `joined` is lost when it does not run any more, and Ray also when it does not answer several times in a
    row: its clients would wait without end for a head that is frozen. A machine that was asleep misses one answer.
    """
    missed = 0

    def find_error() -> UnavailableError | None:
        nonlocal missed
        for service in joined:
            if not process.is_running(service):
                state, fix = "was stopped while this stage used it", "run: mnist-pipe up && dvc repro"
                return UnavailableError.missing(service.name, state=state, where=service.log, fix=fix)
        head = next((service for service in joined if service.name == "ray"), None)
        if head is None or process.speaks_http2(LOOPBACK, head.port):
            missed = 0
            return None
        missed += 1
        if missed == 1:
            command_line.show(f"waiting for {head.address}, the Ray that this stage uses", error=True)
        if missed < _MISSED:
            return None
        cause, fix = f"no reply to {missed} probes", "run: mnist-pipe down && mnist-pipe up && dvc repro"
        return UnavailableError.unreachable(head.address, where=head.log, cause=cause, fix=fix)

    return find_error


def joined(root: Path) -> list[Service]:
    """Return the services started here whose addresses this process's environment has."""
    addresses = {os.environ.get("PREFECT_API_URL"), os.environ.get("RAY_ADDRESS")}
    records = read(root.resolve())
    return [records[name] for name in JOINED if name in records and records[name].address in addresses]


def describe(name: str, state: State, service: Service | None) -> str:
    """Describe a service in one line: its URL and login if it runs, otherwise the command to run."""
    if service is None:
        return f"{state}; start it with: {start_command(name, state)}"
    if state is State.RUNNING:
        return f"{service.url}   {PROGRAMS[name].login(service)}"
    return f"{state}; see {os.path.relpath(service.log)} and run: {start_command(name, state)}"


def facts(name: str, state: State, service: Service | None) -> dict[str, str | None]:
    """Return what `describe` says, for a program; a fact that a service in this state does not have is None."""
    running = service if state is State.RUNNING else None
    has_secret = running is not None and running.secret != ""
    return {
        "state": state.name.lower(),
        "url": running.url if running else None,
        "credential": PROGRAMS[name].credential if has_secret else None,
        "secret_file": running.secret if running and has_secret else None,
        "log": service.log if service else None,
        "start": None if running else start_command(name, state),
    }


def authorization(service: Service) -> str:
    """Return the service's HTTP Authorization header, or an empty string if it needs no credentials."""
    return PROGRAMS[service.name].authorization(service)


def start_command(name: str, state: State) -> str:
    """Return the commands that start the service `name` from its current `state`."""
    command = "mnist-pipe up" if name in JOINED else "mnist-pipe dashboards"
    if state is State.ELSEWHERE:
        return f"mnist-pipe down in that container, then {command}"
    return f"mnist-pipe down && {command}" if state is State.SILENT else command


def _locked(root: Path) -> AbstractContextManager[None]:
    """Return the lock of those who start and stop services, of whom the first may need some time to start all."""
    purpose = "starting and stopping services"
    return atomic.locked(root / _LOCK, purpose=purpose, wait=True, limit_seconds=START_SECONDS)


def _is_current(root: Path, service: Service) -> bool:
    """Return whether a running service uses and displays the location that it would if it were started now."""
    shows = PROGRAMS[service.name].shows
    return process.is_in_place(root, service) and (shows is None or service.address == shows(root))


def _check_here(root: Path, records: Mapping[str, Service]) -> None:
    """Raise BusyError if a service runs in another container, whose processes cannot be ended from here."""
    for name, service in records.items():
        if process.is_elsewhere(service):
            fix = "run there: mnist-pipe down"
            raise BusyError.missing(name, state=str(State.ELSEWHERE), where=root / paths.SERVICES, fix=fix)


def _launch(root: Path, name: str, records: dict[str, Service], started: dict[str, subprocess.Popen[bytes]]) -> None:
    """Start one service and replace its record, which is on disk before anything else can fail."""
    if name in records:
        process.end(records[name])  # a killed service may have left processes and files behind
    log = log_file(root, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    launch = PROGRAMS[name].plan(root)
    inherited = {variable: value for variable, value in os.environ.items() if variable not in launch.unset}
    with log.open("ab") as stream:
        env = {**inherited, **QUIET, **home(root), **no_proxy(), **launch.variables}
        started[name] = process.spawn(root, launch.command, env=env, log=stream)
    main = psutil.Process(started[name].pid)
    records[name] = Service(
        name=name,
        pid=main.pid,
        created=main.create_time(),
        since_boot=process.started_at(main),
        port=launch.port,
        address=launch.address,
        url=launch.url,
        secret=str(root / SECRETS / name) if PROGRAMS[name].has_secret else "",
        log=str(log),
        folder=launch.folder,
        root=str(root),
        namespace=process.namespace(),
    )
    write(root, records)
    claim_folder(records[name])


def _wait_until_ready(
    root: Path, names: Sequence[str], records: dict[str, Service], started: dict[str, subprocess.Popen[bytes]]
) -> None:
    """Wait until every service answers; restart one that lost its port to another program on the next port.

    Raises:
        UnavailableError: a service exited, or does not answer within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    launches = dict.fromkeys(names, 1)
    waiting = set(names)
    while waiting:
        for name in sorted(waiting):
            service = records[name]
            code = started[name].poll() if name in started else None
            if code is None and PROGRAMS[name].answers(service):
                waiting.discard(name)
            elif code is not None and launches[name] < _LAUNCHES and not all(map(process.is_free, service.ports)):
                launches[name] += 1
                _launch(root, name, records, started)
            elif code is not None or time.monotonic() > deadline:
                got = "no reply" if code is None else f"exit code {code}"
                fix = "its last lines follow" if name in started else f"run: {start_command(name, State.SILENT)}"
                rule = f"answer within {START_SECONDS:.0f} seconds"
                error = UnavailableError.invalid(service.log, name, rule, got=got, fix=fix)
                raise UnavailableError(f"{error}\n{_tail(Path(service.log))}") if name in started else error
        time.sleep(0.05)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
