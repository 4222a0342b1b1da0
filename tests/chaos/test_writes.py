"""Interrupt every write: strace kills the writer, or fails the call, at each of its system calls in turn."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "mkdir", "unlink", "chmod")
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")

START = """
import sys
from pathlib import Path
folder, value = Path(sys.argv[1]), int(sys.argv[2])
"""
MARK = "\nPath(sys.argv[3]).mkdir()  # what follows is interrupted\n"
WRITERS = {
    "a file": (
        "from mnist_pipe import atomic",
        "atomic.write_json(folder / 'file', [value] * 1000)",
        "assert atomic.read_json(folder / 'file') == [value] * 1000",
    ),
    "a folder": (
        "import shutil\nfrom mnist_pipe import atomic",
        """
shutil.rmtree(folder / str(value), ignore_errors=True)  # `atomic_folder` replaces none
with atomic.atomic_folder(folder / str(value)) as temporary:
    for name in "ab":
        atomic.write_json(temporary / name, value)
""",
        "assert [atomic.read_json(folder / str(value) / name) for name in 'ab'] == [value, value]",
    ),
    "a split": (
        """
import numpy
from mnist_pipe.data import splits
split = splits.RawSplit(images=numpy.full((40, 28, 28), value, numpy.uint8), labels=numpy.zeros(40, numpy.uint8),
                        provenance={"value": value})
""",
        "splits.write_raw(folder / 'split.parquet', split)",
        """
found = splits.read_raw(folder / "split.parquet")
assert found.provenance["value"] == value and (found.images == value).all()
""",
    ),
    "a model": (
        """
import torch
from mnist_pipe import models
from mnist_pipe.models import saved
network = models.build("linear")
torch.nn.init.constant_(next(network.parameters()), value)
card = {"model": "linear", "model_params": {}, "value": value, "mean": 0.5, "std": 1.0}
""",
        "saved.save_model(folder / str(value), network, card=card)",
        """
found, card = saved.load_model(folder / str(value))
assert card["value"] == value and (next(found.parameters()) == value).all()
""",
    ),
    "a checkpoint": (
        """
import torch
from mnist_pipe import models
from mnist_pipe.training import checkpoint
network = models.build("linear")
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
for parameter in network.parameters():  # what a step leaves; the first step imports torch's compiler, for seconds
    optimizer.state[parameter] = {"momentum_buffer": torch.ones_like(parameter)}
""",
        "checkpoint.save_state(folder / str(value), model=network, optimizer=optimizer,"
        " progress={'epoch': value, 'step': 0})",
        "assert checkpoint.load_state(folder / str(value), model=network, optimizer=optimizer)['epoch'] == value",
    ),
    "a ledger's entry": (
        """
from mnist_pipe.cluster import storage
from mnist_pipe.tuning.ledger import TrialRecord, ledger_of
ledger = ledger_of("search", storage=storage.open_uri(str(folder)))
""",
        "ledger.record(TrialRecord(trial=1, status='finished', config={}, history=[{'value': value}]), name='00001')",
        "[found] = ledger.read()\nassert found.history == [{'value': value}]",
    ),
    "an object of the storage": (
        """
import hashlib
from mnist_pipe.cluster import storage
place, content = storage.open_uri(str(folder)), str(value).encode() * 5000
(folder / f"source{value}").write_bytes(content)
""",
        "place.put(folder / f'source{value}')",
        """
