"""Every page that shows what happens: where it is, how to log in, and whether it answers to the credentials at hand.

On one machine the pages are those of the local services. On a cluster their addresses come from the variables that
Prefect, Ray and MLflow read themselves and, where one is not set, from the Prefect variable that `mnist-pipe deploy`
writes. TensorBoard always runs here and reads the storage.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.errors import (
    EnvironmentFault,
    InputError,
    PipelineError,
    describe,
    one_line,
    public_url,
    without_credentials,
)
from mnist_pipe.local import services
from mnist_pipe.local.services import LOOPBACK, PROBE_SECONDS, Service, State

PUBLISHED = "mnist_pipe_dashboards"
"""The Prefect variable that names the cluster's other pages: {"ray": "http://..:8265", "mlflow": "http://..:5000"}."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One dashboard, and what opens it."""

    url: str
    """What a browser opens, without credentials."""
    login: str
    """Where the password or token is; never what it is."""
    probe: str
    """The address that is asked with the credentials."""
    authorization: str = field(repr=False)
    """The HTTP header that holds them; empty where there are none."""


def check(root: Path) -> dict[str, Page | PipelineError]:
    """Prefect, Ray, TensorBoard and MLflow: each as it answered to its credentials, or why it did not.

    TensorBoard and a local MLflow server are started where they do not run.
    """
    root = root.resolve()
    found: dict[str, Page | PipelineError] = {}
    for name, find in _PAGES.items():
        try:
            page = find(root)
            for url in (page.url, page.probe):
                _get(url, page)
            found[name] = page
        except PipelineError as fault:
            found[name] = fault
    return found


def _prefect(root: Path) -> Page:
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return _joined("prefect", root, probe="api/admin/version")
    return _server(api)


def _server(api: str) -> Page:
    """The user's own Prefect server."""
    url, _ = _address(api, where="PREFECT_API_URL")
    credentials = os.environ.get("PREFECT_API_AUTH_STRING", "").strip()
    return Page(
        url=os.environ.get("PREFECT_UI_URL") or url.removesuffix("/api"),
        login="password: PREFECT_API_AUTH_STRING" if credentials else "no password: PREFECT_API_AUTH_STRING is not set",
        probe=f"{url}/admin/version",
        authorization=services.basic(credentials) if credentials else "",
    )


def _ray(root: Path) -> Page:
    path, variable = "nodes?view=summary", "RAY_API_SERVER_ADDRESS"
    given = os.environ.get(variable) or _published("ray", variable=variable)
    if not given:
        if os.environ.get("RAY_ADDRESS", "local") != "local":
            fix = "set it to the address of the dashboard of the cluster that RAY_ADDRESS names"
            raise EnvironmentFault(describe(variable, "", "be set", got="nothing", fix=fix))
        return _joined("ray", root, probe=path)
    url, _ = _address(given, where=variable)
    token, login = _ray_token()
    return Page(url=url, login=login, probe=f"{url}/{path}", authorization=services.bearer(token) if token else "")


