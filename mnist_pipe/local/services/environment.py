"""What a process must set before it imports prefect or ray, so that it joins the services and tells nobody."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import getproxies

from mnist_pipe import telemetry
from mnist_pipe.errors import UnavailableError, public_url
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import prefect_server, ray_head
from mnist_pipe.local.services.process import connects, is_running
from mnist_pipe.local.services.program import read

QUIET = {
    **telemetry.OFF,
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a Ray Train worker prints goes to its log, and to no logger on the way
}
"""What every process of the project sets, the services too."""


def environment(root: Path) -> dict[str, str]:
    """What a stage's process must set before it imports prefect or ray.

    Without running services a stage brings its own, with the same secrets and on loopback too. A variable that the user
    has set is left out, and with it whatever belongs to the user's own Prefect server or Ray cluster.

    Raises:
        UnavailableError: the user's PREFECT_API_URL or RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    variables = prefect_server.settings(root)
    if api_url := os.environ.get("PREFECT_API_URL"):
        _check_api(api_url)
    else:
        variables |= prefect_server.access(root)
        if (server := read(root).get("prefect")) and is_running(server) and prefect_server.PROGRAM.answers(server):
            variables["PREFECT_API_URL"] = server.address
    return _not_set(variables) | ray_environment(root)


def ray_environment(root: Path) -> dict[str, str]:
    """What a process that uses ray and not prefect must set before it imports ray; else as `environment`.

    Raises:
        UnavailableError: the user's RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    variables = dict(QUIET)
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _check_cluster(address)
    else:
        variables |= ray_head.access(root)
        if (head := read(root).get("ray")) and is_running(head) and connects(LOOPBACK, head.port):
            variables["RAY_ADDRESS"] = head.address
    return _not_set(variables) | no_proxy()


def no_proxy() -> dict[str, str]:
    """Keep the user's proxy out of the way to loopback, which Prefect's client would otherwise ask it for."""
    if not getproxies():
        return {}
    hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    value = ",".join(dict.fromkeys([*filter(None, hosts), LOOPBACK, "localhost"]))
    return {"no_proxy": value, "NO_PROXY": value}


def _not_set(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not os.environ.get(name)}


def _check_api(url: str) -> None:
    shown = public_url(url)
    if not http_probe.get(f"{shown.rstrip('/')}/health").status:
        fix = "start that server or unset the variable"
        raise UnavailableError.unreachable(shown, where="PREFECT_API_URL", cause="no reply", fix=fix)


def _check_cluster(address: str) -> None:
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or a form that Ray itself explains better
    if not http_probe.within_seconds(lambda: connects(host.strip("[]"), int(port))):
        fix = "start that cluster or unset the variable"
        raise UnavailableError.unreachable(address, where="RAY_ADDRESS", cause="no reply", fix=fix)
