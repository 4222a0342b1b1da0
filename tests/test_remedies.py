"""Test that the remedy which an error names cures it, taken word for word, on one small checkout that was rebuilt."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mnist_pipe import paths
from mnist_pipe.atomic import write_json
from mnist_pipe.local import doctor
from mnist_pipe.waiting import LIMIT_SECONDS
from tests.support import ROOT
from tests.support.checkout import copy_tree, environment, run, set_params
from tests.support.services import family, recorded, wait_until

STAGE = (sys.executable, "-m", "pipelines")
CLI = (sys.executable, "-m", "pipelines.cli")
PREDICT = (*CLI, "predict", "picture.png")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Git clone, rebuilt once; every case leaves it as whole as it was."""
    folder = copy_tree(tmp_path_factory.mktemp("remedies") / "main")
    set_params(folder, **{"search.num_trials": 2, "search.num_epochs": 1, "train.num_epochs": 10})
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "repro")
    make_picture(folder)
    yield folder
    run(folder, *CLI, "down")


def make_picture(folder: Path) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).line([(30, 10), (30, 50)], width=6)
    picture.save(folder / "picture.png")


def spoil(*patterns: str) -> Callable[[Path], None]:
    """Return a function that overwrites the middle of the files that match."""

    def work(folder: Path) -> None:
        files = [file for pattern in patterns for file in folder.glob(pattern)]
        assert files
        for file in files:
            content = bytearray(file.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 8] = bytes(8)
            file.unlink()  # it may be a link into DVC's cache
            file.write_bytes(content)

    return work


def behead(path: Path) -> Callable[[Path], None]:
    """Return a function that overwrites the start of a file; SQLite has no checksum of the rest."""

    def work(folder: Path) -> None:
        with (folder / path).open("r+b") as stream:
            stream.write(bytes(100))

    return work


def remove(*names: str) -> Callable[[Path], None]:
    """Return a function that removes files and folders."""

    def work(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return work


def truncate(path: Path) -> Callable[[Path], None]:
    """Return a function that leaves only the first byte of a file."""
    return lambda folder: os.truncate(folder / path, 1)


def in_registry(code: str) -> Callable[[Path], None]:
    """Return a function that changes the registry as a user of MLflow's page does; the code has `client`."""

    def work(folder: Path) -> None:
        uri = paths.sqlite_uri(folder / paths.MLFLOW_DB)
        script = f"from mlflow import MlflowClient\nclient = MlflowClient({uri!r})\n{code}"
        subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment(), check=True)

    return work


@dataclass(frozen=True, kw_only=True)
class Case:
    """What breaks, the command that then fails, and the remedy that its error names."""

    breaks: Callable[[Path], None]
    command: tuple[str, ...]
    code: int
    remedy: str


