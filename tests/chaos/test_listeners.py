"""Probe each listener without a secret, with a wrong one, and with one that has been replaced since."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from mnist_pipe.local import http_probe, services
from mnist_pipe.local.services import SECRETS, mlflow_server
from tests.support import ROOT
from tests.support.services import clean_variables, family, recorded, request, run
from tests.support.serving import new_project, promote, serving

__all__ = ["clean_variables"]  # fixture

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

HEADERS: dict[str, Callable[[str], str]] = {
    "prefect": http_probe.basic,
    "ray": http_probe.bearer,
    "mlflow": lambda password: http_probe.basic(f"{mlflow_server.USER}:{password}"),
    "serve": http_probe.bearer,
}
PAGES = {
    "prefect": ("/api/admin/version", "/api/admin/settings", "/api/csrf-token?client=x"),
    "ray": ("/api/jobs/", "/nodes?view=summary", "/api/cluster_status", "/api/serve/applications/"),
    "mlflow": (
        "/",
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/ajax-api/2.0/mlflow/users/get?username=mnist",
    ),
    "serve": ("/model",),
}
REFUSED = (401, 403)
JOIN = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); print(len(ray.nodes()))"


def secrets(root: Path) -> dict[str, str]:
    return {name: (root / SECRETS / name).read_text().strip() for name in HEADERS}


def joins(root: Path, token: str | None) -> bool:
    """Return whether Ray lets a client with this token join."""
    variables = {
        **os.environ,
        **services.ray_environment(root),
        "RAY_AUTH_MODE": "disabled" if token is None else "token",
    }
    del variables["RAY_AUTH_TOKEN_PATH"]
    variables |= {} if token is None else {"RAY_AUTH_TOKEN": token}
    address = variables["RAY_ADDRESS"]
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-c", JOIN, address], env=variables, cwd=ROOT, capture_output=True, timeout=60, check=False
        )
        return done.returncode == 0
    return False


def calls(port: int, *, token: str | None) -> grpc.StatusCode:
    """Return how a replica of Ray Serve answers an empty request with this token."""
    with grpc.insecure_channel(f"{http_probe.LOOPBACK}:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        try:
            call(b"", timeout=20, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
    return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    root = new_project(tmp_path_factory.mktemp("listeners") / "project", empty_database)
    promote(root, 1, errors=10)
    yield root
    run(root, "down")


def test_each_listener_refuses_no_secret_a_wrong_one_and_an_expired_one(
    root: Path, record_property: Callable[[str, object], None]
) -> None:
    run(root, "up")
    run(root, "dashboards")
    with serving(root):
        before = secrets(root)
    run(root, "down")
    for name in before:
        (root / SECRETS / name).unlink()
    run(root, "up")
    run(root, "dashboards")
    with serving(root) as endpoint:
        now, found, probes = secrets(root), recorded(root), 0
        assert not before.items() & now.items()
        urls = {name: endpoint.url if name == "serve" else found[name].url for name in HEADERS}
        for name, header in HEADERS.items():
            wrong = "0" * len(now[name])
            for page in PAGES[name]:
                url = urls[name] + page
                assert request(url)[0] in REFUSED, (name, page)
                for secret in (wrong, before[name], now[name][:-1]):
                    assert request(url, authorization=header(secret))[0] in REFUSED, (name, page)
                assert request(url, authorization=header(now[name]))[0] == 200, (name, page)
                probes += 4
        assert joins(root, now["ray"])
        for token in (None, "0" * 64, before["ray"]):
            assert not joins(root, token), token
            probes += 1
        listeners = [
            ("".join(process.cmdline()), connection.laddr)
            for process in family(*(service.pid for service in found.values()))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        # The address of Ray's server for calls between deployments is fixed (docs/serving.md), but it wants a token.
        everywhere = [one for one in listeners if one[1].ip.removeprefix("::ffff:") != http_probe.LOOPBACK]
        [(name, address)] = everywhere
        assert name.startswith("ray::ServeReplica"), name
        for token in (None, "0" * 64, before["ray"]):
            assert calls(address.port, token=token) == grpc.StatusCode.UNAUTHENTICATED
            probes += 1
        assert calls(address.port, token=now["ray"]) != grpc.StatusCode.UNAUTHENTICATED
    record_property("counted", f"{probes} probes refused; {len(listeners)} listeners, all but 1 on loopback")
