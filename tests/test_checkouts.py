"""Test that a copied, moved or mounted checkout neither shows, ends nor opens what belongs to another one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnist_pipe import paths, timings
from mnist_pipe.errors import BusyError, CorruptDataError
from mnist_pipe.local import services
from mnist_pipe.local.services import Service, State, process, program
from mnist_pipe.timings import StageTime
from tests.support.services import clean_variables, new_root

__all__ = ["clean_variables"]  # fixture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    return new_root(folder)


@contextmanager
def running(root: Path, **changes: Any) -> Iterator[Service]:
    """Run a program that is recorded as the Prefect server of `root`, as `up` would record it."""
    log = root / services.LOGS / "prefect.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    path, _ = program.secret(root, "prefect")
    with log.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
        child = subprocess.Popen(sleep, cwd=root, stdout=stream, stderr=stream, start_new_session=True)
    try:
        main = psutil.Process(child.pid)
        service = Service(
            name="prefect", pid=child.pid, created=main.create_time(), since_boot=process.started_at(main), port=1,
            address="http://127.0.0.1:1/api", url="http://127.0.0.1:1", secret=str(path), log=str(log), folder="",
            root=str(root), namespace=process.namespace(),
        )  # fmt: skip
        program.write(root, {"prefect": replace(service, **changes)})
        yield service
    finally:
        child.kill()
        child.wait()


def is_alive(service: Service) -> bool:
    return psutil.Process(service.pid).status() != psutil.STATUS_ZOMBIE


def write_records(root: Path, content: bytes) -> Path:
    path = root / paths.SERVICES
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


# --- copies


def copy(root: Path, how: str) -> Path:
    target = root.parent / "copy"
    command = {
        "cp": ["cp", "-r", str(root), str(target)],
        "cp -a": ["cp", "-a", str(root), str(target)],
        "cp -al": ["cp", "-al", str(root), str(target)],
        "tar": ["sh", "-c", f"mkdir {target} && tar -C {root} -cf - . | tar -C {target} -xf -"],
        "swapped": ["sh", "-c", f"cp -a {root} {target} && mv {root} {root}.old && mv {target} {root}"],
    }[how]
    subprocess.run(command, check=True)
    return root if how == "swapped" else target


@pytest.mark.parametrize("how", ["cp", "cp -a", "cp -al", "tar", "swapped"])
def test_a_copy_shows_ends_and_opens_no_service_of_the_original(root: Path, how: str) -> None:
    with running(root) as service:
        secret = services.environment(root)["PREFECT_API_AUTH_STRING"]
        other = copy(root, how)
        original = root.with_name("original.old") if how == "swapped" else root
        assert services.status(other) == dict.fromkeys(("prefect", "ray"), (State.STOPPED, None))
        assert services.down(other) == []
        assert is_alive(service)
        variables = services.environment(other)
        assert "PREFECT_API_URL" not in variables
        assert variables["PREFECT_API_AUTH_STRING"] != secret
        assert services.environment(other) == variables
        assert services.status(original)["prefect"][0] in (State.SILENT, State.MOVED)
        assert services.environment(original)["PREFECT_API_AUTH_STRING"] == secret
        assert [one.pid for one in services.down(original)] == [service.pid]
        assert not psutil.pid_exists(service.pid) or not is_alive(service)


def test_a_copy_of_a_copy_and_a_copy_made_twice_have_secrets_of_their_own(root: Path) -> None:
    found = [services.environment(root)["PREFECT_API_AUTH_STRING"]]
    for name, source in (("b", root), ("c", root.parent / "b"), ("d", root)):
        shutil.copytree(source, root.parent / name)
        found.append(services.environment(root.parent / name)["PREFECT_API_AUTH_STRING"])
    assert len(set(found)) == 4
    assert services.environment(root)["PREFECT_API_AUTH_STRING"] == found[0]


def test_a_copy_of_links_to_the_files_gets_files_of_its_own(root: Path) -> None:
    services.environment(root)
    for name in ("mlflow.db", "prefect/prefect.db", "logs/ray.log"):
        (root / paths.STATE / name).parent.mkdir(exist_ok=True)
        (root / paths.STATE / name).write_text(name)
    other = copy(root, "cp -al")
    services.environment(other)
    files = [path.relative_to(root) for path in (root / paths.STATE).rglob("*") if path.is_file()]
    for file in files:
        assert not (other / file).exists() or not (other / file).samefile(root / file)
    assert (other / paths.MLFLOW_DB).read_text() == "mlflow.db"


# --- moved, linked and mounted checkouts


@pytest.mark.parametrize("name", ["elsewhere", "a b;c", "ü"])
def test_a_moved_checkout_keeps_its_secrets_and_ends_what_it_started(root: Path, name: str) -> None:
    with running(root) as service:
        secret = services.environment(root)["PREFECT_API_AUTH_STRING"]
        moved = root.rename(root.with_name(name))
        state, found = services.status(moved)["prefect"]
        assert state is State.MOVED
        assert found is not None
        assert found.log == str(moved / services.LOGS / "prefect.log")
        assert services.describe("prefect", state, found).startswith("runs for the place from which this folder was")
        assert services.start_command("prefect", state) == "mnist-pipe up"
        variables = services.environment(moved)
        assert variables["PREFECT_API_AUTH_STRING"] == secret
        assert "PREFECT_API_URL" not in variables  # its database is not where it was
        assert [one.pid for one in services.down(moved)] == [service.pid]
        assert not psutil.pid_exists(service.pid) or not is_alive(service)
    assert not root.exists()


def test_a_linked_path_is_the_same_checkout(root: Path) -> None:
    with running(root):
        link = root.with_name("link")
        link.symlink_to(root)
        assert services.status(link)["prefect"][0] is State.SILENT
        assert services.environment(link) == services.environment(root)


def test_a_link_to_the_state_of_another_checkout_shares_its_services(root: Path) -> None:
    with running(root) as service:
        (root.parent / "worktree").mkdir()
        worktree = new_root(root.parent / "worktree")
        (worktree / paths.STATE).symlink_to(root / paths.STATE)
        secret = services.environment(root)["PREFECT_API_AUTH_STRING"]
        assert services.status(worktree)["prefect"][0] is State.SILENT
        assert services.environment(worktree)["PREFECT_API_AUTH_STRING"] == secret
        assert [one.pid for one in services.down(worktree)] == [service.pid]


def test_a_service_in_another_container_is_neither_ended_nor_forgotten(root: Path) -> None:
    with running(root, namespace="pid:[1]") as service:
        before = (root / paths.SERVICES).read_bytes()
        state, _ = services.status(root)["prefect"]
        assert state is State.ELSEWHERE
        assert services.start_command("prefect", state) == "mnist-pipe down in that container, then mnist-pipe up"
        for call in (services.up, services.down):
            with pytest.raises(BusyError) as caught:
                call(root)
            assert str(caught.value) == (
                f"{root / paths.SERVICES}: prefect runs in another container; run there: mnist-pipe down"
            )
        assert is_alive(service)
        assert (root / paths.SERVICES).read_bytes() == before
    assert services.status(root)["prefect"][0] is State.DEAD  # after that container's end
    assert services.down(root) == []
    assert not (root / paths.SERVICES).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make a namespace")
@pytest.mark.services
def test_a_container_that_mounts_the_checkout_leaves_its_services_alone(root: Path) -> None:
    with running(root) as service:
        command = [sys.executable, "-m", "pipelines.cli", "down"]
        inside = ["unshare", "--pid", "--fork", "--mount-proc", *command]
        done = subprocess.run(inside, cwd=root, capture_output=True, text=True, timeout=100, check=False)
        line = f"{root / paths.SERVICES}: prefect runs in another container; run there: mnist-pipe down\n"
        assert (done.returncode, done.stdout, done.stderr) == (75, "", line)
        assert is_alive(service)
        assert services.status(root)["prefect"][0] is State.SILENT


# --- clocks, stages, and files of another version


@pytest.mark.parametrize("seconds", [-86_400, -3, 2, 3, 86_400])
def test_down_ends_what_runs_after_the_clock_was_set(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    with running(root) as service:
        proc = tmp_path / "proc"
        proc.mkdir()
        for entry in Path("/proc").iterdir():
            if entry.name != "stat":
                (proc / entry.name).symlink_to(entry)
        lines = Path("/proc/stat").read_text().splitlines()
        moved = [f"btime {int(line.split()[1]) + seconds}" if line.startswith("btime") else line for line in lines]
        (proc / "stat").write_text("\n".join(moved))
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
        assert abs(psutil.Process(service.pid).create_time() - service.created - seconds) < 1.5
        assert services.status(root)["prefect"][0] is State.SILENT
        assert [one.pid for one in services.down(root)] == [service.pid]
    assert not (root / paths.SERVICES).exists()


@pytest.mark.parametrize("seconds", [-5.0, -0.1, 0.1, 5.0])
def test_a_process_that_got_the_number_of_a_service_later_or_earlier_is_not_ended(root: Path, seconds: float) -> None:
    with running(root) as service:
        program.write(root, {"prefect": replace(service, since_boot=service.since_boot + seconds)})
        assert services.status(root)["prefect"][0] is State.DEAD
        assert services.down(root) == []
        assert is_alive(service)


def test_services_of_version_0_1_are_found_by_their_time(root: Path) -> None:
    with running(root) as service:
        new = {"since_boot", "root", "namespace"}
        old = {key: value for key, value in asdict(service).items() if key not in new}
        write_records(root, json.dumps({"prefect": old}).encode())
        assert [one.pid for one in services.down(root)] == [service.pid]


def test_a_service_whose_secret_is_gone_does_not_answer(root: Path) -> None:
    with running(root):
        shutil.rmtree(root / services.SECRETS)
        assert services.status(root)["prefect"][0] is State.SILENT
        assert len(services.down(root)) == 1


RECORD: dict[str, Any] = {
    "name": "ray", "pid": 4_000_000, "created": 1.0, "port": 1, "address": "", "url": "http://127.0.0.1:1",
    "secret": "", "log": "", "folder": "",
}  # fmt: skip
WRONG: dict[str, list[Any]] = {
    "pid": ["1", 1.5, None, True, 0, 1, -1, 2**70, [], {}],
    "created": ["1", None, [], True, 1e300],
    "since_boot": ["1", None, [], True, 1e300],
    "port": ["1", None, 0, -1, 65_536, 2**80],
    "url": ["", None, 5, "x", "http://[", "http://example.org:80", "http://127.0.0.1:x", "http://127.0.0.1@x:1"],
    "folder": [None, 3, [], "\0"],
    "root": [None, 3, [], "\0"],
    "name": ["prefect", "", None, "../x"],
}
SHAPES: list[Any] = [
    *(None, [], "x", 1, True, [RECORD], {"ray": None}, {"ray": []}, {"ray": "x"}, {"ray": 7}, {"ray": {}}),
    *({"ray": {key: RECORD[key] for key in RECORD if key != left_out}} for left_out in RECORD if left_out != "log"),
    *({"ray": {**RECORD, key: value}} for key, values in WRONG.items() for value in values),
    {"../x": {**RECORD, "name": "../x"}},
]


@pytest.mark.parametrize("value", SHAPES, ids=lambda value: json.dumps(value)[-60:])
def test_a_record_of_another_shape_is_one_line(root: Path, value: object) -> None:
    path = write_records(root, json.dumps(value).encode())
    for call in (services.status, services.down, services.environment):
        with pytest.raises(CorruptDataError) as caught:
            call(root)
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert line.endswith("; delete it and stop the services by hand")
        assert len(line.splitlines()) == 1
        assert len(line) < 300 + len(str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN x", b"\0"])
def test_records_that_are_not_json_are_one_line(root: Path, content: bytes) -> None:
    path = write_records(root, content)
    with pytest.raises(CorruptDataError, match=r"must be JSON, but got .*; delete it and stop the services by hand$"):
        services.status(root)
    path.unlink()  # the remedy
    assert services.status(root)["ray"][0] is State.STOPPED


def test_a_record_of_a_later_version_is_read(root: Path) -> None:
    write_records(root, json.dumps({"ray": {**RECORD, "colour": "red"}}).encode())
    assert services.status(root)["ray"][0] is State.DEAD
    assert services.down(root) == []


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{}", b'{"inode": 1}', b"[" * 100_000, b"\xff"])
def test_a_damaged_identity_counts_as_none(root: Path, content: bytes) -> None:
    secret = services.environment(root)["PREFECT_API_AUTH_STRING"]
    (root / ".state/checkout.json").write_bytes(content)
    assert services.environment(root)["PREFECT_API_AUTH_STRING"] == secret


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"[]", b"7", b'"x"', b"[" * 100_000, b"\xff"),
        *(b'{"train": null}', b'{"train": 3.5}', b'{"train": {}}', b'{"train": {"seconds": 1}}'),
        *(b'{"train": {"seconds": "1", "ended_at": 1}}', b'{"train": {"seconds": NaN, "ended_at": 1}}'),
        *(b'{"train": {"seconds": -1, "ended_at": 1}}', b'{"train": {"seconds": 1, "ended_at": 1e300}}'),
        b'{"train": {"seconds": true, "ended_at": 1}}',
    ],
)
def test_times_of_another_shape_count_as_none(root: Path, content: bytes) -> None:
    (root / paths.STATE).mkdir()
    (root / paths.TIMINGS).write_bytes(content)
    assert timings.read(root) == {}
    timings.record("ingest", seconds=1.5, root=root)
    assert [(stage, time.seconds) for stage, time in timings.read(root).items()] == [("ingest", 1.5)]


def test_times_of_a_later_version_are_read(root: Path) -> None:
    (root / paths.STATE).mkdir()
    (root / paths.TIMINGS).write_text('{"train": {"seconds": 2, "ended_at": 5, "colour": "red"}, "old": 3.5}')
    assert timings.read(root) == {"train": StageTime(ended_at=5, seconds=2)}
