"""Run a stage where the work pool's worker is: trigger its deployment, follow it here, bring its outputs back."""

from __future__ import annotations

import os
import sys
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

from mnist_pipe.atomic import digest
from mnist_pipe.cluster import handoff, storage
from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.errors import PipelineError, UnavailableError, one_line, public_url
from mnist_pipe.fingerprint import source_version

MAX_ATTEMPTS = 3
"""Of a run whose process died with its machine. One that failed has a reason that would hold again."""
PATIENCE_SECONDS = 600.0
"""How long a server that has gone is waited for in mid-run."""
_LAST_LINE = "Finished in state"
"""How the last line of a flow run begins, but for one that crashed or was cancelled."""
_LAST_LINE_SECONDS = 90.0
"""How long it is waited for: a run tries again after up to 64 s to hand over its lines to a server that was away."""
_POLL_SECONDS = (0.5, 2.0)
"""Between two questions: a twentieth of the time that the run has taken, within these. Each is the server's work."""
_PAGE = 200  # what the server returns of logs at once
_MAX_KEYS = 100

Arguments = ParamSpec("Arguments")
Reply = TypeVar("Reply")


def trigger(stage: str, root: Path, *, flow: str, parameters: Mapping[str, Any], name: str) -> None:
    """Run `stage` as the deployment `<flow>/<work pool>` under the name `name`, and put its outputs in their places.

    A run of this name that is still on its way, because an earlier client died, is followed and not started again;
    Ctrl-C and SIGTERM here cancel it there.

    Raises:
        UnavailableError: the server, the storage, the deployment or its worker is not there.
        PipelineError: the run did not complete; with the remote reason, its exit code and the run's address.
    """
    place = _storage()
    place.check()
    with get_client(sync_client=True) as client:
        deployment_id = _check_pool(client, os.environ[WORK_POOL], deployment=f"{flow}/{os.environ[WORK_POOL]}")
        # What other code made of the same, or what lies in another storage, is not taken for ours.
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
            _say(f"{run.name}: {one_line(run.state.message)}; trying again")


def _storage() -> Storage:
    if not os.environ.get(storage.VARIABLE):
        fix = "name a bucket or a shared directory, for the inputs and outputs"
        raise UnavailableError.missing(storage.VARIABLE, state=f"is not set, which {WORK_POOL} needs", fix=fix)
    return storage.project_storage(Path.cwd())


def _check_pool(client: SyncPrefectClient, pool: str, *, deployment: str) -> UUID:
    """The deployment's id; what would otherwise be waited for without an end is found out at once."""
    if not PREFECT_API_URL.value():
        fix = "name the team's Prefect server"
        raise UnavailableError.missing("PREFECT_API_URL", state=f"is not set, which {WORK_POOL} needs", fix=fix)
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
            raise UnavailableError.unreachable(server, cause=one_line(error)[:200]) from error
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        raise UnavailableError.invalid(server, "", "accept our credentials", got="a refusal", fix=fix) from None
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
    """The run to follow, and its key in the storage: one that is on its way or whose outputs nobody took, or a new one.

    The server makes one run of one idempotency key, however often it is asked.
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
    _say(f"{run.name}: {_url(run.id)}")
    return f"runs/{key}", run


def _is_open(run: FlowRun, place: Storage, key: str) -> bool:
    state = run.state
    return state is None or not state.is_final() or (state.is_completed() and handoff.has_outputs(place, key))


def _follow(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Show the run's logs and states until it has ended."""
    shown, state, is_told, started, deadline = 0, None, False, time.monotonic(), float("inf")
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # which wait in silence; `_patiently` says so
        while True:
            run = _patiently(client.read_flow_run, run.id)
            assert run.state is not None
            if run.state.name != state:
                state = run.state.name
                _say(f"{run.name}: {state}")
            logs = _show_logs(client, run.id, shown)
            shown += len(logs)
            is_told |= any(log.message.startswith(_LAST_LINE) and log.task_run_id is None for log in logs)
            if run.state.is_final():
                patience = _LAST_LINE_SECONDS if run.state.is_completed() or run.state.is_failed() else 1
                deadline = min(deadline, time.monotonic() + patience)
                if is_told or time.monotonic() >= deadline:
                    return run
            least, most = _POLL_SECONDS
            time.sleep(least if run.state.is_final() else min(max(least, (time.monotonic() - started) / 20), most))


def _show_logs(client: SyncPrefectClient, run_id: UUID, shown: int) -> list[Log]:
    """Print the run's log from line `shown` on, and return those lines."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    found: list[Log] = []
    while True:
        offset = shown + len(found)
        logs = _patiently(client.read_logs, wanted, limit=_PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)
        for log in logs:
            if "\nTraceback (most" not in log.message and not log.message.startswith(f"{_LAST_LINE} Failed"):
                _say(log.message, at=log.timestamp)  # an error is told once, last, in one line
        found += logs
        if len(logs) < _PAGE:
            return found


def _patiently(ask: Callable[Arguments, Reply], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Reply:
    """The reply to `ask`, waiting for a server that has gone away."""
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return ask(*args, **kwargs)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            refused = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() > deadline:
                server = public_url(str(PREFECT_API_URL.value()))
                raise UnavailableError.unreachable(server, cause=one_line(error)[:200]) from error
            if not told:
                _say("the Prefect server does not answer; waiting for it")
                told = True
            time.sleep(2)


def _cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    try:
        client.set_flow_run_state(run_id, Cancelling(message="the client was stopped"), force=False)
        _say(f"cancelled: {_url(run_id)}")
    except Exception:
        _say(f"could not be cancelled and may go on: {_url(run_id)}")


def _error(run: FlowRun, told: tuple[str, int] | None) -> PipelineError:
    assert run.state is not None
    state = run.state.type.value.lower()
    reason, exit_code = told or (one_line(run.state.message or state), PipelineError.exit_code)
    error = PipelineError(f"{reason} ({state} on the cluster: {_url(run.id)})")
    error.exit_code = exit_code
    return error


def _url(run_id: UUID) -> str:
    return f"{public_url(str(PREFECT_UI_URL.value()))}/runs/flow-run/{run_id}"


def _say(text: str, *, at: datetime | None = None) -> None:
    moment = (at or datetime.now(UTC)).astimezone()
    print(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} | {text}", file=sys.stderr, flush=True)
