"""Checkout on the client, with a search and a training that are small enough for two one-thread nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from tests.cluster.bed import ROOT, Bed, wait_for

SMALL: dict[str, Any] = {
    "baseline.num_epochs": 1,
    "search.num_trials": 10,
    "search.num_epochs": 2,
    "search.train_rows": 6000,
    "search.space.model": ["convnet"],
    "search.space.optimizer": ["adamw", "muon"],
    "train.num_epochs": 3,
}
RECIPE = {  # for the disturbed trainings: about 10 s an epoch on two nodes, and smooth enough to compare
    "model": "convnet",
    "optimizer": "nesterov",
    "learning_rate": 0.02,
    "weight_decay": 1e-4,
    "batch_size": 250,
    "rotation_degrees": 5.0,
    "translation_pixels": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """Checkout on the client, with the commands that tests run in it."""

    bed: Bed
    folder: Path

    def run(
        self, *command: str, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout, with `env` added to the environment of the client's shell."""
        return self.bed.run(
            "client", command, cwd=self.folder, env={**self.bed.client_env, **(env or {})}, timeout=timeout
        )

    def set(self, **values: Any) -> None:
        """Change params.yaml; `search__num_trials=3` sets `search.num_trials` to 3."""
        change(self.folder / "params.yaml", {key.replace("__", "."): value for key, value in values.items()})

    def history(self) -> pd.DataFrame:
        """Return the history of the last training, one row per epoch."""
        return pd.read_csv(self.folder / "reports/curves.csv")

    def copy(self, folder: Path) -> Project:
        """Copy the files to the new `folder`, except the state of runs, and return the copy."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(".state"))
        return replace(self, folder=folder)

    def train(self) -> pd.DataFrame:
        """Run the stage `train` to its end and return its history."""
        done = self.run("python", "-m", "pipelines", "train", timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return self.history()

    @contextmanager
    def training(self, name: str, *, ends_with: int = 0) -> Iterator[Training]:
        """Run the stage `train` as a process for the block to disturb; it must then end by itself with `ends_with`."""
        process = self.bed.spawn("client", name, ["python", "-m", "pipelines", "train"], cwd=self.folder)
        training = Training(project=self, name=name)
        try:
            yield training
            process.wait(600)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        assert process.returncode == ends_with, training.log[-3000:]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training that runs on the cluster and prints on the client."""

    project: Project
    name: str

    @property
    def log(self) -> str:
        return self.project.bed.log(self.name)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.project.bed.processes[self.name]

    def wait_for(self, text: str, *, count: int = 1, timeout: float = 240) -> float:
        """Wait until the client has printed `text` `count` times, and return the seconds that it took."""

        def alive() -> None:
            assert self.process.poll() is None or self.log.count(text) >= count, self.log[-3000:]

        try:
            return wait_for(
                lambda: self.log.count(text) >= count, f"{self.name}: {text}", during=alive, timeout=timeout
            )
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log[-3000:]}") from None


def make(bed: Bed, folder: Path) -> Project:
    """Create a Git checkout of the code under test, with uncommitted changes and with SMALL in its params."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    change(folder / "params.yaml", SMALL)
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "as it is"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return Project(bed=bed, folder=folder)


def change(path: Path, values: dict[str, Any]) -> None:
    """Set dotted keys of a YAML file."""
    yaml = YAML()
    content = yaml.load(path)
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = value
    yaml.dump(content, path)


def use_recipe(project: Project, **values: Any) -> None:
    """Make `train` train RECIPE with these params instead of the result of the search."""
    best = project.folder / "models/best.json"
    best.unlink(missing_ok=True)  # DVC's own file may be a link into its cache
    best.write_text(json.dumps({"config": RECIPE}))
    defaults = {
        "train__seed": 0,
        "train__num_epochs": 4,
        "train__num_workers": "auto",
        "train__data": "memory",
        "train__precision": "float32",
        "recipes__standard__model_params": {"channels": [8, 16, 32]},
        "recipes__standard__label_smoothing": 0.0,
        "recipes__standard__schedule": "one_cycle",
    }
    project.set(**{**defaults, **values})


def assert_histories_agree(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Check that every epoch's metrics agree up to the order in which sums were added."""
    assert list(ours.epoch) == list(theirs.epoch)
    for column, tolerance in (
        ("train_loss", 0.01),
        ("validation_loss", 0.01),
        ("train_accuracy", 0.004),
        ("validation_accuracy", 0.004),
    ):
        difference = (ours[column] - theirs[column]).abs().max()
        print(f"{column}: largest difference {difference:.5f}")
        assert difference <= tolerance, f"{column}:\n{ours[column].tolist()}\n{theirs[column].tolist()}"
