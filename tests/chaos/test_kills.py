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
from pathlib import Path

import pytest

from tests.support.checkout import run
from tests.support.rebuild import checkout, digests, leftovers, processes, registered_version, start

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("MNIST_PIPE_KILLS", "200"))
KILLS_A_REBUILD = 12
SEED = 20261129
SECONDS = (0.1, 9.0)
"""Shortest and longest time between a start of DVC and a kill, in seconds; a start takes 1 s, a stage 3 to 15 s."""
END_SECONDS = 120
"""Longest time that DVC may take to end after a kill, before it counts as hanging."""

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
    """Kill one of the targets that run, and return its name."""
    running = processes(folder)
    alive = {name: [pid for pid, command in running.items() if matches(command)] for name, matches in TARGETS.items()}
    name = chance.choice([name for name, pids in alive.items() if pids] or ["the group"])
    if name == "the group":
        os.killpg(rebuild.pid, signal.SIGKILL)
    else:
        os.kill(chance.choice(alive[name]), signal.SIGKILL)
    return name


def test_every_killed_rebuild_ends_with_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    struck: Counter[str] = Counter()
    rebuilds = 0
    while struck.total() < KILLS:
        services = rebuilds % 2 == 1
        folder = checkout(tmp_path / f"rebuild {rebuilds}", services=services)
        kills = 0
        rebuild = start(folder)
        while kills < KILLS_A_REBUILD and struck.total() < KILLS:
            try:
                rebuild.wait(chance.uniform(*SECONDS))
            except subprocess.TimeoutExpired:
                struck[strike(folder, rebuild, chance=chance)] += 1
                kills += 1
            if rebuild.poll() == 0:
                break
            ends = time.monotonic() + END_SECONDS
            while rebuild.poll() is None and time.monotonic() < ends and chance.random() < 0.9:
                time.sleep(0.2)  # what was killed may be missed only by a retry; sometimes it is not waited for
            if rebuild.poll() is not None:
                if services:
                    run(folder, "mnist-pipe", "up")
                rebuild = start(folder)
        rebuild.wait(600)
        log = (folder / "repro.log").read_text()
        if rebuild.returncode != 0:
            if services:
                run(folder, "mnist-pipe", "up")
            log = run(folder, "dvc", "repro")
        assert digests(folder) == undisturbed, log[-3000:]
        assert registered_version(folder) == 1
        run(folder, "mnist-pipe", "down")
        time.sleep(2)
        assert processes(folder) == {}
        assert leftovers(folder) == []
        shutil.rmtree(folder)
        rebuilds += 1
    counted = ", ".join(f"{name} {number}" for name, number in sorted(struck.items()))
    record_property("counted", f"{struck.total()} kills in {rebuilds} rebuilds: {counted}")
