"""Kill what runs, at random moments of whole rebuilds, and compare the result with that of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from mnist_pipe import paths
from mnist_pipe.local import dvc_files
from tests.support import mlflow
from tests.support.checkout import environment, run
from tests.support.rebuild import checkout, digests, leftovers, processes, start, versions
from tests.support.services import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("MNIST_PIPE_KILLS", "200"))
KILLS_A_REBUILD = 40
SEED = 20261129
END_SECONDS = 120
"""Longest time that DVC may take to end after a kill, before it counts as hanging."""
MODES = ("alone", "with the services", "with an MLflow server")

TARGETS: dict[str, Callable[[str], bool]] = {
    "DVC": lambda command: "/dvc repro" in command,
    "a stage": lambda command: "-m pipelines " in command,
    "the group": lambda command: "/dvc repro" in command,
    "a Ray worker": lambda command: command.startswith("ray::"),
    "raylet": lambda command: "/raylet/raylet " in command,
    "Ray's GCS": lambda command: "/gcs/gcs_server " in command,
    "Prefect's server": lambda command: "prefect" in command and "server" in command,
    "MLflow's server": lambda command: "mlflow" in command and "server" in command,
}


def strike(folder: Path, rebuild: subprocess.Popen[bytes], *, chance: random.Random) -> str:
    """Kill one of the targets that run, and return its name; an empty one if it has just ended."""
    running = processes(folder)
    alive = {name: [pid for pid, command in running.items() if matches(command)] for name, matches in TARGETS.items()}
    name = chance.choice([name for name, pids in alive.items() if pids] or ["the group"])
    try:
        if name == "the group":
            os.killpg(rebuild.pid, signal.SIGKILL)
        else:
            os.kill(chance.choice(alive[name]), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return name


def interval(chance: random.Random) -> float:
    """Return the time to the next kill in seconds: half are below 3, a tenth above 14, as a stage takes 3 to 15 s."""
    return chance.lognormvariate(1.1, 1.2)


def mend(folder: Path) -> int:
    """Do what a user does when DVC refuses a file that a kill has left empty; return whether that was so."""
    if not any(dvc_files.damaged(folder)):
        return 0
    output = repair(folder)
    assert not any(dvc_files.damaged(folder)), output
    return 1


def repair(folder: Path) -> str:
    """Run `mnist-pipe doctor --fix`, and return its output; what else it finds on this machine does not matter."""
    command = ["mnist-pipe", "doctor", "--fix"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def ended(folder: Path) -> bool:
    return processes(folder) == {}


def end_all(folder: Path) -> None:
    """Kill what is left if the test fails."""
    for pid in processes(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Rebuild:
    """A checkout that is rebuilt in one of the modes, and started again as often as necessary."""

    def __init__(self, folder: Path, *, mode: str) -> None:
        self.folder, self.mode, self._server = checkout(folder, services=False), mode, ExitStack()
        self.mended, self._url = 0, ""
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start `dvc repro`, and what it joins if that does not run."""
        more = {}
        if self.mode == "with the services":
            run(self.folder, "mnist-pipe", "up")
        if self.mode == "with an MLflow server":
            more["MLFLOW_TRACKING_URI"] = self.tracking_uri()
        self.mended += mend(self.folder)
        self.process = start(self.folder, **more)
        return self.process

    def tracking_uri(self) -> str:
        """Return the address of the store, after starting its server if that does not answer."""
        if self.mode != "with an MLflow server":
            return paths.sqlite_uri(self.folder / paths.MLFLOW_DB)
        try:
            httpx.get(f"{self._url}/health", timeout=20, trust_env=False).raise_for_status()
        except (httpx.HTTPError, httpx.UnsupportedProtocol):
            place = self.folder / ".state" / "server"
            place.mkdir(parents=True, exist_ok=True)
            self._server.close()
            self._url = self._server.enter_context(
                mlflow.server(place, store=paths.sqlite_uri(place / "server.db"), PWD=str(self.folder))
            )
        return self._url

    def stop(self) -> None:
        """Stop the services and the server that were started for it."""
        run(self.folder, "mnist-pipe", "down")
        self._server.close()

    def finish(self) -> None:
        """Rebuild until DVC reports success, undisturbed now."""
        log = self.folder / "repro.log"
        for _ in range(3):
            if self.process.wait(1800) == 0:
                return
            self.start()
        assert self.process.wait(1800) == 0, log.read_text()[-5000:]


def test_every_killed_rebuild_ends_with_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    struck: Counter[str] = Counter()
    rebuilds = mended = 0
    while struck.total() < KILLS:
        folder = tmp_path / f"rebuild {rebuilds}"
        with ExitStack() as stack:
            stack.callback(partial(end_all, folder))
            rebuild = Rebuild(folder, mode=MODES[rebuilds % len(MODES)])
            kills = 0
            while kills < KILLS_A_REBUILD and struck.total() < KILLS:
                try:
                    rebuild.process.wait(interval(chance))
                except subprocess.TimeoutExpired:
                    if name := strike(folder, rebuild.process, chance=chance):
                        struck[name] += 1
                        kills += 1
                if rebuild.process.poll() == 0:
                    break
                ends = time.monotonic() + END_SECONDS
                while rebuild.process.poll() is None and time.monotonic() < ends and chance.random() < 0.9:
                    time.sleep(0.2)  # what was killed may be missed only by a retry; sometimes it is not waited for
                if rebuild.process.poll() is not None:
                    rebuild.start()
            rebuild.finish()
            log = (folder / "repro.log").read_text()
            print(f"{folder.name} {rebuild.mode}: {kills} kills, {rebuild.mended} mended, {struck.total()} in all")
            assert digests(folder) == undisturbed, log[-3000:]
            assert versions(rebuild.tracking_uri(), folder) == 1
            mended += rebuild.mended
            rebuild.stop()
            wait_until(partial(ended, folder), seconds=20)
            repair(folder)  # a killed command that ran no stage may have left its record
            assert leftovers(folder) == []
        shutil.rmtree(folder)
        rebuilds += 1
    counted = ", ".join(f"{name} {number}" for name, number in sorted(struck.items()))
    record_property(
        "counted", f"{struck.total()} kills in {rebuilds} rebuilds: {counted}; `doctor --fix` was needed {mended} times"
    )
