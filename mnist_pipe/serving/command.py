"""The work of `mnist-pipe serve`."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_pipe import command_line
from mnist_pipe.cluster.ray_session import connected
from mnist_pipe.errors import UnavailableError
from mnist_pipe.local.services import SECRETS
from mnist_pipe.local.services.program import secret
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.serving import access, deployment


def run(root: Path, *, params: ServeParams, model: str | None, detach: bool, stop: bool) -> None:
    """Serve until an interrupt, or leave the endpoint to the Ray that runs, or stop it there.

    Args:
        root: the project's root.
        params: the section `serve`, with the options of the command.
        model: `NAME@ALIAS`, `NAME/VERSION`, or None for the champion.
        detach: whether to return as soon as the endpoint answers.
        stop: whether to stop an endpoint instead.

    Raises:
        InputError: there is no such model, or no Ray runs that `detach` or `stop` needs.
        UnavailableError: there is no champion yet, the port is taken, or the endpoint does not answer.
        CorruptDataError: the model's files are damaged.
        BusyError: an endpoint runs already.
    """
    if detach or stop:
        _check_ray("--stop" if stop else "--detach")
    if stop:
        with connected("serve"):
            command_line.show("stopped" if deployment.stop() else "nothing was running")
        return
    spec = deployment.resolve(model, root=root)
    token, login = _token(root) if params.require_token else ("", "no token: whoever reaches the port may use it")
    with connected("serve"):
        if detach:
            url = deployment.start(spec, root=root, params=params, token=token)
            _print(url, spec=spec, login=login, end="mnist-pipe serve --stop, or when its Ray stops")
            return
        with deployment.started(spec, root=root, params=params, token=token) as url:
            _print(url, spec=spec, login=login, end="Ctrl-C or SIGTERM")
            deployment.watch(command_line.show, url=url, token=token, seconds=params.poll_seconds)


def _check_ray(option: str) -> None:
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        raise UnavailableError.missing(
            "no Ray", state="runs that outlives this command", where=option, fix="run: mnist-pipe up"
        )


def _token(root: Path) -> tuple[str, str]:
    """Return the token, and where a user finds it."""
    if token := os.environ.get(access.VARIABLE):
        return token, f"token: that of {access.VARIABLE}"
    _, token = secret(root, "serve")
    return token, f"token: the line in {os.path.relpath(root / SECRETS / 'serve')}"


def _print(url: str, *, spec: str, login: str, end: str) -> None:
    rows = [
        ("endpoint", f"{url}   {login}"),
        ("model", spec),
        ("interface", f"{url}/docs"),
        ("metrics", "  ".join(deployment.metrics_urls())),
        ("stop", end),
    ]
    for name, text in rows:
        command_line.show(f"{name:12} {text}")
