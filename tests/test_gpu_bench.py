"""Test that the measurement on a GPU is ready to run: on a CPU it tries everything, and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from mnist_pipe import preflight
from mnist_pipe.training.recipe import recipe_of
from tests.support import ROOT


def test_the_goals_are_of_the_recipes_of_params_yaml() -> None:
    params = preflight.load_params(ROOT / "params.yaml")
    assert gpu.GOALS.keys() == params.recipes.keys() - {"fashion"}  # of another data set than MNIST
    for name, goal in gpu.GOALS.items():
        own = params.recipes[name]
        assert recipe_of(own.model_dump(), found={}, models={}) == replace(goal.recipe, precision="auto")
        assert (own.train_rows, own.test_time_augmentation) == (goal.train_rows, goal.test_time_augmentation)


def test_a_part_that_fails_stops_no_other_and_none_starts_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: gpu.Bench) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu, "PARTS", {"first": fail, "second": lambda _: {"rate": 1}})
    saved: list[dict[str, object]] = []
    bench = object.__new__(gpu.Bench)
    assert gpu.measure(bench, ["first", "second"], budget_seconds=60, save=lambda found: saved.append({**found})) == 1
    assert "second" not in saved[0]
    assert saved[1]["first"] == {"failed": "RuntimeError: no memory", "at": saved[1]["first"]["at"]}  # type: ignore[index]
    assert saved[1]["second"] == {"rate": 1}
    assert {"date", "commit", "hardware", "torch"} <= saved[1].keys()
    assert gpu.measure(bench, ["first"], budget_seconds=-1, save=lambda found: saved.append({**found})) == 0
    assert saved[-1]["first"] == {"skipped": "0 s were spent"}


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_a_dry_run_tries_every_part_and_writes_nothing(mnist_mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--mnist", str(mnist_mirror), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"failed"' not in done.stdout
    assert all(f"\n{name} {{" in done.stdout for name in gpu.PARTS)
    assert not output.exists()