NO_GIT = "DVC without Git; the lineage records this"
REGISTER = "rm reports/registration.json && dvc repro"
CASES = {
    "predict without a registry": Case(breaks=remove(".state"), command=PREDICT, code=3, remedy=REGISTER),
    "summary without a registry": Case(breaks=remove(".state"), command=(*CLI, "summary"), code=4, remedy=REGISTER),
    "predict by name without a registry": Case(
        breaks=remove(".state"), command=(*PREDICT, "--model", "digits-classifier/1"), code=2, remedy=REGISTER
    ),
    "a damaged registry": Case(
        breaks=behead(Path(".state/mlflow.db")),
        command=(*STAGE, "register"),
        code=4,
        remedy="mv .state/mlflow.db .state/mlflow.db.damaged && rm -f reports/registration.json && dvc repro",
    ),
    "a champion without its alias": Case(
        breaks=in_registry("client.delete_registered_model_alias('digits-classifier', 'champion')"),
        command=PREDICT,
        code=3,
        remedy=REGISTER,
    ),
    "a deleted registered model": Case(
        breaks=in_registry("client.delete_registered_model('digits-classifier')"),
        command=PREDICT,
        code=3,
        remedy=REGISTER,
    ),
    "a champion without its files": Case(breaks=remove(".state/mlflow"), command=PREDICT, code=4, remedy=REGISTER),
    "a damaged champion": Case(
        breaks=spoil(".state/mlflow/*/artifacts/model/model.safetensors"), command=PREDICT, code=4, remedy=REGISTER
    ),
    "a missing report": Case(
        breaks=remove("reports/evaluation.json"), command=(*CLI, "summary"), code=4, remedy="dvc repro"
    ),
    "an incomplete report": Case(
        breaks=lambda folder: write_json(folder / paths.EVALUATION, {}),
        command=(*CLI, "summary"),
        code=4,
        remedy="dvc repro",
    ),
    "a report that is not JSON": Case(
        breaks=truncate(paths.EVALUATION),
        command=(*STAGE, "register"),
        code=4,
        remedy="dvc repro evaluate",
    ),
    "a registration that is missing": Case(
        breaks=remove("reports/registration.json"), command=(*STAGE, "report"), code=4, remedy="dvc repro"
    ),
    "a missing candidate": Case(
        breaks=remove("models/candidate"), command=(*STAGE, "evaluate"), code=4, remedy="dvc repro"
    ),
    "damaged raw rows": Case(
        breaks=spoil("data/raw/train.parquet"),
        command=(*STAGE, "normalize"),
        code=4,
        remedy="dvc repro --force ingest",
    ),
    "damaged normalized rows": Case(
        breaks=spoil("data/normalized/train.parquet"),
        command=(*STAGE, "baseline"),
        code=4,
        remedy="dvc repro --force normalize",
    ),
}


@pytest.mark.chaos
@pytest.mark.services
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_that_an_error_names_cures_it(rebuilt: Path, name: str) -> None:
    case = CASES[name]
    case.breaks(rebuilt)
    output = run(rebuilt, *case.command, code=case.code)
    assert f"run: {case.remedy}" in output.replace("\n", " "), output
    assert "Traceback" not in output
    run(rebuilt, "sh", "-c", case.remedy)
    run(rebuilt, *case.command)
    run(rebuilt, *PREDICT)


@pytest.mark.chaos
@pytest.mark.services
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_replaced_files_among_the_users_own_images_are_read_again(rebuilt: Path) -> None:
    params = (rebuilt / "params.yaml").read_text()
    set_params(rebuilt, **{"ingest.dataset": "idx", "ingest.name": "mine"})
    write_idx(rebuilt / "inputs", seed=1)
    run(rebuilt, "dvc", "repro", "ingest")
    first = (rebuilt / "data/raw/train.parquet").read_bytes()
    assert "Running stage" not in run(rebuilt, "dvc", "repro", "ingest")
    write_idx(rebuilt / "inputs", seed=2)
    assert "Running stage 'ingest'" in run(rebuilt, "dvc", "repro", "ingest")
    assert (rebuilt / "data/raw/train.parquet").read_bytes() != first
    for file in (rebuilt / "inputs").glob("*ubyte"):
        file.unlink()
    (rebuilt / "params.yaml").write_text(params)
    run(rebuilt, "dvc", "repro")


@pytest.mark.chaos
@pytest.mark.services
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["prefect", "ray", "both", "a frozen ray"])
def test_a_training_ends_with_the_services_that_it_joined(rebuilt: Path, name: str) -> None:
    set_params(rebuilt, **{"train.num_epochs": 60})  # some ten seconds
    shutil.rmtree(rebuilt / paths.RUNS, ignore_errors=True)  # nothing to resume
    run(rebuilt, *CLI, "up")
    with (rebuilt / "train.log").open("w+") as log:
        command = ["dvc", "repro", "--force", "--single-item", "train"]
        process = subprocess.Popen(command, cwd=rebuilt, env=environment(), stdout=log, stderr=log)
        wait_until(lambda: re.search(r"epoch \d+/60", (rebuilt / "train.log").read_text()) is not None, seconds=300)
        began = time.monotonic()
        if name == "both":
            run(rebuilt, *CLI, "down")
        elif name == "a frozen ray":
            for one in family(recorded(rebuilt)["ray"].pid):
                one.suspend()
        else:
            os.killpg(recorded(rebuilt)[name].pid, signal.SIGKILL)
        process.wait(60)
    output = (rebuilt / "train.log").read_text()
    print(f"ended {time.monotonic() - began:.1f} s after {name}")
    assert time.monotonic() - began < LIMIT_SECONDS
    assert process.returncode != 0
    frozen = "does not answer: no reply to 3 probes; run: mnist-pipe down && mnist-pipe up && dvc repro\n"
    ended = "was stopped while this stage used it; run: mnist-pipe up && dvc repro\n"
    assert (frozen if name == "a frozen ray" else ended) in output, output[-3000:]
    run(rebuilt, *CLI, "down")
    run(rebuilt, "dvc", "repro")


