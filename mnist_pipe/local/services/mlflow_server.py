"""The MLflow server, started only for an existing registry.

MLflow would create a missing database in place, and a kill during that would leave an incomplete one.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.errors import public_url
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, flags, new_folder, secret

PORT = 5000
"""First port to try."""
USER = "mnist"


def _plan(root: Path) -> Launch:
    port, folder = free_port(PORT), new_folder()
    _, password = secret(root, "mlflow")
    # The database of users is created at each start, so that its password is always the one in the secret's file.
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/users.db\n"
        "auth_cache_ttl_seconds = 600\n"  # otherwise each request of a page hashes the password, for 0.5 s
    )
    options = {
        "--app-name": "basic-auth",
        "--host": LOOPBACK,
        "--port": port,
        "--workers": 1,
        "--default-artifact-root": root / paths.MLFLOW_ARTIFACTS,
        "--allowed-hosts": f"{LOOPBACK}:{port}",
        "--cors-allowed-origins": f"http://{LOOPBACK}:{port}",
    }
    return Launch(
        command=["mlflow", "server", "--no-serve-artifacts", *flags(options)],
        port=port,
        address=_shown(root),
        variables={
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # would start a scheduler and workers for unused features
            # A variable, because the address may contain a password and `ps` shows every argument.
            "MLFLOW_BACKEND_STORE_URI": _store(root),
        },
        unset=("MLFLOW_TRACKING_URI",),
        folder=str(folder),
    )


def _store(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or paths.sqlite_uri(root / paths.MLFLOW_DB)


def _shown(root: Path) -> str:
    return public_url(_store(root))


PROGRAM = Program(
    plan=_plan,
    probe="api/2.0/mlflow/experiments/search?max_results=1",
    shows=_shown,
    credential=f"user {USER}, password",
    header=lambda password: http_probe.basic(f"{USER}:{password}"),
)
