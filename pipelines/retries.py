"""Conditions for retrying a task: only after errors that may be transient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def after(error: type[Exception]) -> Callable[[Any, Any, Any], bool]:
    """Return a `retry_condition_fn` that is true if the task raised `error`."""

    def is_transient(_task: Any, _run: Any, state: Any) -> bool:
        return isinstance(state.result(raise_on_failure=False), error)

    return is_transient
