"""The Prefect server: it asks for a password, and its pages for a token against forged requests."""

from __future__ import annotations

from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, secret

PORT = 4200
"""The first that is tried."""


def settings(root: Path) -> dict[str, str]:
    """For every process that uses Prefect."""
    return {
        "PREFECT_HOME": str(root / paths.PREFECT_HOME),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    }


def access(root: Path, *, origin: str = f"http://{LOOPBACK}") -> dict[str, str]:
    """For our server, started by `up` or by a stage for itself, and for its clients."""
    _, password = secret(root, "prefect")
    return {
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origin,  # the default lets any web page call the server
    }


def _plan(root: Path) -> Launch:
    port = free_port(PORT)
    url = f"http://{LOOPBACK}:{port}"
    return Launch(
        command=["prefect", "server", "start"],
        port=port,
        address=f"{url}/api",
        # Host and port go by variables: the pages that the server hands out take the API's address from them.
        variables={
            **settings(root),
            **access(root, origin=url),
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),
        },
        unset=("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"),
    )


PROGRAM = Program(plan=_plan, probe="api/admin/version")
