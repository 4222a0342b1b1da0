"""Prometheus, which scrapes the local Ray; it has no password and listens on loopback only.

Ray writes what Prometheus and Grafana read into the folder `paths.RAY_METRICS`, at each start of its dashboard.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.errors import UnavailableError
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, flags, read
from mnist_pipe.waiting import LIMIT_SECONDS

PORT = 9090
"""First port to try."""
HOST = "RAY_PROMETHEUS_HOST"
"""The environment variable from which Ray's dashboard reads Prometheus' address."""
INSTALL = "apt-get install --no-install-recommends prometheus"
"""The command that installs it on Debian."""

_DASHBOARD = Path("deploy/grafana/mnist-pipe.json")
_SCRAPES = paths.RAY_METRICS / "prometheus/prometheus.yml"
_SOURCE = paths.RAY_METRICS / "grafana/provisioning/datasources/default.yml"


def program() -> str | None:
    """Return the path of Prometheus' program, or None if it is not installed."""
    return shutil.which("prometheus")


def ray_variables(root: Path) -> dict[str, str]:
    """Return the variables that the local Ray head needs besides, and put our Grafana dashboard beside Ray's.

    From the last one, Ray's dashboard knows on which port Prometheus will listen, unless the user has named another.
    """
    folder = root / paths.RAY_METRICS / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    if (root / _DASHBOARD).is_file():
        shutil.copyfile(root / _DASHBOARD, folder / _DASHBOARD.name)
    return {
        "RAY_METRICS_OUTPUT_ROOT": str(root / paths.RAY_METRICS),
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(folder),
        HOST: os.environ.get(HOST) or f"http://{LOOPBACK}:{free_port(PORT)}",
    }


def _plan(root: Path) -> Launch:
    executable = program()
    if executable is None:
        raise UnavailableError.missing("prometheus", state="is not installed", fix=f"install it: {INSTALL}")
    scraped = _scraped(root)
    _await_ray(root / _SCRAPES, scraped)
    port = free_port(_known_port(root))
    options = {
        "--config.file": root / _SCRAPES,
        "--storage.tsdb.path": root / paths.RAY_METRICS / "data",
        "--storage.tsdb.retention.size": "512MB",
        "--web.listen-address": f"{LOOPBACK}:{port}",
        "--log.level": "warn",
    }
    return Launch(command=[executable, *flags(options)], port=port, address=scraped)


def _await_ray(file: Path, folder: str) -> None:
    """Wait until Ray has written the file for its session in `folder`, which it does soon after it answers.

    Raises:
        UnavailableError: it does not within `LIMIT_SECONDS`.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (file.is_file() and folder in file.read_text()):
        if time.monotonic() > deadline:
            state = f"was not written by Ray within {LIMIT_SECONDS:.0f} seconds"
            raise UnavailableError.missing(file, state=state, fix="see .state/logs/ray.log")
        time.sleep(0.1)


def _known_port(root: Path) -> int:
    """Return the port on which Ray's dashboard expects Prometheus, from the data source that it wrote for Grafana."""
    try:
        found = re.search(rf"^ *url: http://{re.escape(LOOPBACK)}:(\d+)$", (root / _SOURCE).read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else PORT


def _scraped(root: Path) -> str:
    """Return the folder of the Ray that is scraped: the next one has another session, which only a new start reads."""
    ray = read(root).get("ray")
    return ray.folder if ray else ""


PROGRAM = Program(
    plan=_plan,
    probe="api/v1/status/config",
    accepts=lambda service, reply: service.address in reply["data"]["yaml"],
    shows=_scraped,
    has_secret=False,
)