def _ray_token() -> tuple[str, str]:
    """The token, or an empty string, from where Ray takes it, and where that is."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "token: RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip(), f"token: the line in {path}"
    except OSError:
        return "", "no token: neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set to one"


def _tensorboard(root: Path) -> Page:
    [service] = services.up(root, names=("tensorboard",))
    return _local(service, probe="data/runs")


def _mlflow(root: Path) -> Page:
    path, variable = "api/2.0/mlflow/experiments/search?max_results=1", "MLFLOW_TRACKING_URI"
    given = os.environ.get(variable) or _published("mlflow", variable=variable)
    if not given.startswith(("http://", "https://")):
        if services.status(root).get("mlflow", (State.STOPPED, None))[0] is not State.RUNNING:
            from mnist_pipe.registry import store

            store.prepare(root)
        [service] = services.up(root, names=("mlflow",))
        return _local(service, probe=path)
    url, credentials = _address(given, where=variable)
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    login = f"user and password: {variable if credentials else ', '.join(names)}"
    if not credentials and os.environ.get(names[0]):
        credentials = ":".join(os.environ.get(name, "") for name in names)
    return Page(
        url=url,
        login=login if credentials else f"no password: {names[0]} is not set",
        probe=f"{url}/{path}",
        authorization=services.basic(credentials) if credentials else "",
    )


_PAGES: dict[str, Callable[[Path], Page]] = {
    "prefect": _prefect,
    "ray": _ray,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}


def _joined(name: str, root: Path, *, probe: str) -> Page:
    """The page of what `mnist-pipe up` started."""
    state, service = services.status(root)[name]
    if service is None or state is not State.RUNNING:
        raise EnvironmentFault(services.how(name, state, service))
    return _local(service, probe=probe)


def _local(service: Service, *, probe: str) -> Page:
    return Page(
        url=service.url,
        login=services.login(service),
        probe=f"{service.url}/{probe}",
        authorization=services.authorization(service),
    )


def _published(name: str, *, variable: str) -> str:
    """The address of the cluster's page as its Prefect server knows it; empty where there is no cluster."""
    if not (api := os.environ.get("PREFECT_API_URL")):
        return ""
    server = _server(api)
    where = f"{server.probe.removesuffix('/admin/version')}/variables/name/{PUBLISHED}"
    if reply := _get(where, server, missing=b""):
        try:
            value = json.loads(reply)["value"]
        except (ValueError, LookupError, TypeError):
            value = one_line(reply.decode(errors="replace"))[:200]
        if isinstance(value, dict) and isinstance(value.get(name), str):
            return str(value[name])
        rule, fix = f"hold the address of {name}", "run: mnist-pipe deploy"
        raise EnvironmentFault(describe("Prefect", f"the variable {PUBLISHED}", rule, got=value, fix=fix))
    if os.environ.get(WORK_POOL):
        got, fix = f"nothing, here and in the Prefect variable {PUBLISHED}", "set it, or run: mnist-pipe deploy"
        raise EnvironmentFault(describe(variable, "", "be set", got=got, fix=fix))
    return ""


def _address(given: str, *, where: str) -> tuple[str, str]:
    """A server's address as it may be shown, and the `user:password` that stood in it."""
    try:
        parts = urlsplit(given)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        rule = "be http://HOST:PORT"
        raise InputError(describe(where, "the address", rule, got=repr(without_credentials(given))))
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return public_url(given).rstrip("/"), credentials


def _get(url: str, page: Page, *, missing: bytes | None = None) -> bytes:
    """The reply to the page's credentials; `missing`, where that is given, when there is none under that address."""

    def ask() -> bytes | str:
        try:
            with _opener(url).open(request, timeout=PROBE_SECONDS) as reply:
                return bytes(reply.read())
        except HTTPError as fault:
            return missing if fault.code == 404 and missing is not None else f"{fault.code} {fault.reason}"
        except (OSError, HTTPException) as fault:
            cause = fault.reason if isinstance(fault, URLError) else fault
            if isinstance(cause, TimeoutError):
                return ""
            return one_line(getattr(cause, "strerror", None) or cause).lower() or type(cause).__name__
        except ValueError:  # whose text would show the header
            return "an address or credentials that HTTP does not allow"

    request = urllib.request.Request(url, headers={"Authorization": page.authorization} if page.authorization else {})
    reply = services.soon(ask)
    if isinstance(reply, bytes):
        return reply
    if reply and reply[:3] in ("401", "403"):
        raise EnvironmentFault(describe(page.url, "the page", "accept the credentials", got=reply, fix=page.login))
    got = reply or f"no reply within {PROBE_SECONDS:.0f} seconds"
    fix = "check the address, and whether the server runs"
    raise EnvironmentFault(describe(page.url, "the page", "answer", got=got, fix=fix))


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Asks no proxy for loopback, and follows no redirect: another server must not get the credentials."""

    class Staying(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    handlers: list[urllib.request.BaseHandler] = [Staying()]
    if urlsplit(url).hostname == LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)
