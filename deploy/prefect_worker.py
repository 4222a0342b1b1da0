"""The process of `deploy/worker`: takes the flow runs of a work pool, each into a process of its own.

`prefect worker start` does so too, but on SIGTERM it kills the runs that it has started and leaves them "Running" on
the server for ever. Here no handler is installed: a signal ends the worker alone, at once, and the runs go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

from prefect.workers.process import ProcessWorker


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


def main() -> None:
    """Take runs for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pool = os.environ["MNIST_PIPE_WORK_POOL"]
    worker = ProcessWorker(work_pool_name=pool, name=socket.gethostname(), base_job_template=template())
    asyncio.run(worker.start(printer=print))


if __name__ == "__main__":
    main()
