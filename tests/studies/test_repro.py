"""Test studies through `dvc repro`, as a user runs them: from nothing, resumed, and with a wrong name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from studies import STUDIES
from tests.support import ROOT
from tests.support.checkout import copy_tree, environment, kill_all, run, stages_run

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(600)]
STUDY = "gradient_descent"
SMALL: dict[str, Any] = {
    "num_epochs": {"online": 2, "mini-batch": 4, "full batch": 20},
    "search_epochs": {"online": 1, "mini-batch": 1, "full batch": 2},
    "num_search_seeds": 1,
    "num_seeds": 3,
}


NUM_FIRST = 4
"""Number of runs that end before the study is killed."""
GATE = """

_compute = run


def run(config: Config, splits: Splits) -> Result:
    import os
    import time
    from pathlib import Path

    for number in range({num_first}):
        try:
            os.close(os.open(f"{folder}/run-{{number}}", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            continue
    else:
        while not Path("{folder}/open").exists():
            time.sleep(0.02)
    return _compute(config, splits)
"""
"""Code appended to the study's runs: the first ones compute, the others wait until the gate is open."""


@dataclass(frozen=True)
class Interrupted:
    """Result of a study that was killed and run again."""

    folder: Path
    known: int
    """Number of runs in its ledger after the kill."""
    had_results: bool
    """Whether `runs.json` existed after the kill."""
    output: str
    """Output of the second `dvc repro`."""


def set_study(folder: Path, study: str, changes: dict[str, Any]) -> None:
    yaml, path = YAML(), folder / "studies/params.yaml"
    content = yaml.load(path)
    content[study].update(changes)
    yaml.dump(content, path)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Git clone with its own services, small studies that were never measured, and a gate before their runs."""
    folder = copy_tree(tmp_path_factory.mktemp("clone") / "main")
    set_study(folder, STUDY, SMALL)
    for study in STUDIES:
        for name in ("runs.json", "times.json", "table.csv"):
            (folder / "studies" / study / name).unlink(missing_ok=True)
    (folder / "studies/dvc.lock").unlink(missing_ok=True)
    gate = folder.parent / "gate"
    gate.mkdir()
    with (folder / "studies" / STUDY / "runs.py").open("a") as stream:
        stream.write(GATE.format(num_first=NUM_FIRST, folder=gate))
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")
    run(folder, "mnist-pipe", "up")
    try:
        yield folder
    finally:
        run(folder, "mnist-pipe", "down")


@pytest.fixture(scope="module")
def interrupted(clone: Path) -> Interrupted:
    """Study that was killed while its first runs were in the ledger and the next ones waited, then run to its end."""
    log, ledgers = clone.parent / "first.log", clone / ".state/studies"
    run(clone, "dvc", "repro", "normalize")
    command = ("dvc", "--cd", "studies", "repro", STUDY)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=clone, env=environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 240
    while len(list(ledgers.glob("*/*.json"))) < NUM_FIRST:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    kill_all(process)
    assert process.wait(timeout=20) != 0
    psutil.wait_procs(family, timeout=5)
    known = len(list(ledgers.glob("*/*.json")))
    had_results = (clone / "studies" / STUDY / "runs.json").exists()
    (clone.parent / "gate/open").touch()
    return Interrupted(folder=clone, known=known, had_results=had_results, output=run(clone, *command))


def test_an_interrupted_study_resumes_with_the_missing_runs(interrupted: Interrupted) -> None:
    assert (interrupted.known, interrupted.had_results) == (NUM_FIRST, False)
    assert stages_run(interrupted.output) == [f"{STUDY}-runs", STUDY]
    assert f"{STUDY}: resuming after an interruption; {NUM_FIRST} runs are already finished" in interrupted.output
    assert interrupted.output.count(" s: phase") == 18 - NUM_FIRST  # of 9 searches and 9 final runs
    assert not list((interrupted.folder / ".state/studies").iterdir())  # of a finished study only DVC keeps the results


def test_the_section_and_figure_show_every_run(interrupted: Interrupted) -> None:
    folder = interrupted.folder / "studies" / STUDY
    content = json.loads((folder / "runs.json").read_text())
    assert len(content["runs"]) == 18
    assert (folder / "figure.png").read_bytes() != (ROOT / "studies" / STUDY / "figure.png").read_bytes()
    section = (interrupted.folder / "studies/README.md").read_text().partition(f"<!-- {STUDY} -->")[2]
    assert "| 784-15-10, one-hot | online, constant rate |" in section
    assert f"({STUDY}/figure.png)" in section


def test_a_second_repro_does_nothing_and_a_forced_one_gives_the_same_bytes(interrupted: Interrupted) -> None:
    clone = interrupted.folder
    repro = ("dvc", "--cd", "studies", "repro")
    assert stages_run(run(clone, *repro, STUDY)) == []
    measured = clone / "studies" / STUDY / "runs.json"
    before = measured.read_bytes()
    assert stages_run(run(clone, *repro, "--force", "--single-item", f"{STUDY}-runs")) == [f"{STUDY}-runs"]
    assert measured.read_bytes() == before


def test_an_unpublished_result_is_reported_and_nothing_is_written(interrupted: Interrupted) -> None:
    clone = interrupted.folder
    path, page = clone / "studies/published.csv", (clone / "studies/README.md").read_bytes()
    before = path.read_text()
    path.write_text("source,system\n")
    try:
        output = run(clone, sys.executable, "-m", "studies", STUDY, code=2)
    finally:
        path.write_text(before)
    assert output.startswith("studies/published.csv: the table must have the columns source, ")
    assert len(output.splitlines()) == 1
    assert (clone / "studies/README.md").read_bytes() == page


@pytest.mark.parametrize(
    ("module", "name"),
    [("studies", "gradient-descent"), ("pipelines", "gradient_descent-run")],
    ids=["show", "measure"],
)
def test_a_wrong_name_is_reported_with_a_suggestion(module: str, name: str) -> None:
    output = run(ROOT, sys.executable, "-m", module, name, code=2)
    assert output.startswith(f"python -m {module}: {'study' if module == 'studies' else 'stage'} must be one of ")
    assert "did you mean 'gradient_descent" in output
    assert len(output.splitlines()) == 1


def test_a_wrong_param_is_reported_with_its_line(tmp_path: Path) -> None:
    folder = copy_tree(tmp_path / "main")
    set_study(folder, STUDY, {"num_seed": 3})
    number = next(
        n for n, text in enumerate((folder / "studies/params.yaml").read_text().splitlines(), 1) if "num_seed:" in text
    )
    output = run(folder, sys.executable, "-m", "pipelines", f"{STUDY}-runs", code=2)
    assert output == (
        f"studies/params.yaml:{number}: {STUDY}.num_seed must be a known key, but got 'num_seed'; "
        "did you mean 'num_seeds'?\n"
    )
