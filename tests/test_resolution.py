"""Test that the lock holds on every Python that the project supports, for pip and for uv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.checkout import copy_tree

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LINUX, MACOS = "x86_64-manylinux_2_28", "aarch64-apple-darwin"
SOURCE_ONLY = "antlr4-python3-runtime"  # pure Python; the version that hydra-core takes has no wheel
CUDA = re.compile(r"nvidia-|cuda-|triton")  # torch's build with CUDA brings them, at its own versions


def pins(text: str) -> dict[str, str]:
    """Return the versions of a lock by the normalized names of their packages."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.slow
@pytest.mark.parametrize(("python", "platform"), [*((python, LINUX) for python in PYTHONS), ("3.13", MACOS)])
def test_uv_resolves_to_the_lock_with_a_wheel_of_every_package(python: str, platform: str) -> None:
    target = ["--python-version", python, "--python-platform", platform, "--no-python-downloads", "--all-extras"]
    wheels = ["--only-binary", ":all:", "--no-binary", SOURCE_ONLY]
    command = ["uv", "pip", "compile", "-q", *target, *wheels, "--constraints", "requirements.lock", "pyproject.toml"]
    env = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that torch's wheels take
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    locked, found = pins((ROOT / "requirements.lock").read_text()), pins(done.stdout)
    assert len(found) > 200
    assert {name for name in found if locked.get(name) != found[name] and not CUDA.match(name)} == set()


@pytest.mark.slow
def test_uv_run_takes_the_environment_as_it_is_and_writes_no_lock_of_its_own(tmp_path: Path) -> None:
    project = copy_tree(tmp_path / "main")
    (project / ".venv").symlink_to(sys.prefix)
    command = ["uv", "run", "--offline", "python", "-c", "import sys; print(sys.prefix)"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert Path(done.stdout.strip()).samefile(sys.prefix), done.stderr
    assert not (project / "uv.lock").exists()


def test_the_pythons_that_are_promised_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert named == set(PYTHONS)
    assert project["requires-python"] == f">={PYTHONS[0]}"
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert workflow.count('python: ["3.11", "3.13"]') == 2
