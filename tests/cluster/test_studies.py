"""Test a study that a client triggers and whose runs use every node of the cluster."""

from __future__ import annotations

import json
import re

import pytest

from tests.cluster.project import Project, change

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STUDY = "gradient_descent"
SMALL = {
    f"{STUDY}.num_epochs": {"online": 1, "mini-batch": 1, "full batch": 1},
    f"{STUDY}.search_epochs": {"online": 1, "mini-batch": 1, "full batch": 1},
    f"{STUDY}.batch_sizes": {"online": 100, "mini-batch": 1000, "full batch": None},
    f"{STUDY}.num_search_seeds": 1,
    f"{STUDY}.num_seeds": 3,
}


def test_runs_of_a_study_use_both_nodes_and_are_returned(checkout: Project) -> None:
    change(checkout.folder / "studies/params.yaml", SMALL)
    done = checkout.run("dvc", "repro", "normalize", timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    done = checkout.run("dvc", "--cd", "studies", "repro", STUDY, timeout=800)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    assert len(set(re.findall(rf"{STUDY} on (\S+), ", output))) == 2, output[-5000:]
    measured = json.loads((checkout.folder / "studies" / STUDY / "runs.json").read_text())
    assert len(measured["runs"]) == 18
    assert f"({STUDY}/figure.png)" in (checkout.folder / "studies/README.md").read_text()
