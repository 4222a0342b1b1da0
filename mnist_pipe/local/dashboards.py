"""The dashboards: the URL of each, how to log in, and whether it accepts the available credentials.

On one machine the dashboards are those of the local services. On a cluster their addresses come from the environment
variables that Prefect, Ray and MLflow read themselves and, if one is not set, from the Prefect variable that
`mnist-pipe deploy` writes. TensorBoard and optuna-dashboard always run on this machine and read the storage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.errors import (
    InputError,
    PipelineError,
    UnavailableError,
    one_line,
    public_url,
    without_credentials,
)
from mnist_pipe.local import configuration, http_probe, services
from mnist_pipe.local.services import PROGRAMS, Service, State, optuna_dashboard, prometheus

PUBLISHED = "mnist_pipe_dashboards"
"""Prefect variable with the URLs of the other dashboards: {"ray": "http://..:8265", "mlflow": "http://..:5000"}."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A dashboard's addresses and credentials."""

    url: str
    """URL to open in a browser, without credentials."""
    login: str
    """Where the password or token is stored; never the secret itself."""
    probe: str
    """URL that only the holder of the credentials may read; `check` requests it."""
    authorization: str = field(repr=False)
    """Value of the HTTP Authorization header; empty if there are no credentials."""
    redirects: bool = False
    """Whether `url` sends a browser on to another path, so that `check` requests only `probe`."""


def check(root: Path) -> dict[str, Page | PipelineError]:
    """Request every dashboard with its credentials and return, by name, its page or the error.

    The names are prefect, ray, tensorboard, mlflow; optuna if the extra `dashboards` is installed; and prometheus if
    RAY_PROMETHEUS_HOST is set, or if it is installed and a local Ray runs. TensorBoard, optuna-dashboard and local
    servers of MLflow and Prometheus are started if they do not run yet.
    """
    root = root.resolve()
    found: dict[str, Page | PipelineError] = {}
    for name, find in _PAGES.items():
        try:
            page = find(root)
            if page is None:
                continue
            for url in (page.probe,) if page.redirects else (page.url, page.probe):
                _get(url, page)
            found[name] = page
        except PipelineError as error:
            found[name] = error
    return found


def _prefect(root: Path) -> Page:
    api = configuration.prefect_setting(root, configuration.PREFECT_URL, "api", "url")
    return _server(api.value) if api else _joined("prefect", root)


def _server(api: str) -> Page:
    """Return the page of the user's own Prefect server, whose API is at `api`."""
    url, _ = _address(api, where="PREFECT_API_URL")
    credentials = os.environ.get("PREFECT_API_AUTH_STRING", "").strip()
    return Page(
        url=os.environ.get("PREFECT_UI_URL") or url.removesuffix("/api"),
        login="password: PREFECT_API_AUTH_STRING" if credentials else "no password: PREFECT_API_AUTH_STRING is not set",
        probe=f"{url}/admin/version",
        authorization=http_probe.basic(credentials) if credentials else "",
    )


def _ray(root: Path) -> Page:
    variable = "RAY_API_SERVER_ADDRESS"
    address = os.environ.get(variable) or _published("ray", variable=variable)
    if not address:
        if os.environ.get("RAY_ADDRESS", "local") != "local":
            fix = "set it to the address of the dashboard of the cluster that RAY_ADDRESS names"
            raise UnavailableError.missing(variable, state="is not set", fix=fix)
        return _joined("ray", root)
    url, _ = _address(address, where=variable)
    token, login = _ray_token()
    probe = f"{url}/{PROGRAMS['ray'].probe}"
    return Page(url=url, login=login, probe=probe, authorization=http_probe.bearer(token) if token else "")


