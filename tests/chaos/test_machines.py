"""Rebuild on machines that are full, small, slow, asleep, or whose clock jumps."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.checkout import environment
from tests.support.rebuild import checkout, digests, leftovers, processes, start

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and cgroups need root"),
]

STAGES = ("ingest", "normalize", "baseline", "search", "train", "evaluate", "register", "report")
CGROUPS = Path("/sys/fs/cgroup")
Record = Callable[[str, object], None]
STEPPED_CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
  char text[32] = {0};
  int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
  if (file >= 0) { if (read(file, text, sizeof text - 1) < 0) text[0] = 0; close(file); }
  return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
  return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
  int failed = syscall(SYS_gettimeofday, now, zone);
  if (!failed) now->tv_sec += offset();
  return failed;
}
time_t time(time_t *now) {
  time_t found = syscall(SYS_time, 0) + offset();
  if (now) *now = found;
  return found;
}
"""
"""C that adds the seconds in a file to the wall clock alone, as NTP steps it; faketime 0.9.10 breaks `time.sleep`."""


@contextmanager
def mounted(folder: Path, *, size: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def rebuild(folder: Path, *prefix: str, stage: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Rebuild up to `stage`, with the command `prefix` in front of it, and return how it ended."""
    command = [*prefix, "dvc", "repro", *([stage] if stage else [])]
    return subprocess.run(
        command, cwd=folder, env={**environment(), **more}, capture_output=True, text=True, check=False, timeout=900
    )


def last_error(log: str) -> str:
    """Return the line with which a stage failed."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("ERROR: failed to reproduce")]
    return lines[-1] if lines else ""


def fill(folder: Path, *, until: threading.Event) -> None:
    """Keep the disk of `folder` full."""
    with (folder / ".full").open("wb", buffering=0) as stream:
        while not until.is_set():
            try:
                stream.write(bytes(1 << 20))
            except OSError:
                with suppress(OSError):
                    stream.write(bytes(4096))
                time.sleep(0.01)


def test_a_stage_on_a_disk_that_becomes_full_fails_in_a_line_and_works_once_there_is_space(
    undisturbed: dict[str, str], tmp_path: Path, record_property: Record
) -> None:
    folder = tmp_path / "disk" / "main"
    with mounted(tmp_path / "disk", size="2500m"):
        checkout(folder, services=False)
        failed = 0
        for stage in STAGES:
            enough = threading.Event()
            process = start(folder)
            seen = len((folder / "repro.log").read_text())
            while f"Running stage '{stage}'" not in (folder / "repro.log").read_text():
                assert process.poll() is None, (folder / "repro.log").read_text()[-2000:]
                time.sleep(0.05)
            time.sleep(0.3)  # beyond the check of the free space
            filler = threading.Thread(target=fill, args=(tmp_path / "disk",), kwargs={"until": enough})
            filler.start()
            try:
                code = process.wait(180)
            finally:
                enough.set()
                filler.join()
                (tmp_path / "disk" / ".full").unlink()
            log = (folder / "repro.log").read_text()[seen:]
            failed += code != 0
            assert "Traceback" not in log, log[-3000:]
            assert processes(folder) == {}
            done = rebuild(folder, stage=stage)
            assert done.returncode == 0, done.stdout + done.stderr
        assert rebuild(folder).returncode == 0
        assert digests(folder) == undisturbed
        assert leftovers(folder) == []
    record_property("counted", f"{len(STAGES)} stages, {failed} failed")


def test_a_rebuild_on_a_read_only_disk_fails_in_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "main"
    with mounted(tmp_path / "disk", size="2500m"):
        checkout(folder, services=False)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        for stage in STAGES:
            done = subprocess.run(
                ["python", "-m", "pipelines", stage], cwd=folder, env=environment(), capture_output=True, text=True,
                check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode in (2, 3, 4), (stage, done.stderr)
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_machine_that_sleeps_for_a_minute_goes_on(undisturbed: dict[str, str], tmp_path: Path) -> None:
    folder = checkout(tmp_path / "main", services=False)
    process = start(folder)
    for stage in ("search", "train"):
        while f"Running stage '{stage}'" not in (folder / "repro.log").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(8)
        asleep = [process.pid, *processes(folder)]
        for pid in asleep:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(60)
        for pid in reversed(asleep):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert process.wait(600) == 0, (folder / "repro.log").read_text()[-3000:]
    assert digests(folder) == undisturbed


def test_after_a_clock_that_jumped_forward_and_back_the_bytes_are_the_same(
    undisturbed: dict[str, str], tmp_path: Path, record_property: Record
) -> None:
    folder = checkout(tmp_path / "main", services=False)
    clock, library = folder / "clock", tmp_path / "clock.so"
    clock.write_text("0")
    if not shutil.which("cc"):
        pytest.skip("no C compiler is installed")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=STEPPED_CLOCK, text=True, check=True
    )
    more = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(clock)}
    over = threading.Event()

    def jump() -> None:
        for offset in itertools.cycle((3600, -3600, 0, 2, -2, 0)):
            if over.wait(12):
                return
            clock.write_text(str(offset))

    jumper = threading.Thread(target=jump)
    jumper.start()
    failed = 0
    try:
        while (done := rebuild(folder, **more)).returncode:  # Prefect's server does not start while it goes back
            failed += 1
            assert "Traceback" not in done.stderr, done.stderr[-3000:]
            assert failed < 5, done.stderr[-3000:]
    finally:
        over.set()
        jumper.join()
    assert digests(folder) == undisturbed
    record_property("counted", f"a step every 12 s, after which {failed} rebuilds were started again")


def test_a_rebuild_with_128_open_files_a_process_works_or_says_so(
    undisturbed: dict[str, str], tmp_path: Path, record_property: Record
) -> None:
    folder = checkout(tmp_path / "main", services=False)
    done = rebuild(folder, "prlimit", "--nofile=128:128")
    log = done.stdout + done.stderr
    if done.returncode == 0:
        assert digests(folder) == undisturbed
    else:
        assert "open files" in last_error(log), log[-3000:]
        assert "Traceback" not in log
    assert processes(folder) == {}
    record_property("counted", "the same bytes" if done.returncode == 0 else last_error(log))


@contextmanager
def cgroup(controller: str, **settings: int) -> Iterator[Path]:
    """Yield a cgroup with these settings; skip the test where cgroups of version 1 cannot be made."""
    folder = CGROUPS / controller / f"mnist-pipe-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        for name, value in settings.items():
            (folder / f"{controller}.{name}").write_text(str(value))
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(50):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def within(folder: Path, *, visible: bool = False) -> list[str]:
    """Return the command that runs another one in the cgroup; `visible` shows it as a container's own."""
    join = f"echo $$ > {folder}/cgroup.procs"
    mount = f" && mount --bind {folder} {folder.parent}" if visible else ""
    return ["unshare", "-m", "sh", "-c", f'{join}{mount} && exec "$@"', "sh"]


@pytest.mark.parametrize(("quota", "cpus"), [(100_000, 1), (150_000, 2), (50_000, 1)])
def test_a_quota_of_cpus_counts_as_an_affinity_does(quota: int, cpus: int) -> None:
    code = "from mnist_pipe import hardware; print(hardware.num_cpus())"
    with cgroup("cpu", **{"cfs_quota_us": quota}) as folder:
        found = subprocess.run(
            [*within(folder, visible=True), "python", "-c", code],
            cwd=ROOT, env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert int(found.stdout) == min(cpus, os.cpu_count() or 1)


def test_a_rebuild_with_one_cpu_by_quota_gives_the_bytes_of_one_by_affinity(tmp_path: Path) -> None:
    found = []
    with cgroup("cpu", **{"cfs_quota_us": 100_000}) as group:
        for name, prefix in (("quota", within(group, visible=True)), ("affinity", ["taskset", "-c", "0"])):
            folder = checkout(tmp_path / name, services=False)
            done = rebuild(folder, *prefix)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            found.append(digests(folder))
    assert found[0] == found[1]


@pytest.mark.parametrize("megabytes", [3000, 700])
def test_a_rebuild_at_the_limit_of_memory_works_or_says_so(
    megabytes: int, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder = checkout(tmp_path / "main", services=False)
    with cgroup("memory", **{"limit_in_bytes": megabytes << 20}) as group:
        done = rebuild(folder, *within(group))
    log = done.stdout + done.stderr
    if done.returncode == 0:
        assert digests(folder) == undisturbed
    else:
        assert "memory" in last_error(log) or "SIGKILL" in log or "-9" in log, log[-3000:]
    assert processes(folder) == {}


def test_a_rebuild_with_64_megabytes_of_shared_memory_gives_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder = checkout(tmp_path / "main", services=False)
    small = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    done = rebuild(folder, "unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "sh")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert digests(folder) == undisturbed
