"""The Ray head and its dashboard, both protected by a token."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mnist_pipe import hardware
from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import prometheus
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, Service, flags, new_folder, secret

PORT, DASHBOARD_PORT, CLIENT_PORT = 6379, 8265, 10001
_METRIC_PORTS = {"AUTOSCALER_METRIC_PORT": 44217, "DASHBOARD_METRIC_PORT": 44317}
"""First ports to try."""
OBJECT_STORE_BYTES = 10**9
"""Size of Ray's object store, in bytes, into which all splits of MNIST fit four times.

Ray's default (30 % of RAM) is too much for a laptop.
"""

MAX_FOLDER_BYTES = 43
"""Maximum length of Ray's folder: its sockets' paths are 64 longer, and Linux allows 107 bytes."""
_PLAIN = re.compile(rf"[A-Za-z0-9/._-]{{1,{MAX_FOLDER_BYTES}}}")


def access(root: Path) -> dict[str, str]:
    """Return the environment variables that the project's own Ray head and its clients share.

    The head is started by `mnist-pipe up`, or by a stage for itself.
    """
    path, _ = secret(root, "ray")
    return {
        **_short_folder("RAY_TMPDIR"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(path),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the only setting that makes Ray listen on loopback only
        "AUTOSCALER_METRIC_PORT": "0",  # the defaults are fixed ports, which a second Ray could not bind
        "DASHBOARD_METRIC_PORT": "0",
        # With these three, a request to `mnist-pipe serve` took 6.5 ms of a CPU, with the first alone 7.1 ms (one
        # run of 8 s each). What blocks is computed in threads, so that Serve's event loop may be ours too.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    }


def _short_folder(variable: str) -> dict[str, str]:
    """Return `variable` for sockets in /tmp if TMPDIR is too long for them, as SLURM's of 80 bytes, or not plain."""
    return {} if _PLAIN.fullmatch(os.environ.get("TMPDIR") or "/tmp") else {variable: "/tmp"}


def _plan(root: Path) -> Launch:
    hardware.check_gpus()
    port, dashboard_port = free_port(PORT), free_port(DASHBOARD_PORT)
    # A folder within the project may be too long. A new one cannot collide with that of another checkout or user.
    folder = new_folder()
    options = {
        "--node-ip-address": LOOPBACK,
        "--port": port,
        "--dashboard-host": LOOPBACK,
        "--dashboard-port": dashboard_port,
        "--ray-client-server-port": free_port(CLIENT_PORT),
        "--dashboard-agent-listen-port": 0,  # 0: any free port; the fixed default allows one Ray per machine
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--include-dashboard": "true",
        "--num-cpus": hardware.num_cpus(),
        "--num-gpus": hardware.num_gpus(),
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--temp-dir": folder,
        "--log-color": "false",
    }
    return Launch(
        # --block: the main process keeps running, stops the others on SIGTERM, and stops all of them if one dies.
        command=["ray", "start", "--head", "--block", "--disable-usage-stats", *flags(options)],
        port=port,
        dashboard_port=dashboard_port,
        address=f"{LOOPBACK}:{port}",
        variables={
            **access(root),
            **_short_folder("TMPDIR"),  # Python's own sockets are in TMPDIR
            # Ray lists these two for Prometheus, which cannot scrape the port 0.
            **{variable: str(free_port(first)) for variable, first in _METRIC_PORTS.items()},
            **prometheus.ray_variables(root),
        },
        unset=("RAY_ADDRESS", "RAY_AUTH_TOKEN"),
        folder=str(folder),
    )


def _has_a_node(_: Service, reply: Any) -> bool:
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in reply["data"]["summary"])


PROGRAM = Program(
    plan=_plan, probe="nodes?view=summary", accepts=_has_a_node, credential="token", header=http_probe.bearer
)
