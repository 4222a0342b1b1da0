"""When a task is tried again: only after an error that a second try can cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def after(error: type[Exception]) -> Callable[[Any, Any, Any], bool]:
    """A `retry_condition_fn` that is true after `error`."""

    def may_heal(_task: Any, _run: Any, state: Any) -> bool:
        return isinstance(state.result(raise_on_failure=False), error)

    return may_heal