place.get(hashlib.sha256(content).hexdigest(), folder / f"copy{value}")
assert (folder / f"copy{value}").read_bytes() == content
""",
    ),
    "the durations": (
        "from mnist_pipe import timings",
        "timings.record('train', seconds=value, root=folder)",
        "assert timings.read(folder)['train'].seconds == value",
    ),
}
NOT_SYNCED = {"a ledger's entry", "an object of the storage"}
"""What a power cut may damage, because readers check a digest and the work is then repeated."""


def works(writer: str, part: str, folder: Path, *, value: int) -> bool:
    """Prepare, and write or read `value`, in this process, which starts no other; return whether that worked."""
    prepare, write, read = WRITERS[writer]
    try:
        exec(f"{prepare}\n{write if part == 'write' else read}", {"folder": folder, "value": value})
    except Exception:
        return False
    return True


def run(writer: str, folder: Path, *, value: int, strace: tuple[str, ...]) -> int:
    """Prepare, and write `value`, in a process of its own; return its exit status."""
    prepare, write, _ = WRITERS[writer]
    code = START + prepare + MARK + write
    mark = folder.parent / "mark"
    mark.rmdir() if mark.exists() else None
    done = subprocess.run(
        [*strace, sys.executable, "-c", code, str(folder), str(value), str(mark)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode


def traced(log: Path, *options: str) -> tuple[str, ...]:
    return ("strace", "-f", "-qq", "-y", "-o", str(log), f"--trace={','.join(CALLS)}", *options)


def calls(log: Path) -> list[tuple[str, int, str]]:
    """Return each call after the mark: its name, its number among those of its name in the process, and its line."""
    seen: dict[tuple[str, str], int] = {}
    found, marked = [], ""
    for line in log.read_text().splitlines():
        pid, text = line.split(maxsplit=1)
        name = re.match(r"\w+", text)
        if name is None:
            continue
        key = pid, name[0]
        seen[key] = seen.get(key, 0) + 1
        if marked == pid:
            found.append((name[0], seen[key], text))
        elif '/mark"' in text:
            marked = pid
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("writer", WRITERS)
def test_an_interrupted_write_leaves_the_old_content_or_the_new(
    writer: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    assert works(writer, "write", before, value=1)

    def attempt(number: int, *options: str) -> tuple[Path, int]:
        """Write once more in a copy; return its folder, and the exit status."""
        folder = tmp_path / str(number) / "folder"
        shutil.copytree(before, folder)
        return folder, run(writer, folder, value=2, strace=traced(folder.parent / "log", *options))

    folder, status = attempt(0)
    assert status == 0
    found = calls(folder.parent / "log")
    assert {"fsync", "rename"} <= {name for name, _, _ in found} or writer in NOT_SYNCED
    points = [(f"--inject={name}:signal=SIGKILL:when={number}", True) for name, number, _ in found]
    points += [(f"--inject={n}:error={e}:when={i}", False) for n, i, _ in found for e in ERRORS[i % 2 :: 2]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of an attempt is the import of torch
        attempts = pool.map(attempt, itertools.count(1), [option for option, _ in points])
        for (option, killed), (folder, status) in zip(points, attempts, strict=True):
            assert status != 0 or not killed, option
            new = works(writer, "read", folder, value=2)
            assert new or works(writer, "read", folder, value=1), option
            assert new or status != 0, f"{option}: the writer reports success"
            assert works(writer, "write", folder, value=2), f"{option}: it cannot be written again"
            assert works(writer, "read", folder, value=2), option
    record_property("counted", f"{len(found)} kills and {len(points) - len(found)} errors: {', '.join(ERRORS)}")


@pytest.mark.parametrize("writer", sorted(WRITERS.keys() - NOT_SYNCED))
def test_a_power_cut_cannot_publish_a_file_before_its_content(writer: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    assert run(writer, folder, value=1, strace=traced(log)) == 0
    dirty: set[str] = set()
    unsynced: set[str] = set()
    num_renames = 0
    for name, _, line in calls(log):
        on = re.match(r"\w+\(\d+<(.+?)>", line)
        if name in ("write", "pwrite64") and on and on[1].startswith(str(folder)):
            dirty.add(on[1])
        elif name in ("fsync", "fdatasync") and on:
            dirty.discard(on[1])
            unsynced.discard(on[1])
        elif name.startswith("rename"):
            source, target = re.findall(r'"(.+?)"', line)
            lost = {path for path in dirty if path == source or path.startswith(f"{source}/")}
            assert not lost, f"{target} may be empty after a power cut"
            unsynced = {path for path in unsynced if not path.startswith(source)} | {str(Path(target).parent)}
            num_renames += 1
    assert num_renames
    assert not unsynced, "a rename may be undone by a power cut"
