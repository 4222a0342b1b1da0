"""The succession of champions on a store that others write to at the same time, for any number of writers.

MLflow sets an alias without comparing it with what it was. But it never changes a parameter of a run, once logged. So
a candidate that passed the gates against a champion logs `successor.1` to that champion's run, and reads it back: one
of all writers has succeeded, and moves the alias. The others find the new champion and must pass the gates against it.
While there is no champion, the run of the first version takes the place of the champion's.

A writer that dies before it has moved the alias is replaced by one of those that wait for it, again by a parameter that
only one can log. What cannot be prevented without more from MLflow: a writer that stops for longer than `_PATIENCE`
polls just before it moves an alias, and then goes on.
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mnist_pipe.errors import UnavailableError
from mnist_pipe.registry import versions
from mnist_pipe.registry.runs import at_most_twice
from mnist_pipe.registry.versions import CHAMPION, PREVIOUS, RegisteredModel

if TYPE_CHECKING:
    from mlflow import MlflowClient

_POLL_SECONDS = 0.3
_PATIENCE = 20
"""Polls, not seconds, so that the sleep of a machine does not count."""
_DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of the champion as it was found, and how to claim it."""

    champion: RegisteredModel | None
    run_id: str = ""
    """The run that the claim is logged to; empty if a lock excludes other writers, so that no claim is needed."""
    claim: str = ""
    """The parameter that nobody has logged yet."""


def find_seat(client: MlflowClient, name: str) -> Seat:
    """Return the seat of the champion of `name`, which has at least one version, once no change of it is under way."""
    polls: dict[str, int] = {}
    while True:
        champion = versions.aliased(client, name, CHAMPION)
        run_id = champion.run_id if champion else _first_run(client, name)
        params = client.get_run(run_id).data.params
        kind = "successor" if champion else "first_champion"
        number = sum(f"{kind}.{n}" in params for n in range(1, len(params) + 1))
        claim = f"{kind}.{number}"
        if number == 0 or f"{claim}.{_DONE}" in params:
            # The alias is read again: if it has not moved meanwhile, a user moved it back after the last claim.
            if number == 0 or versions.aliased(client, name, CHAMPION) == champion:
                return Seat(champion=champion, run_id=run_id, claim=f"{kind}.{number + 1}")
            continue
        seat = Seat(champion=champion, run_id=run_id, claim=claim)
        polls[claim] = polls.get(claim, 0) + 1
        if polls[claim] % _PATIENCE == 0:
            helpers = sum(f"{claim}.helper.{n}" in params for n in range(1, len(params) + 1))
            mine = uuid.uuid4().hex
            if _log_once(client, run_id, f"{claim}.helper.{helpers + 1}", mine) == mine:
                _move(client, name, seat, version=params[claim].partition(" ")[0])
        else:
            time.sleep(random.uniform(0.5, 1.5) * _POLL_SECONDS)


def succeed(client: MlflowClient, name: str, seat: Seat, model: RegisteredModel) -> bool:
    """Make `model` the champion and return True, or return False if another writer has claimed the seat."""
    value = f"{model.version} {uuid.uuid4().hex}"
    if seat.run_id and _log_once(client, seat.run_id, seat.claim, value) != value:
        return False
    _move(client, name, seat, version=str(model.version))
    return True


def _first_run(client: MlflowClient, name: str) -> str:
    return str(min(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version)).run_id)


def _log_once(client: MlflowClient, run_id: str, key: str, value: str) -> str:
    """Log a parameter unless the run has it, and return the value that the run has."""
    from mlflow.exceptions import MlflowException

    refusal = None
    try:
        client.log_param(run_id, key, value)
    except MlflowException as error:  # the key has another value, or the store failed
        refusal = error
    found = client.get_run(run_id).data.params.get(key)
    if found is None:
        raise UnavailableError.invalid(run_id, key, "be logged to the run", got=refusal)
    return str(found)


def _move(client: MlflowClient, name: str, seat: Seat, *, version: str) -> None:
    """Move the alias as the claim says, in an order in which a name that has a champion has one at every moment."""
    if any(str(found.version) == version for found in client.search_model_versions(f"name = '{name}'")):
        if seat.champion is not None:
            at_most_twice(partial(client.set_registered_model_alias, name, PREVIOUS, str(seat.champion.version)))
        at_most_twice(partial(client.set_registered_model_alias, name, CHAMPION, version))
    if seat.run_id:
        client.log_param(seat.run_id, f"{seat.claim}.{_DONE}", "true")
