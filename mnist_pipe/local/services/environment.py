"""Variables to set before importing prefect or ray: addresses and secrets of the services, and no telemetry."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from urllib.request import getproxies

from mnist_pipe import paths, telemetry
from mnist_pipe.errors import UnavailableError, public_url
from mnist_pipe.local import configuration, http_probe
from mnist_pipe.local.configuration import Setting
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import prefect_server, ray_head
from mnist_pipe.local.services.process import is_in_place, is_running, speaks_http2
from mnist_pipe.local.services.program import Service, read

QUIET = {
    **telemetry.OFF,
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # Ray's default of 60 s is how long a dead head goes unnoticed
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a Ray Train worker prints goes straight to its log file
}
"""Environment variables that every process of the project sets, including the services."""


def environment(root: Path) -> dict[str, str]:
    """Return the environment variables that a stage's process must set before it imports prefect or ray.

    If no services run, the stage starts its own, with the same secrets and on loopback too. A variable that the user
    has set is left out, and so are the secrets of Prefect or Ray if the user has set the address of another one, in
    whatever place the library reads.

    Raises:
        InputError: a file with the user's settings is not valid.
        UnavailableError: the user's Prefect or Ray does not answer within 3 seconds, or refuses the credentials.
    """
    return prefect_environment(root) | ray_environment(root)


def prefect_environment(root: Path) -> dict[str, str]:
    """Return the environment variables that a process must set before it imports prefect, if it does not use ray.

    Variables are left out as in `environment`.

    Raises:
        InputError: a file with the user's settings is not valid.
        UnavailableError: the user's Prefect does not answer within 3 seconds, or refuses the credentials.
    """
    root = root.resolve()
    variables = prefect_server.settings(root)
    if api := configuration.prefect_setting(root, configuration.PREFECT_URL, "api", "url"):
        _check_api(root, api)
        variables[configuration.PREFECT_URL] = api.value
    else:
        variables |= prefect_server.access(root)
        server = read(root).get("prefect")
        if server and _is_usable(root, server) and prefect_server.PROGRAM.answers(server):
            variables[configuration.PREFECT_URL] = server.address
    return _not_set(variables)


def ray_environment(root: Path) -> dict[str, str]:
    """Return the environment variables that a process must set before it imports ray, if it does not use prefect.

    Variables are left out as in `environment`.

    Raises:
        UnavailableError: the user's RAY_ADDRESS does not answer within 3 seconds.
    """
    root = root.resolve()
    variables = dict(QUIET)
    if address := configuration.ray_address():
        _check_cluster(address)
        variables[configuration.RAY_ADDRESS] = address.value
    else:
        variables |= ray_head.access(root)
        if (head := read(root).get("ray")) and _is_usable(root, head) and speaks_http2(LOOPBACK, head.port):
            variables["RAY_ADDRESS"] = head.address
    return _not_set(variables) | home(root) | no_proxy()


def _is_usable(root: Path, service: Service) -> bool:
    return is_running(service) and is_in_place(root, service)


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
    # `auto` is replaced by the address that was checked, so that every process takes the same one.
    return {name: value for name, value in variables.items() if os.environ.get(name, "") in ("", "auto")}


def _check_api(root: Path, api: Setting) -> None:
    shown, authorization = public_url(api.value), ""
    if credentials := configuration.prefect_setting(root, "PREFECT_API_AUTH_STRING", "api", "auth_string"):
        authorization = http_probe.basic(credentials.value)
    elif key := configuration.prefect_setting(root, "PREFECT_API_KEY", "api", "key"):
        authorization = http_probe.bearer(key.value)
    reply = http_probe.get(f"{shown.rstrip('/')}/admin/version", authorization=authorization)
    if reply.status in (401, 403):
        given = credentials.place if credentials else "PREFECT_API_AUTH_STRING"
        fix = f"set {given} to the server's user:password"
        raise UnavailableError.missing("the credentials", state="were refused", where=shown, fix=fix)
    if not reply.status:
        fix = f"start that server or {api.fix}"
        raise UnavailableError.unreachable(shown, where=api.place, cause="no reply", fix=fix)


def _check_cluster(address: Setting) -> None:
    host, _, port = address.value.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or an invalid form, for which Ray's own message is better
    if not http_probe.within_seconds(lambda: speaks_http2(host.strip("[]"), int(port))):
        fix = "start that cluster or unset the variable"
        raise UnavailableError.unreachable(address.value, where=address.place, cause="no reply", fix=fix)
