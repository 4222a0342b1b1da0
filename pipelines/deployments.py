"""Apply `prefect.yaml` to a team's Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from ruamel.yaml import YAML

from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.errors import InputError, UnavailableError, one_line, public_url
from mnist_pipe.local.dashboards import PUBLISHED

FILE = "prefect.yaml"


def deploy(root: Path) -> list[str]:
    """Create or update every deployment of `prefect.yaml` and return their names; a second call changes nothing.

    If RAY_API_SERVER_ADDRESS or MLFLOW_TRACKING_URI is set, as on the head, its value is written to the Prefect
    variable `PUBLISHED`, from which clients read it.

    Raises:
        InputError: MNIST_PIPE_WORK_POOL or PREFECT_API_URL is not set.
        UnavailableError: the server refuses the credentials, does not answer, has no such pool or rejects a deployment.
    """
    for variable in ("PREFECT_API_URL", WORK_POOL):
        if not os.environ.get(variable):
            raise InputError.missing(variable, state="is not set", fix="see docs/cluster.md")
    pool, server = os.environ[WORK_POOL], public_url(os.environ["PREFECT_API_URL"])
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(pool)
            _write_dashboards(client)
    except ObjectNotFound as error:
        fix = "start deploy/worker, which creates it"
        raise UnavailableError.missing(f"the work pool {pool}", where=server, fix=fix) from error
    except PrefectHTTPStatusError as error:
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        state = f"were refused: status {error.response.status_code}"
        raise UnavailableError.missing("the credentials", state=state, where=server, fix=fix) from None
    except httpx.HTTPError as error:
        raise UnavailableError.unreachable(server, cause=one_line(error) or type(error).__name__) from error
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        state = f"could not be applied: {one_line(done.stdout + done.stderr)[-300:]}"
        raise UnavailableError.missing(FILE, state=state, where=server)
    entries = YAML(typ="safe").load(root / FILE)["deployments"]
    return [f"{entry['entrypoint'].rpartition('.')[2]}/{pool}" for entry in entries]


def _write_dashboards(client: SyncPrefectClient) -> None:
    named = {"ray": "RAY_API_SERVER_ADDRESS", "mlflow": "MLFLOW_TRACKING_URI"}
    value = {name: public_url(os.environ[variable]) for name, variable in named.items() if os.environ.get(variable)}
    if not value:
        return
    known = client.read_variable_by_name(PUBLISHED)
    if known is None:
        client.create_variable(VariableCreate(name=PUBLISHED, value=value))
    elif known.value != value:
        client.update_variable(VariableUpdate(name=PUBLISHED, value=value))
