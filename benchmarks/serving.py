"""Measure how many images a second `mnist-pipe serve` answers over loopback, and how long an answer takes.

Debian's `wrk` sends the requests, from the machine that serves. Each case runs for `--seconds`, on the registered
champion of the project in `--root`, after a few seconds that are not counted.

    python -m benchmarks.serving --seconds 60
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnist_pipe.errors import UnavailableError
from mnist_pipe.local.services import SECRETS
from mnist_pipe.local.services.process import free_port

WARM_UP_SECONDS = 5
START_SECONDS = 120
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds of each unit that wrk prints."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Kind of request, and the goals for it."""

    images: int
    """Number of images in a request."""
    content_type: str
    connections: int
    """Number of connections, each with one request at a time."""
    images_per_second: float
    """Goal."""
    p99_milliseconds: float | None
    """Goal; None without one."""


CASES = {
    "single arrays": Case(
        images=1, content_type="application/octet-stream", connections=4, images_per_second=200, p99_milliseconds=100
    ),
    "single PNG pictures": Case(
        images=1, content_type="image/png", connections=4, images_per_second=200, p99_milliseconds=100
    ),
    "batches of 100": Case(
        images=100,
        content_type="application/octet-stream",
        connections=4,
        images_per_second=5000,
        p99_milliseconds=None,
    ),
}


def measure(*, root: Path, seconds: int = 60, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure each case, and return by its name the goals, `images_per_second`, latencies and failed requests.

    `load_average` is that of the minute before the first case, and `cpu_count` the number of CPUs.

    Raises:
        UnavailableError: wrk is not installed, or the endpoint did not start.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise UnavailableError.missing("wrk", state="is not installed", fix="run: apt-get install wrk")
    found: dict[str, Any] = {"load_average": round(os.getloadavg()[0], 2), "cpu_count": os.cpu_count(), "cases": {}}
    with _serving(root) as url, tempfile.TemporaryDirectory() as folder:
        token = (root / SECRETS / "serve").read_text()
        for name, case in CASES.items():
            script = _script(Path(folder), case, token=token)
            command = [wrk, "-t1", f"-c{case.connections}", "--latency", "-s", str(script), f"{url}/predict"]
            _run([*command, f"-d{WARM_UP_SECONDS}s"])
            found["cases"][name] = {**vars(case), **_parse(_run([*command, f"-d{seconds}s"]), case)}
            log(f"{name}: {_line(found['cases'][name])}")
    return found


@contextmanager
def _serving(root: Path) -> Iterator[str]:
    """Run `mnist-pipe serve` while the block runs, and yield its URL."""
    port = free_port(8200)
    with tempfile.TemporaryFile("w+") as output:
        program = [sys.executable, "-m", "pipelines.cli", "serve", "--port", str(port)]
        process = subprocess.Popen(program, cwd=root, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                output.seek(0)
                if "\nstop " in (printed := output.read()):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UnavailableError(printed.strip() or "mnist-pipe serve did not start")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _script(folder: Path, case: Case, *, token: str) -> Path:
    """Write the request as a script of wrk."""
    images = np.random.default_rng(0).integers(0, 256, (case.images, 28, 28), dtype=np.uint8)
    body = folder / "body"
    if case.content_type == "image/png":
        digit = Image.fromarray(images[0] // 8 + 224).resize((280, 280))
        digit.paste(0, (120, 60, 150, 220))
        stream = io.BytesIO()
        digit.save(stream, "PNG")
        body.write_bytes(stream.getvalue())
    else:
        body.write_bytes(images.tobytes())
    script = folder / "request.lua"
    script.write_text(
        f'local file = io.open("{body}", "rb")\nwrk.body = file:read("*a")\nfile:close()\nwrk.method = "POST"\n'
        f'wrk.headers["Content-Type"] = "{case.content_type}"\nwrk.headers["Authorization"] = "Bearer {token}"\n'
    )
    script.chmod(0o600)
    return script


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def _parse(text: str, case: Case) -> dict[str, Any]:
    """Return the rate, the latencies in milliseconds and the number of failed requests that wrk printed."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    shares = {
        share: float(value) * UNITS[unit] for share, value, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", text)
    }
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    assert rate, text
    return {
        "measured_images_per_second": round(float(rate[1]) * case.images, 1),
        "latency_milliseconds": {f"p{share}": round(value, 2) for share, value in shares.items()},
        "failed": (int(refused[1]) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0),
    }


def _line(found: dict[str, Any]) -> str:
    latency = found["latency_milliseconds"]
    return (
        f"{found['measured_images_per_second']:,.0f} images/s, median {latency['p50']:.1f} ms, "
        f"p99 {latency['p99']:.1f} ms, {found['failed']} failed"
    )


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="project with a registered champion")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    found = measure(root=options.root, seconds=options.seconds, log=print)
    print(f"{found['cpu_count']} CPUs, load average before: {found['load_average']}")


if __name__ == "__main__":
    main()
