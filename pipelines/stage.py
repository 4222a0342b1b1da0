"""`@stage`: a Prefect flow that runs in the project's folder or, on a cluster's worker, in one made from a request."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from prefect import Flow, flow

Parameters = ParamSpec("Parameters")


def stage(function: Callable[Parameters, None]) -> Flow[..., None]:
    """The flow of a stage, which bears the function's name.

    It takes one more parameter, `run`: on the worker the place in the storage that `handoff.worker_workspace` takes.
    """

    @functools.wraps(function)
    def body(*args: Any, run: str | None = None, **kwargs: Any) -> None:
        if run is None:
            function(*args, **kwargs)
            return
        from mnist_pipe.cluster import handoff

        with handoff.worker_workspace(run):
            function(*args, **kwargs)

    signature = inspect.signature(function, eval_str=True)
    place = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None)
    body.__signature__ = signature.replace(parameters=[*signature.parameters.values(), place])  # type: ignore[attr-defined]
    return flow(name=function.__name__)(body)
