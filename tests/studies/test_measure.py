"""Test the flow of a study: plan, follow-up plan and conclusions, and which results it stores."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mnist_pipe import paths
from mnist_pipe.cluster.storage import project_storage
from mnist_pipe.params.schema import Section
from pipelines import study as flow
from studies.common import catalogue
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run, ledger_of
from studies.common.study import Study
from tests.support import ROOT

pytestmark = pytest.mark.ray
LEDGER = "toy-runs-0"


class Params(Section):
    """Parameters of the toy study."""

    numbers: list[int]


def plan(params: Params) -> list[Config]:
    return [{"number": number} for number in params.numbers]


def plan_from_results(_: Params, done: Sequence[Run]) -> list[Config]:
    return [{"number": sum(run.result["square"] for run in done)}]


def run(config: Config, _: Splits) -> Result:
    return Result(metrics={"square": config["number"] ** 2}, intermediate={"number": config["number"]})


def conclude(done: Sequence[Run], _: Splits) -> dict[str, Any]:
    return {"numbers": [run.intermediate.get("number") for run in done]}


def study(**parts: Any) -> Study[Params]:
    """Return a study of the given parts, with empty tables and figures."""
    return Study(
        params=Params,
        run=run,
        question="",
        answer=lambda *_: "",
        rows=lambda _: [],
        draw=lambda *_: {},
        render_findings=lambda *_: "",
        **parts,
    )


def measure(monkeypatch: pytest.MonkeyPatch, folder: Path, chosen: Study[Params]) -> dict[str, Any]:
    """Run the flow's task, and return the content of `runs.json`."""
    monkeypatch.setattr(catalogue, "study_of", lambda _: chosen)
    monkeypatch.setattr(catalogue, "code_of", lambda _: {"a.py": "1"})
    monkeypatch.setattr(paths, "SPLITS", {})
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger(__name__))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # Ray's workers import this module from there
    monkeypatch.chdir(folder)
    times = flow.measure.fn("toy", {"numbers": [1, 2]}, LEDGER)
    found: dict[str, Any] = json.loads((folder / "studies/toy/runs.json").read_text())
    assert len(times["runs"]) == len(found["runs"])
    assert times["code"] == {"a.py": "1"}
    return found


def test_results_reach_later_runs_and_conclusions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = study(plan=plan, plan_from_results=plan_from_results, conclude=conclude)
    assert measure(monkeypatch, tmp_path, whole) == {
        "conclusions": {"numbers": [1, 2, 5]},
        "runs": [
            {"config": {"number": 1}, "result": {"square": 1}},
            {"config": {"number": 2}, "result": {"square": 4}},
            {"config": {"number": 5}, "result": {"square": 25}},
        ],
    }
    # Until it is forgotten, the ledger has the runs with everything that the conclusions need: none is recomputed.
    known = ledger_of(LEDGER, storage=project_storage(tmp_path)).read()
    assert sorted(run.intermediate["number"] for run in known) == [1, 2, 5]


@pytest.mark.long
def test_a_plan_is_enough_for_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(monkeypatch, tmp_path, study(plan=plan))
    assert found["conclusions"] == {}
    assert [run["result"]["square"] for run in found["runs"]] == [1, 4]


def test_a_finished_study_removes_its_ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = project_storage(tmp_path)
    ledger_of(LEDGER, storage=storage).record(Run(config={}, result={}), name="1")
    for name in (LEDGER, "another"):
        storage.write_json(f"trials/{name}/00001.json", {})
    flow.forget.fn(LEDGER)
    assert ledger_of(LEDGER, storage=storage).read() == []
    assert storage.names("trials") == ["another"]
