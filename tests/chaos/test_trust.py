"""Watch a whole rebuild, a prediction, a scoring and an endpoint: what is unpickled, written and connected to."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_pipe.local.services import SECRETS
from mnist_pipe.local.services.process import free_port
from tests.support import audit
from tests.support.checkout import environment
from tests.support.rebuild import checkout

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

TRANSPORT = re.compile(r"/(ray|cloudpickle|multiprocessing|dvc|dvc_data|diskcache|joblib|concurrent)/")
"""Libraries that hand objects between their own processes, or to themselves, by pickle."""
LOOPBACK = re.compile(r"^\('(127\.0\.0\.1|::1|localhost|0\.0\.0\.0)'|^b?'?/|^/|^$")
CLOUD = "('169.254.169.254', 80)"
"""Where Ray's dashboard asks which cloud the machine is of, also without telemetry: an address of the machine alone."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[audit.Event]]:
    """Checkout after a rebuild, a prediction, a scoring and an answer of the endpoint, with the events of all."""
    base = tmp_path_factory.mktemp("trust")
    hook, log = audit.install(base / "hook")
    folder = checkout(base / "main", services=False)
    variables = {**environment(), "PYTHONPATH": f".:{hook}"}

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    Image.fromarray(np.pad(np.full((20, 4), 255, np.uint8), 20)).save(base / "one.png")
    run("dvc", "repro")
    run("mnist-pipe", "predict", str(base / "one.png"))
    run("mnist-pipe", "score", "data/normalized/test.parquet", str(base / "scores"))
    port = free_port(8700)
    server = subprocess.Popen(["mnist-pipe", "serve", "--port", str(port)], cwd=folder, env=variables)
    try:
        body = bytes(784)
        deadline = time.monotonic() + 120
        while True:
            try:
                token = (folder / SECRETS / "serve").read_text().strip()
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
                request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, headers)
                urllib.request.urlopen(request, timeout=30).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
    finally:
        server.terminate()
        server.wait(60)
    shutil.rmtree(base / "scores", ignore_errors=True)
    return folder, audit.events(log)


def test_nothing_is_unpickled_but_by_the_transport_of_a_library(
    recorded: tuple[Path, list[audit.Event]], record_property: Callable[[str, object], None]
) -> None:
    _, events = recorded
    unpickled = [event for event in events if event.name == "pickle.find_class"]
    others = [event for event in unpickled if not any(map(TRANSPORT.search, event.files))]
    assert others == []
    record_property("counted", f"{len(unpickled)} unpickled names")


def test_no_file_is_written_outside_the_checkout_and_the_temporary_folders(
    recorded: tuple[Path, list[audit.Event]], record_property: Callable[[str, object], None]
) -> None:
    folder, events = recorded
    written = [event for event in events if event.name == "open"]
    allowed = (str(folder.parent), tempfile.gettempdir(), "/dev/", "/proc/self/", str(Path.home() / ".cache"))
    outside = Counter(event.detail for event in written if not event.detail.startswith(allowed))
    assert not {path: number for path, number in outside.items() if "__pycache__" not in path}
    record_property("counted", f"{len(written)} files opened for writing")


def test_nothing_is_connected_to_beyond_loopback(
    recorded: tuple[Path, list[audit.Event]], record_property: Callable[[str, object], None]
) -> None:
    _, events = recorded  # the data set `digits` needs no mirror
    connected = [event for event in events if event.name == "socket.connect"]
    others = [event for event in connected if not LOOPBACK.match(event.detail)]
    assert [event for event in others if event.detail != CLOUD or "usage_lib.py" not in str(event.files)] == []
    record_property("counted", f"{len(connected)} connections")