@pytest.mark.services
@pytest.mark.parametrize(
    ("git", "missing", "remedy"),
    [
        (True, ".dvc", "dvc init"),
        (False, ".dvc", "dvc init --no-scm"),
        (False, ".git", "dvc config --local core.no_scm true"),
    ],
)
def test_doctors_remedy_for_a_checkout_cures_it(tmp_path: Path, git: bool, missing: str, remedy: str) -> None:
    folder = copy_tree(tmp_path / "main")
    if git:
        run(folder, "git", "init", "-q")
    shutil.rmtree(folder / missing, ignore_errors=True)
    assert str(dict(doctor.examine(folder))["versioning"]).endswith(f"; run: {remedy}")
    run(folder, "sh", "-c", remedy)
    assert dict(doctor.examine(folder))["versioning"] == ("DVC with Git" if git else NO_GIT)


def write_idx(folder: Path, *, seed: int) -> None:
    """Write the four IDX files of random images, ten of each class."""
    random = np.random.default_rng(seed)
    for name in ("train", "t10k"):
        images = random.integers(0, 256, (100, 28, 28), dtype=np.uint8)
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(100) % 10).astype(np.uint8)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + (100).to_bytes(4, "big") + labels.tobytes()
        )


DOCTOR = "test_doctors_remedy_for_a_checkout_cures_it"
ELSEWHERE = {
    "dvc repro --force ingest && dvc repro": "needs a mirror that comes back; its parts are above",
    "dvc repro search": "like `dvc repro evaluate`",
    "dvc repro train": "like `dvc repro evaluate`",
    "dvc repro register": "like `dvc repro evaluate`",
    "dvc repro --force evaluate": "like `dvc repro --force normalize`, with a training",
    "dvc repro --force": "the default of a table that no stage reads so",
    "dvc --cd studies repro ": "tests/studies/test_repro.py",
    "dvc init": DOCTOR,
    "dvc init --no-scm": DOCTOR,
    "dvc config --local core.no_scm true": DOCTOR,
    "dvc exp run -S ingest.dataset=": "tests/test_export.py",
    "mnist-pipe up": "tests/test_services.py",
    "mnist-pipe down && mnist-pipe up && dvc repro": "test_a_training_ends_with_the_services_that_it_joined",
    "mnist-pipe up && dvc repro": "test_a_training_ends_with_the_services_that_it_joined, without the first",
    "mnist-pipe doctor --fix": "tests/test_dvc_files.py",
    "mnist-pipe doctor --fix, then: ": "tests/test_dvc_stages.py",
    "mnist-pipe deploy": "tests/cluster/test_deploy.py",
    "make run": "needs another Python",
    "make .venv/.run, or put the Python of the project's environment first on PATH": "tests/test_interpreter.py",
    "ulimit -n 4096": "tests/test_doctor.py",
    "rm -r ": "tests/test_registry.py",
    "rm ": "above: the path of the registration",
    "mv ": "above: the path of the database",
    "": "above or in tests/test_services.py: the whole command is computed",
}
"""The remedies that no case above takes, by the text of the source after `run: `, and why or where else."""


def remedies() -> set[str]:
    """Return the constant text after `run: ` of every string in the project's source."""
    found = set()
    for folder in ("mnist_pipe", "pipelines", "studies"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                    found |= set(re.findall(r"(?:^|[,;] |and )run: ([^;]*)", node.value))
    return found


def test_every_remedy_of_the_source_is_taken_by_a_test() -> None:
    taken = {case.remedy for case in CASES.values()}
    assert remedies() - taken - ELSEWHERE.keys() == set()
