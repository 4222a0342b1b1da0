"""Test that a supervised command leaves nothing behind, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mnist_pipe.errors import UnavailableError
from tests.support import ROOT, checkout

pytestmark = pytest.mark.services  # they start processes and wait for grace periods

SUPERVISE = "import sys; from mnist_pipe.local.supervisor import supervise; sys.exit(supervise(sys.argv[1:]))"

# Child that starts a daemon (double fork, own session) and a plain subprocess, reports it, and then works.
WORK = """
import os, subprocess, sys, time, signal
{setup}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1] + "/daemon", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
plain = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + "/plain", "w").write(str(plain.pid))
while not os.path.exists(sys.argv[1] + "/daemon"): time.sleep(0.01)
open(sys.argv[1] + "/ready", "w").close()
{work}
"""


def start(tmp_path: Path, *, work: str = "time.sleep(600)", setup: str = "") -> subprocess.Popen[str]:
    script = tmp_path / "work.py"
    script.write_text(WORK.format(work=work, setup=setup))
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, sys.executable, str(script), str(tmp_path)], text=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def running_pids(tmp_path: Path) -> list[int]:
    """Return the pids of the background processes that still run."""
    pids = [int((tmp_path / name).read_text()) for name in ("daemon", "plain")]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_passed_on_and_leftover_processes_are_ended(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, work=f"sys.exit({code})")
    assert process.wait(timeout=10) == code
    assert running_pids(tmp_path) == []


DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("setup", "number"), [("", signal.SIGINT), ("", signal.SIGTERM), (DEAF, signal.SIGINT)], ids=["", "", "deaf"]
)
def test_a_signal_ends_everything(tmp_path: Path, number: signal.Signals, setup: str) -> None:
    process = start(tmp_path, setup=setup)
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number
    assert running_pids(tmp_path) == []


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("setup", ["", DEAF], ids=["cooperative", "deaf"])
def test_a_signal_ends_everything_within_five_seconds(tmp_path: Path, number: signal.Signals, setup: str) -> None:
    process = start(tmp_path, setup=setup)
    began = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=10)
    assert time.monotonic() - began < 5
    assert running_pids(tmp_path) == []


def test_the_command_gets_time_to_clean_up(tmp_path: Path) -> None:
    work = (
        "\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    time.sleep(1); open(sys.argv[1] + '/clean', 'w')"
    )
    process = start(tmp_path, work=work)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    assert (tmp_path / "clean").exists()


def test_the_supervisor_ends_when_its_parent_dies(tmp_path: Path) -> None:
    # As when `dvc repro` gets SIGTERM: it dies at once, without a signal to its stage.
    script = tmp_path / "work.py"
    script.write_text(WORK.format(work="time.sleep(600)", setup=""))
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", SUPERVISE, sys.executable, str(script), str(tmp_path)]
    launcher = subprocess.Popen([sys.executable, "-c", code, *command])
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    supervisor = psutil.Process(launcher.pid).children()[0]
    launcher.kill()
    launcher.wait()
    psutil.wait_procs([supervisor], timeout=5)
    assert not supervisor.is_running()
    assert running_pids(tmp_path) == []


def test_the_command_ends_when_even_the_supervisor_is_killed(tmp_path: Path) -> None:
    setup = "from mnist_pipe.local import supervisor; supervisor.die_with_parent(os.getppid())"
    process = start(tmp_path, setup=setup)
    child = psutil.Process(process.pid).children()[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone
    for pid in running_pids(tmp_path):  # the daemon, which had no process left to adopt it
        os.kill(pid, signal.SIGKILL)


# A stage that says when it works, with a server in its process group, as Prefect starts one.
TOY = """
import pathlib, subprocess, sys, time
from mnist_pipe.local import supervisor
if (code := supervisor.run_supervised("toy", [], grace_seconds=1)) is not None:
    sys.exit(code)
server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "toy-server"])
pathlib.Path("works").touch()
time.sleep(600)
"""
# A stage that ends as where memory runs out.
KILLED = """
import os, signal
from mnist_pipe import command_line
from mnist_pipe.local import supervisor

def work(_):
    if (code := supervisor.run_supervised("toy", [])) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return code

raise SystemExit(command_line.run(command_line.Parser(), work))
"""
DVC_YAML = "stages: {toy: {cmd: exec python -m toy, outs: [out]}}"


def toys(folder: Path) -> list[psutil.Process]:
    """Return the processes that run the toy in `folder`; DVC's own command line does not name it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and "toy" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until_none(folder: Path, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while found := [p for p in toys(folder) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, [p.cmdline() for p in found]
        time.sleep(0.1)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def environment_of(folder: Path) -> dict[str, str]:
    return {**checkout.environment(), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_a_child_that_the_kernel_kills_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(KILLED)
    command = [sys.executable, "-m", "toy"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment_of(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == UnavailableError.exit_code
    expected = "the kernel does that when memory runs out: free some, and run it again"
    assert done.stderr == f"toy: the process was ended by SIGKILL; {expected}\n"


@pytest.mark.chaos
@pytest.mark.parametrize("delay", [0, 0.03, 0.06, 0.1, 0.15, 0.3])
def test_a_stage_ends_with_a_dvc_that_is_killed_while_it_starts(toy: Path, delay: float) -> None:
    (toy / "dvc.yaml").write_text(DVC_YAML)
    checkout.run(toy, "dvc", "init", "--no-scm", "-q")
    dvc = subprocess.Popen(["dvc", "repro"], cwd=toy, env=environment_of(toy), stdout=subprocess.DEVNULL)
    while not toys(toy):
        assert dvc.poll() is None
    time.sleep(delay)
    dvc.kill()
    dvc.wait()
    wait_until_none(toy)


@pytest.mark.parametrize("delay", [0, 0.03, 0.06, 0.1, 0.15, 0.3])
def test_a_stage_ends_with_a_supervisor_that_is_killed_while_it_starts(toy: Path, delay: float) -> None:
    outer = subprocess.Popen([sys.executable, "-m", "toy"], cwd=toy, env=environment_of(toy))
    while not psutil.Process(outer.pid).children():
        time.sleep(0.001)
    time.sleep(delay)
    outer.kill()
    outer.wait()
    wait_until_none(toy)


def test_a_server_ends_with_stage_and_supervisor_that_are_killed_together(toy: Path) -> None:
    outer = subprocess.Popen([sys.executable, "-m", "toy"], cwd=toy, env=environment_of(toy))
    while not (toy / "works").exists():
        time.sleep(0.01)
    [inner] = psutil.Process(outer.pid).children()
    assert any("toy-server" in process.cmdline() for process in toys(toy))
    inner.kill()
    outer.kill()
    outer.wait()
    wait_until_none(toy)


def test_a_stage_runs_whatever_dvcs_file_says_that_it_cannot_read(toy: Path) -> None:
    (toy / ".dvc/tmp").mkdir(parents=True)
    for content in ("", "{}", '{"write": {}}', '{"write": 1}', "[]", '{"write": {"out": 1}}'):
        (toy / ".dvc/tmp/rwlock").write_text(content)
        (toy / "works").unlink(missing_ok=True)
        outer = subprocess.Popen(
            [sys.executable, "-m", "toy"], cwd=toy, env={**environment_of(toy), "DVC_STAGE": "toy"}
        )
        while not (toy / "works").exists():
            assert outer.poll() is None, content
            time.sleep(0.01)
        outer.terminate()
        outer.wait()
