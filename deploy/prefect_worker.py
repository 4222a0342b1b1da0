"""The process of `deploy/worker`, which runs the flow runs of a work pool, each in its own process.

`prefect worker start` does this too, but on SIGTERM it kills the runs that it has started and leaves them "Running" on
the server forever. Here no handler is installed: a signal ends only the worker, at once, and the runs continue. The
next worker on this machine monitors them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed
from prefect.workers.process import ProcessWorker

POLL_SECONDS = 5.0
"""Interval between two checks of the runs' processes, in seconds."""
PATIENCE_SECONDS = 30.0
"""Time that a run may be pending, running or cancelling before this worker intervenes, in seconds."""


def template() -> dict[str, Any]:
    """Return Prefect's template of a process pool with two defaults changed.

    The worker uses it for the pool, which it creates if there is none. Runs must not pipe their output through the
    worker: after it exits they would die at the next line that they print. If a command is given, the worker starts it
    at once; without one it first starts a process that locates the code, which takes 2 s on two cores.
    """
    content = ProcessWorker.get_default_base_job_template()
    variables = content["variables"]["properties"]
    variables["stream_output"]["default"] = False
    variables["command"]["default"] = "python -m prefect.engine"
    return content


async def supervise_runs(pool: str, *, name: str) -> None:
    """Report to the server which runs of the worker `name` have lost their process, and end cancelled runs, forever.

    A worker reports its own runs while it lives. A run that was killed together with its worker, or later, is set to
    crashed here, and its client retries it. A run that is being cancelled is ended here if an earlier worker started
    it, or if this worker has not ended it in time: Prefect cannot do so after the server was away for half a minute.
    """
    missed: set[UUID] = set()
    async with get_client() as client:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            # The server is unreachable, the run was deleted, or its process ended while it was looked at.
            with suppress(httpx.HTTPError, ObjectNotFound, psutil.NoSuchProcess):
                missed = await _poll(client, pool, name=name, missed=missed)


async def _poll(client: PrefectClient, pool: str, *, name: str, missed: set[UUID]) -> set[UUID]:
    """Check the unfinished runs once and return the ids of those without a process.

    A run that was already in `missed` is set to crashed, or to cancelled if it was being cancelled.
    """
    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    unfinished = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    ours = [run for run in unfinished if run.labels.get("prefect.worker.name") == name]
    processes = _processes() if ours else {}
    without_process = set()
    for run in ours:
        assert run.state is not None
        process, cancelling = processes.get(str(run.id)), run.state.is_cancelling()
        is_old = datetime.now(UTC) - run.state.timestamp > timedelta(seconds=PATIENCE_SECONDS)
        if process is None and is_old:
            without_process.add(run.id)
            if run.id in missed:
                end: State[Any] = Cancelled() if cancelling else Crashed(message=f"its process on {name} has ended")
                await client.set_flow_run_state(run.id, end, force=True)
        elif process is not None and cancelling and (is_old or process.ppid() != os.getpid()):
            await asyncio.to_thread(_end, process)
            await client.set_flow_run_state(run.id, Cancelled(), force=True)
    return without_process


def _processes() -> dict[str, psutil.Process]:
    """Return the processes of flow runs on this machine, by the run's id."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # the process has ended, or belongs to another user
            if "prefect.engine" in process.cmdline():
                found[process.environ().get("PREFECT__FLOW_RUN_ID", "")] = process
    return found


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            process.kill()


def main() -> None:
    """Run the worker until a signal ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pool, name = os.environ["MNIST_PIPE_WORK_POOL"], socket.gethostname()
    worker = ProcessWorker(work_pool_name=pool, name=name, base_job_template=template())

    async def work() -> None:
        await asyncio.gather(worker.start(printer=print), supervise_runs(pool, name=name))

    asyncio.run(work())


if __name__ == "__main__":
    main()
