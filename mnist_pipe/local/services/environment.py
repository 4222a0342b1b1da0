"""Variables to set before importing prefect or ray: addresses and secrets of the services, and no telemetry."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from urllib.request import getproxies

from mnist_pipe import paths, telemetry
from mnist_pipe.errors import UnavailableError, public_url
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import prefect_server, ray_head
from mnist_pipe.local.services.process import connects, is_running
from mnist_pipe.local.services.program import read

QUIET = {
    **telemetry.OFF,
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a Ray Train worker prints goes straight to its log file
}
"""Environment variables that every process of the project sets, including the services."""


def environment(root: Path) -> dict[str, str]:
    """Return the environment variables that a stage's process must set before it imports prefect or ray.

    If no services run, the stage starts its own, with the same secrets and on loopback too. A variable that the user
    has set is left out, and so are the secrets of Prefect or Ray if the user has set the address of another one.

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
    """Return the environment variables that a process must set before it imports ray, if it does not use prefect.

    Variables are left out as in `environment`.

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
    return _not_set(variables) | home(root) | no_proxy()


def no_proxy() -> dict[str, str]:
    """Return the variables that exempt loopback from the user's proxy, which Prefect's client would otherwise use."""
    if not getproxies():
        return {}
    hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    value = ",".join(dict.fromkeys([*filter(None, hosts), LOOPBACK, "localhost"]))
    return {"no_proxy": value, "NO_PROXY": value}


def home(root: Path) -> dict[str, str]:
    """Return HOME and LOGNAME for a user who has none, as in containers, or whose home is read-only.

    Libraries keep their caches and settings there, and raise an exception if they find no name for the user.
    """
    variables = {}
    if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111 (Path's method raises without a home)
        folder = root / paths.STATE / "home"
        folder.mkdir(parents=True, exist_ok=True)
        variables["HOME"] = str(folder)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        variables["LOGNAME"] = "mnist-pipe"
    return variables


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
        return  # `auto`, or an invalid form, for which Ray's own message is better
    if not http_probe.within_seconds(lambda: connects(host.strip("[]"), int(port))):
        fix = "start that cluster or unset the variable"
        raise UnavailableError.unreachable(address, where="RAY_ADDRESS", cause="no reply", fix=fix)
