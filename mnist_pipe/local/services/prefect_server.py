"""The Prefect server, protected by a password and by CSRF tokens."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, secret

PORT = 4200
"""First port to try."""


def settings(root: Path) -> dict[str, str]:
    """Return the environment variables of every process that uses Prefect."""
    return {
        "PREFECT_HOME": str(root / paths.PREFECT_HOME),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        # With pauses of 2 and 4 s, 18 s in all; Prefect's defaults, 60 s and five retries, are seven minutes.
        "PREFECT_API_REQUEST_TIMEOUT": "4",
        "PREFECT_CLIENT_MAX_RETRIES": "2",
    }


def access(root: Path, *, origin: str = f"http://{LOOPBACK}") -> dict[str, str]:
    """Return the environment variables that the project's own server and its clients share.

    The server is started by `mnist-pipe up`, or by a stage for itself. Only pages of `origin` may call it.
    """
    _, password = secret(root, "prefect")
    return {
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origin,  # the default lets any web page call the server
        **_database(root),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",  # a profile of the user's need not say so
    }


def _database(root: Path) -> dict[str, str]:
    """Return the variable with the database's address, which Prefect itself does not quote, unless the user has one."""
    if any(os.environ.get(f"PREFECT_{kind}_DATABASE_CONNECTION_URL") for kind in ("SERVER", "API")):
        return {}
    home = Path(os.environ.get("PREFECT_HOME") or root / paths.PREFECT_HOME)
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": paths.sqlite_uri(home / "prefect.db", driver="aiosqlite")}


def _plan(root: Path) -> Launch:
    port = free_port(PORT)
    url = f"http://{LOOPBACK}:{port}"
    return Launch(
        command=["prefect", "server", "start"],
        port=port,
        address=f"{url}/api",
        # Variables instead of arguments, because the UI takes the API's address from them.
        variables={
            **settings(root),
            **access(root, origin=url),
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),
        },
        unset=("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"),
    )


PROGRAM = Program(plan=_plan, probe="api/admin/version")
