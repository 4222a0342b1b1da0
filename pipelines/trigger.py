"""Run a stage on the work pool's worker: trigger its deployment, follow the run, and download the outputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log, WorkerStatus
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelling

from mnist_pipe import command_line
from mnist_pipe.atomic import digest
from mnist_pipe.cluster import handoff, storage
from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.errors import PipelineError, UnavailableError, one_line, public_url
from mnist_pipe.fingerprint import source_version

MAX_ATTEMPTS = 3
"""Maximum number of attempts. Only crashed runs are retried; a failed one would fail again."""
PATIENCE_SECONDS = 600.0
"""Time to wait for an unreachable server during a run, in seconds."""
_LAST_LINE = "Finished in state"
"""Prefix of the last log line of every flow run that neither crashed nor was cancelled."""
_LAST_LINE_SECONDS = 90.0
"""Time to wait for a run's last log line, in seconds; it may buffer its log for up to 64 s while the server is away."""
_POLL_SECONDS = (0.5, 2.0)
"""Minimum and maximum polling interval, in seconds.

Between these bounds the interval is 1/20 of the run's duration so far, to limit the load on the server.
"""
_PAGE = 200  # log lines that the server returns in one reply
_MAX_KEYS = 100

Arguments = ParamSpec("Arguments")
Reply = TypeVar("Reply")


def trigger(stage: str, root: Path, *, flow: str, parameters: Mapping[str, Any], name: str) -> None:
    """Run `stage` as the deployment `<flow>/<work pool>` on the cluster, and download its outputs to their places.

    If a run of this name has not ended yet, because an earlier client died, it is followed instead of a new one. Ctrl-C
    and SIGTERM in this process cancel the remote run.

    Args:
        stage: name of the stage in `dvc.yaml`.
        root: the project's folder, which has the inputs and gets the outputs.
        flow: name of the stage's flow, the first part of the deployment's name.
        parameters: the flow's parameters.
        name: name of the flow run.

    Raises:
        UnavailableError: the server, the storage, the deployment or its worker is not available.
        PipelineError: the run did not complete; with the remote reason, its exit code and the run's URL.
    """
    place = _storage()
    place.check()
    with get_client(sync_client=True) as client:
        deployment_id = _check_pool(client, os.environ[WORK_POOL], deployment=f"{flow}/{os.environ[WORK_POOL]}")
        # A run of other code, or with its outputs in another storage, must not be taken for this one.
        series = f"{name}-{digest([source_version(), place.uri])[:8]}"
        request = handoff.upload_request(stage, root, name=series, storage=place)
        for attempt in range(MAX_ATTEMPTS):
            key, run = _start(client, deployment_id, name, series, parameters, place)
            try:
                run = _follow(client, run)
            except BaseException:
                _cancel(client, run.id)
                raise
            assert run.state is not None
            if run.state.is_completed():
                handoff.download_outputs(request, root, storage=place, key=key)
                return
            if not run.state.is_crashed() or attempt + 1 == MAX_ATTEMPTS:
                raise _error(run, handoff.read_failure(place, key))
            _print_line(f"{run.name}: {one_line(run.state.message)}; retrying")


def _storage() -> Storage:
    if not os.environ.get(storage.VARIABLE):
        fix = "set it to a bucket or a shared directory, for the inputs and outputs"
        raise UnavailableError.missing(storage.VARIABLE, state=f"is not set, but {WORK_POOL} needs it", fix=fix)
    return storage.project_storage(Path.cwd())


def _check_pool(client: SyncPrefectClient, pool: str, *, deployment: str) -> UUID:
    """Check the server, pool, worker and deployment, and return the deployment's id.

    Without this check the client would wait forever for a run that no worker takes.

    Raises:
        UnavailableError: one of them is not available, or the server refuses the credentials.
    """
    if not PREFECT_API_URL.value():
        fix = "set it to the URL of the team's Prefect server"
        raise UnavailableError.missing("PREFECT_API_URL", state=f"is not set, but {WORK_POOL} needs it", fix=fix)
    server = public_url(str(PREFECT_API_URL.value()))

    def absent(what: str, name: str, *, fix: str) -> UnavailableError:
        return UnavailableError.missing(f"{what} {name}", where=server, fix=fix)

    try:
        workers = client.read_workers_for_work_pool(pool)
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            fix = "start deploy/worker on the head"
            raise UnavailableError.missing(f"no worker of {pool}", state="is online", where=WORK_POOL, fix=fix)
        return client.read_deployment_by_name(deployment).id
    except ObjectNotFound as error:
        raise absent("the deployment", deployment, fix="run: mnist-pipe deploy") from error
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404:
            raise absent("the work pool", pool, fix="start deploy/worker on the head") from error
        if error.response.status_code not in (401, 403):
            raise UnavailableError.unreachable(server, cause=one_line(error)) from error
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        raise UnavailableError.missing("the credentials", state="were refused", where=server, fix=fix) from None
    except httpx.HTTPError as error:
        raise UnavailableError.unreachable(server, cause=one_line(error) or type(error).__name__) from error


