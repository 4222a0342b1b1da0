"""Test a whole rebuild in a folder of the hardest name, by a user without a home: it works and opens no door."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageDraw

from mnist_pipe import paths
from pipelines import STAGES
from tests.support import checkout
from tests.support.checkout import HARDEST
from tests.support.ray_runs import is_loopback

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip: a network namespace"),
]

# A network of its own: every listener in it is ours, and one on an address that is not loopback would be reachable.
NETWORK = """
ip link set lo up && ip link add d0 type veth peer d1 && ip address add 10.9.8.7/24 dev d0 &&
ip link set d0 up && ip link set d1 up
"""
COMMANDS = """
dvc repro && echo rebuilt &&
mnist-pipe up && mnist-pipe dashboards && mnist-pipe status && dvc repro && mnist-pipe summary &&
mnist-pipe predict digit.png; code=$?; mnist-pipe down; exit $code
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str, set[str]]]:
    """The checkout after `COMMANDS`, their exit code and output, and every open door that was seen meanwhile."""
    base = tmp_path_factory.mktemp("anywhere") / ("x" * 80)
    temporary = base / f"tmp {HARDEST}"
    temporary.mkdir(parents=True)
    (base / "real").mkdir()
    (base / "link").symlink_to(base / "real")
    folder = checkout.copy_tree(base / "link" / HARDEST)
    picture = Image.new("L", (100, 100), "white")
    ImageDraw.Draw(picture).line((52, 15, 48, 85), fill="black", width=9)
    picture.save(folder / "digit.png")
    checkout.run(folder, "dvc", "config", "--local", "core.no_scm", "true")
    environment = {k: v for k, v in checkout.environment().items() if k != "HOME"} | {"TMPDIR": str(temporary)}
    doors: set[str] = set()
    with (base / "output").open("w+") as output:
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"{NETWORK.strip()} && {COMMANDS}"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, doors, ended))
        watcher.start()
        try:
            code = process.wait()
        finally:
            ended.set()
            watcher.join()
            checkout.kill_all(process) if process.poll() is None else None
        output.seek(0)
        yield folder, code, output.read(), doors


def watch(pid: int, doors: set[str], ended: threading.Event) -> None:
    """Add every listener of the process's network namespace that is not on loopback to `doors`."""
    while not ended.wait(0.1):
        try:
            process = psutil.Process(pid)
            found = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:
            return
        doors.update(f"{c.laddr.ip}:{c.laddr.port}" for c in found if not is_loopback(c.laddr.ip))


def test_the_rebuild_and_the_services_work(run: tuple[Path, int, str, set[str]]) -> None:
    folder, code, output, _ = run
    assert code == 0, output[-5000:]
    rebuilt, again = output.split("rebuilt\n")
    assert checkout.stages_run(rebuilt) == list(STAGES)
    assert checkout.stages_run(again) == []
    assert "digit.png: " in again
    assert (folder / paths.REPORT).exists()


def test_nothing_listens_where_another_machine_could_connect(run: tuple[Path, int, str, set[str]]) -> None:
    assert run[3] == set()


def test_nothing_is_left_beside_the_checkout(run: tuple[Path, int, str, set[str]]) -> None:
    folder = run[0]
    base = folder.parent.parent
    assert {path.name for path in base.iterdir()} == {"link", "real", "output", f"tmp {HARDEST}"}
    assert [path.name for path in (base / "real").iterdir()] == [HARDEST]