def _ray_token() -> tuple[str, str]:
    """Return the token that Ray itself would use (empty if there is none) and a text that says where it is stored."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "token: RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip(), f"token: the line in {path}"
    except OSError:
        return "", "no token: neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set to one"


def _tensorboard(root: Path) -> Page:
    [service] = services.up(root, names=("tensorboard",))
    return _local(service)


def _optuna(root: Path) -> Page | None:
    if not optuna_dashboard.is_installed():
        return None
    optuna_dashboard.fetch(root)
    [service] = services.up(root, names=("optuna",))
    return replace(_local(service), redirects=True)


def _mlflow(root: Path) -> Page:
    variable = "MLFLOW_TRACKING_URI"
    address = os.environ.get(variable) or _published("mlflow", variable=variable)
    if not address.startswith(("http://", "https://")):
        if services.status(root).get("mlflow", (State.STOPPED, None))[0] is not State.RUNNING:
            from mnist_pipe.registry import store

            store.prepare(root)
        [service] = services.up(root, names=("mlflow",))
        return _local(service)
    url, credentials = _address(address, where=variable)
    place = variable
    if not credentials:
        from mnist_pipe.registry import store

        credentials, place = store.credentials()
    return Page(
        url=url,
        login=f"user and password: {place}" if credentials else "no password: MLFLOW_TRACKING_USERNAME is not set",
        probe=f"{url}/{PROGRAMS['mlflow'].probe}",
        authorization=http_probe.basic(credentials) if credentials else "",
    )


def _prometheus(root: Path) -> Page | None:
    if address := os.environ.get(prometheus.HOST):
        url, credentials = _address(address, where=prometheus.HOST)
        return Page(
            url=url,
            login=f"user and password: {prometheus.HOST}" if credentials else "no password",
            probe=f"{url}/{PROGRAMS['prometheus'].probe}",
            authorization=http_probe.basic(credentials) if credentials else "",
            redirects=True,
        )
    if prometheus.program() is None or services.status(root)["ray"][0] is not State.RUNNING:
        return None
    [service] = services.up(root, names=("prometheus",))
    return replace(_local(service), redirects=True)


_PAGES: dict[str, Callable[[Path], Page | None]] = {
    "prefect": _prefect,
    "ray": _ray,
    "tensorboard": _tensorboard,
    "optuna": _optuna,
    "mlflow": _mlflow,
    "prometheus": _prometheus,
}


def _joined(name: str, root: Path) -> Page:
    """Return the page of a service that `mnist-pipe up` started.

    Raises:
        UnavailableError: the service does not run or does not answer.
    """
    state, service = services.status(root)[name]
    if service is None or state is not State.RUNNING:
        raise UnavailableError(services.describe(name, state, service))
    return _local(service)


def _local(service: Service) -> Page:
    program = PROGRAMS[service.name]
    return Page(
        url=service.url,
        login=program.login(service),
        probe=f"{service.url}/{program.probe}",
        authorization=program.authorization(service),
    )


def _published(name: str, *, variable: str) -> str:
    """Return the dashboard's URL from the Prefect variable `PUBLISHED`, or an empty string if there is no cluster.

    Raises:
        UnavailableError: the Prefect variable is malformed, or a work pool is set and the variable does not exist.
    """
    if not (api := os.environ.get("PREFECT_API_URL")):
        return ""
    server = _server(api)
    where = f"{server.probe.removesuffix('/admin/version')}/variables/name/{PUBLISHED}"
    if reply := _get(where, server, missing=b""):
        try:
            value = json.loads(reply)["value"]
        except (ValueError, LookupError, TypeError):
            value = one_line(reply.decode(errors="replace"))
        if isinstance(value, dict) and isinstance(value.get(name), str):
            return str(value[name])
        rule, fix = f"hold the address of {name}", "run: mnist-pipe deploy"
        raise UnavailableError.invalid("Prefect", f"the variable {PUBLISHED}", rule, got=value, fix=fix)
    if os.environ.get(WORK_POOL):
        state = f"is set neither here nor in the Prefect variable {PUBLISHED}"
        raise UnavailableError.missing(variable, state=state, fix="set it, or run: mnist-pipe deploy")
    return ""


def _address(address: str, *, where: str) -> tuple[str, str]:
    """Split a server's address into a URL without credentials and the `user:password` that it contained.

    Raises:
        InputError: the address is not an HTTP URL with a host.
    """
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        rule = "be http://HOST:PORT"
        raise InputError.invalid(where, "the address", rule, got=repr(without_credentials(address)))
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return public_url(address).rstrip("/"), credentials


def _get(url: str, page: Page, *, missing: bytes | None = None) -> bytes:
    """Return the body of the reply to the page's credentials, or `missing` (if given) when the status is 404.

    Raises:
        UnavailableError: the server does not answer, refuses the credentials or replies with another error.
    """
    reply = http_probe.get(url, authorization=page.authorization)
    if reply.is_success:
        return reply.body
    if reply.status == 404 and missing is not None:
        return missing
    if reply.status in (401, 403):
        state = f"were refused: {reply.reason}"
        raise UnavailableError.missing("the credentials", state=state, where=page.url, fix=page.login)
    rule, fix = "return status 2xx", "check the address and whether the server is running"
    raise UnavailableError.invalid(page.url, "the page", rule, got=reply.reason, fix=fix)
