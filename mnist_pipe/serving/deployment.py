"""Start, watch and stop the endpoint on the Ray that this process has joined."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation

from mnist_pipe import paths, preflight
from mnist_pipe.errors import BusyError, UnavailableError, one_line
from mnist_pipe.inference import registered
from mnist_pipe.local import http_probe
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.registry import versions
from mnist_pipe.serving import access, replica

APPLICATION = "mnist-pipe"
"""Name of the application on Ray Serve."""
START_SECONDS = 120.0
"""Time that the endpoint has to answer after its start, in seconds; it takes 10 s on an idle machine."""

_PATIENCE_SECONDS = 60.0  # how long the endpoint may be silent before the command reports it; a new replica takes 10 s


def resolve(model: str | None, *, root: Path) -> str:
    """Return the version or the alias that `model` stands for, after checking that its files are undamaged.

    None stands for the alias of the champion that `registered.find` returns, so that a later registration of another
    data set does not change what this endpoint serves.

    Raises:
        InputError: there is no such version, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    spec = model or f"{registered.find(None, root=root).name}@{versions.CHAMPION}"
    registered.load(spec, root=root)
    return spec


def registry_environment() -> dict[str, str]:
    """Return the variables with which a replica on another machine reaches the registry."""
    return {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "AWS_"))}


def build(args: dict[str, str]) -> serve.Application:
    """Return the endpoint for a configuration of Ray Serve (a RayService of KubeRay), whose `import_path` names this.

    The section `serve` is that of the checkout's params.yaml, and the token that of `access.VARIABLE`.

    Args:
        args: `model`, `NAME@ALIAS` or `NAME/VERSION`; without it, the champion.

    Raises:
        InputError: there is no such model.
        UnavailableError: no token is set, there is no champion yet, or the registry does not answer.
    """
    root = paths.find_root(Path(__file__).parent)
    token = os.environ.get(access.VARIABLE, "")
    if not token:
        fix = "set it to a secret, which requests then carry"
        raise UnavailableError.missing(access.VARIABLE, state="is not set", fix=fix)
    return replica.application(
        spec=resolve(args.get("model"), root=root),
        root=root,
        params=preflight.load_params(root / paths.PARAMS).serve,
        token_sha256=access.digest(token),
        environment=registry_environment(),
    )


def start(spec: str, *, root: Path, params: ServeParams, token: str) -> str:
    """Start or update the endpoint and return its URL, once it answers.

    Raises:
        UnavailableError: the port is taken, or the endpoint does not answer within `START_SECONDS`.
    """
    url = f"http://{params.host}:{params.port}"
    if not serve.status().proxies:
        check_port(params.host, params.port)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options={
                "host": params.host,
                "port": params.port,
                "request_timeout_s": params.timeout_seconds,
            },
            logging_config={"enable_access_log": False},
        )
    application = replica.application(
        spec=spec,
        root=root,
        params=params,
        token_sha256=access.digest(token) if token else "",
        environment=registry_environment(),
    )
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config={"enable_access_log": False})
    except RuntimeError as error:
        raise UnavailableError.unreachable(url, cause=one_line(error)) from error
    deadline = time.monotonic() + START_SECONDS
    while not (reply := http_probe.get(f"{url}/healthz")).is_success:
        if time.monotonic() > deadline:
            raise UnavailableError.unreachable(
                url, cause=reply.reason, fix="the Serve of this Ray may use another port"
            )
        time.sleep(0.1)
    return url


def stop() -> bool:
    """Let the endpoint finish its requests, stop it, and return whether it ran; stop Serve too if nothing else runs."""
    running = serve.status().applications
    if APPLICATION in running:
        serve.delete(APPLICATION)
    if not set(running) - {APPLICATION}:
        serve.shutdown()
    return APPLICATION in running


@contextmanager
def started(spec: str, *, root: Path, params: ServeParams, token: str) -> Iterator[str]:
    """Start the endpoint for the duration of the block; yield its URL.

    Raises:
        BusyError: it runs already.
        UnavailableError: the port is taken, or the endpoint does not answer within `START_SECONDS`.
    """
    if APPLICATION in serve.status().applications:
        fix = "stop it with: mnist-pipe serve --stop"
        raise BusyError.missing("the endpoint", state="runs already", where="this Ray", fix=fix)
    try:
        yield start(spec, root=root, params=params, token=token)
    finally:
        stop()


def watch(report: Callable[[str], None], *, url: str, token: str, seconds: float) -> None:
    """Report each change of the model that serves, without end.

    Args:
        report: takes one line for each change.
        url: the URL of the endpoint.
        token: its token; empty if it needs none.
        seconds: the interval, in seconds.

    Raises:
        UnavailableError: the endpoint has not answered for a minute; its Ray may have stopped.
    """
    last: Mapping[str, Any] = {}
    answered = time.monotonic()
    while True:
        # Over HTTP: a handle of Ray Serve needs an event loop of its own in this process.
        now = http_probe.get_json(f"{url}/model", authorization=http_probe.bearer(token))
        if now is None:
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise UnavailableError.unreachable(url, cause=f"no reply for {_PATIENCE_SECONDS:.0f} seconds")
        else:
            answered = time.monotonic()
            if last and now["version"] != last["version"]:
                report(f"{now['name']}/{now['version']} serves now")
            if now["problem"] and now["problem"] != last.get("problem"):
                report(now["problem"])
            last = now
        time.sleep(seconds)


def metrics_urls() -> list[str]:
    """Return the URLs at which the nodes of this Ray expose their metrics and the endpoint's."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


def check_port(host: str, port: int) -> None:
    """Check that a server could listen on this address.

    Raises:
        UnavailableError: another program listens there, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            got = (error.strerror or str(error)).lower()
            raise UnavailableError.invalid(
                f"{host}:{port}", "the port", "be free", got=got, fix="name another with --port"
            ) from error