def _start(
    client: SyncPrefectClient,
    deployment_id: UUID,
    name: str,
    series: str,
    parameters: Mapping[str, Any],
    place: Storage,
) -> tuple[str, FlowRun]:
    """Return the run to follow and its key in the storage; create a run if no earlier one can be followed.

    An earlier run can be followed if it has not ended, or if no client has downloaded its outputs. The server creates
    at most one run per idempotency key.
    """
    keys = [f"{series}/{number}" for number in range(_MAX_KEYS)]
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
    known = {run.idempotency_key: run for run in client.read_flow_runs(flow_run_filter=wanted)}
    number, key = next(
        (number, key)
        for number, key in enumerate([*keys, f"{series}/{int(time.time())}"])
        if key not in known or _is_open(known[key], place, f"runs/{key}")
    )
    if key in known:
        return f"runs/{key}", known[key]
    run = client.create_flow_run_from_deployment(
        deployment_id,
        parameters=dict(parameters),
        job_variables={"env": {handoff.REQUEST: f"{place.uri}/runs/{key}"}},
        name=name if number == 0 else f"{name}.{number}",
        idempotency_key=key,
    )
    _print_line(f"{run.name}: {_url(run.id)}")
    return f"runs/{key}", run


def _is_open(run: FlowRun, place: Storage, key: str) -> bool:
    state = run.state
    if state is not None and state.is_completed():
        return handoff.has_outputs(place, key)
    return state is None or not (state.is_final() or state.is_cancelling())


def _follow(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Print the run's logs and states until it has ended, and return its final version."""
    shown, state, saw_last_line, started, deadline = 0, None, False, time.monotonic(), float("inf")
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # `_with_retries` retries instead, and prints a notice
        while True:
            run = _with_retries(client.read_flow_run, run.id)
            assert run.state is not None
            if run.state.name != state:
                state = run.state.name
                _print_line(f"{run.name}: {state}")
            logs = _show_logs(client, run.id, shown)
            shown += len(logs)
            saw_last_line |= any(log.message.startswith(_LAST_LINE) and log.task_run_id is None for log in logs)
            if run.state.is_final():
                patience = _LAST_LINE_SECONDS if run.state.is_completed() or run.state.is_failed() else 1
                deadline = min(deadline, time.monotonic() + patience)
                if saw_last_line or time.monotonic() >= deadline:
                    return run
            least, most = _POLL_SECONDS
            time.sleep(least if run.state.is_final() else min(max(least, (time.monotonic() - started) / 20), most))


def _show_logs(client: SyncPrefectClient, run_id: UUID, shown: int) -> list[Log]:
    """Print the run's log from line `shown` on, and return the records of those lines."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    found: list[Log] = []
    while True:
        offset = shown + len(found)
        logs = _with_retries(client.read_logs, wanted, limit=_PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)
        for log in logs:
            if "\nTraceback (most" not in log.message and not log.message.startswith(f"{_LAST_LINE} Failed"):
                _print_line(log.message, at=log.timestamp)  # the caller raises the error, so that it is printed once
        found += logs
        if len(logs) < _PAGE:
            return found


def _with_retries(request: Callable[Arguments, Reply], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Reply:
    """Call `request` and return its reply; retry for up to `PATIENCE_SECONDS` while the server is unreachable.

    Raises:
        UnavailableError: the server refuses the request, or is unreachable for longer.
    """
    deadline, is_reported = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return request(*args, **kwargs)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            refused = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() > deadline:
                server = public_url(str(PREFECT_API_URL.value()))
                raise UnavailableError.unreachable(server, cause=one_line(error)) from error
            if not is_reported:
                _print_line(f"the Prefect server does not answer; retrying for up to {PATIENCE_SECONDS:.0f} s")
                is_reported = True
            time.sleep(2)


def _cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    try:
        client.set_flow_run_state(run_id, Cancelling(message="the client was stopped"), force=False)
        _print_line(f"cancelled: {_url(run_id)}")
    except Exception:
        _print_line(f"could not be cancelled and may still be running: {_url(run_id)}")


def _error(run: FlowRun, failure: tuple[str, int] | None) -> PipelineError:
    assert run.state is not None
    state = run.state.type.value.lower()
    reason, exit_code = failure or (one_line(run.state.message or state), PipelineError.exit_code)
    error = PipelineError(f"{reason} ({state} on the cluster: {_url(run.id)})")
    error.exit_code = exit_code
    return error


def _url(run_id: UUID) -> str:
    return f"{public_url(str(PREFECT_UI_URL.value()))}/runs/flow-run/{run_id}"


def _print_line(text: str, *, at: datetime | None = None) -> None:
    moment = (at or datetime.now(UTC)).astimezone()
    command_line.show(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} | {text}", error=True)
