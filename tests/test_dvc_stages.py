"""Test that a stage notices an input that is not what another stage wrote, and that the remedy of the message works."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mnist_pipe import atomic, paths
from mnist_pipe.cluster import dvc_stages
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.local import dvc_files
from tests.support import ROOT, checkout

pytestmark = pytest.mark.services  # DVC takes more than a second for each command

STAGE = """
import sys
from pathlib import Path
from mnist_pipe import command_line
from mnist_pipe.cluster import dvc_stages

class Parser(command_line.Parser): pass

def work(_):
    dvc_stages.verify_inputs("two", Path.cwd())
    Path("two").write_text(Path("one").read_text() + Path("folder/b/c").read_text())
    return 0

sys.exit(command_line.run(command_line.Parser(), work, []))
"""
MAKE_ONE = "mkdir -p folder/b; echo 1 > one; echo a > folder/a; echo c > folder/b/c"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Project of two stages that have run; `two` reads the file and the folder that `one` wrote."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "stage.py").write_text(STAGE)
    one = {"cmd": MAKE_ONE, "outs": ["one", "folder"]}
    two = {"cmd": f"{sys.executable} stage.py", "deps": ["one", "folder"], "outs": ["two"]}
    atomic.write_json(tmp_path / "dvc.yaml", {"stages": {"one": one, "two": two}})
    assert call(tmp_path, "dvc init --no-scm -q").returncode == 0
    assert call(tmp_path, "dvc repro").returncode == 0
    return tmp_path


def call(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.replace("mnist-pipe", f"{sys.executable} -m pipelines.cli"),
        shell=True, cwd=folder, env={**checkout.environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def alter(path: Path) -> None:
    """Change the bytes as a bad disk does: DVC trusts a file of its cache that is read-only."""
    mode = path.stat().st_mode
    path.chmod(mode | stat.S_IWUSR)
    path.write_bytes(path.read_bytes().upper().replace(b"1", b"9"))
    path.chmod(mode)


def test_the_digests_are_those_of_dvc(project: Path) -> None:
    lock = YAML(typ="safe").load(project / "dvc.lock")
    for out in lock["stages"]["one"]["outs"]:
        assert dvc_stages.md5_of(project / out["path"]) == out["md5"]
    dvc_stages.verify_inputs("two", project)
    assert dvc_files.check_objects(project) == "5 objects, none altered"


@pytest.mark.parametrize("name", ["one", "folder/b/c"])
def test_an_altered_object_of_the_cache_is_refused_and_the_remedy_works(project: Path, name: str) -> None:
    md5 = dvc_stages.md5_of(project / name)
    alter(project / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    for place in ("one", "folder"):
        shutil.rmtree(project / place) if (project / place).is_dir() else (project / place).unlink()
    assert call(project, "dvc checkout").returncode == 0
    assert "up to date" in call(project, "dvc repro").stdout  # so much for DVC
    done = call(project, "dvc repro --single-item --force two")
    assert done.returncode != 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith(f"{name.split('/')[0]}: md5 must be")]
    remedies = re.fullmatch(r".*; run: (mnist-pipe doctor --fix), then: (dvc repro .*)", line)
    assert remedies
    assert ".dvc/cache/files/md5" in call(project, remedies[1]).stdout
    assert call(project, remedies[2]).returncode == 0
    done = call(project, "dvc repro --force two")
    assert done.returncode == 0, done.stdout
    assert (project / "two").read_text() == "1\nc\n"
    assert dvc_files.check_objects(project).endswith("none altered")


def test_an_altered_object_is_found_by_doctor(project: Path) -> None:
    md5 = dvc_stages.md5_of(project / "one")
    alter(project / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    with pytest.raises(CorruptDataError, match=f"{md5[2:]}: md5 must be the file's name"):
        dvc_files.check_objects(project)


def test_the_cache_may_be_elsewhere(project: Path) -> None:
    (project / ".dvc/cache").rename(project / "other")
    (project / ".dvc/config.local").write_text("[cache]\n    dir = ../other\n")
    assert dvc_files.check_objects(project) == "5 objects, none altered"


def test_files_that_no_stage_wrote_are_not_compared(project: Path) -> None:
    (project / paths.DVC_LOCKS[0]).unlink()
    (project / "one").write_text("2\n")
    dvc_stages.verify_inputs("two", project)


def test_the_folder_of_own_images_is_an_input_if_it_is_within_the_project(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for folder, inputs in (("inputs", (Path("inputs"),)), ("/elsewhere", ()), ("../elsewhere", ())):
        (tmp_path / "params.yaml").write_text(f"ingest: {{path: {folder}}}\n")
        found = dvc_stages.read(tmp_path)["ingest"].inputs
        assert tuple(path for path in found if path.suffix != ".toml") == inputs


def test_the_baseline_is_trained_before_the_search() -> None:
    """Its errors say whether the gates can decide on the validation split, which is to be known before the search."""
    order = checkout.stages_run(checkout.run(ROOT, "dvc", "repro", "--dry", "--force"))
    assert order.index("baseline") < order.index("search")
