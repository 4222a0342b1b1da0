"""`@stage`: a Prefect flow that runs in the project's folder or, on a cluster's worker, in one made from a request."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import ParamSpec

from prefect import Flow, flow

from mnist_pipe.cluster import handoff

Parameters = ParamSpec("Parameters")


def stage(function: Callable[Parameters, None]) -> Flow[..., None]:
    """The flow of a stage, which bears the function's name.

    On a worker the variable MNIST_PIPE_REQUEST names the place in the storage that `handoff.worker_workspace` takes.
    """

    @functools.wraps(function)
    def body(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        request = os.environ.get(handoff.REQUEST)
        if request is None:
            function(*args, **kwargs)
            return
        with handoff.worker_workspace(request):
            function(*args, **kwargs)

    # Prefect would look up the names of the annotations in this module.
    body.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return flow(name=function.__name__)(body)
