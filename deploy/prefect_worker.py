"""The process of `deploy/worker`: takes the flow runs of a work pool, each into a process of its own.

`prefect worker start` does so too, but on SIGTERM it kills the runs that it has started and leaves them "Running" on
the server for ever. Here no handler is installed: a signal ends the worker alone, at once, and the runs go on. The next
worker on this machine looks after them.
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

LOOK_SECONDS = 5.0
"""Between two looks at the processes of the runs."""
PATIENCE_SECONDS = 30.0
"""How long a run may have been pending, running or cancelling before something is done about it here."""


def template() -> dict[str, Any]:
    """Prefect's template of a process pool, with two other defaults: for the pool, which the worker makes if need be.

    A run whose output went through the worker would end with it, at the next line that it prints. And the worker starts
    a command at once, without one it first starts a process that looks where the code lies: 2 s on two cores.
    """
    content = ProcessWorker.get_default_base_job_template()
    variables = content["variables"]["properties"]
    variables["stream_output"]["default"] = False
    variables["command"]["default"] = "python -m prefect.engine"
    return content


async def look_after(pool: str, *, name: str) -> None:
    """Tell the server, for ever, what nobody else would: where the process of a run of the worker `name` is gone.

    Its worker does so while it lives. A run that was killed with its worker, or after it, crashed, and its client tries
    again. One that is to be cancelled is ended here where another worker than this one started it, or where this one
    has not done so: Prefect no longer can once the server was away for half a minute.
    """
    missed: set[UUID] = set()
    async with get_client() as client:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(httpx.HTTPError, ObjectNotFound):  # the server is away, or somebody deleted the run
                missed = await _look(client, pool, name=name, missed=missed)


async def _look(client: PrefectClient, pool: str, *, name: str, missed: set[UUID]) -> set[UUID]:
    """The runs without a process; those that were in `missed` already are ended."""
    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    unfinished = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    ours = [run for run in unfinished if run.labels.get("prefect.worker.name") == name]
    processes = _processes() if ours else {}
    gone = set()
    for run in ours:
        assert run.state is not None
        process, cancelling = processes.get(str(run.id)), run.state.is_cancelling()
        is_old = datetime.now(UTC) - run.state.timestamp > timedelta(seconds=PATIENCE_SECONDS)
        if process is None and is_old:
            gone.add(run.id)
            if run.id in missed:
                end: State[Any] = Cancelled() if cancelling else Crashed(message=f"its process is gone from {name}")
                await client.set_flow_run_state(run.id, end, force=True)
        elif process is not None and cancelling and (is_old or process.ppid() != os.getpid()):
            await asyncio.to_thread(_end, process)
            await client.set_flow_run_state(run.id, Cancelled(), force=True)
    return gone


def _processes() -> dict[str, psutil.Process]:
    """The processes of flow runs on this machine, by the run's id."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is somebody else's
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
    """Take runs for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pool, name = os.environ["MNIST_PIPE_WORK_POOL"], socket.gethostname()
    worker = ProcessWorker(work_pool_name=pool, name=name, base_job_template=template())

    async def work() -> None:
        await asyncio.gather(worker.start(printer=print), look_after(pool, name=name))

    asyncio.run(work())


if __name__ == "__main__":
    main()
