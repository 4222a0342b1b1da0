"""Test the row that a study writes into the project's README."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mnist_pipe import paths
from mnist_pipe.errors import CorruptDataError
from studies.common import catalogue, report
from studies.common.published import PublishedResult
from studies.common.table import Row
from tests.support import ROOT

TIMES = {"date": "2026-11-27", "commit": "abc1234", "hardware": "2 CPU cores of X, no GPU", "torch": "2"}
ROW = Row(system="s", variant="v", metric="test_error", values=[1.0, 1.2], unit="%", published=None)


def times() -> dict[str, object]:
    """Return `TIMES` of the study `cnn`, measured by the present code."""
    return {**TIMES, "code": catalogue.code_of("cnn")}


def published(value: float) -> Row:
    """Return `ROW` compared with a published value."""
    result = PublishedResult(value=value, unit="%", setting="", reference="", decimals=1)
    return dataclasses.replace(ROW, published=result)


def test_a_study_replaces_only_its_own_row() -> None:
    note, blank, head, rule = "*Generated*", "", "| study |", "| --- |"
    linear, frontier = (f"| [{name}](studies/README.md#{name}) | old |" for name in ("lecun1998", "frontier"))
    for middle in ([], ["| [cnn](studies/README.md#cnn) | old |"]):
        before = "\n".join([note, blank, head, rule, linear, *middle, frontier])
        assert report.with_study(before, "cnn", "| new |").splitlines()[4:] == [linear, "| new |", frontier]


def test_the_summary_counts_the_verdicts() -> None:
    rows = [published(1.0), published(-9.0), ROW]
    assert report.summary("cnn", "t", rows, times()) == (
        "[cnn](studies/README.md#cnn)", "t", "2 published results: 1 reproduced, 1 differs: worse",
        "2026-11-27, 2 CPU cores of X, no GPU, `abc1234`",
    )  # fmt: skip


def test_the_summary_without_published_results_is_our_best() -> None:
    worse = dataclasses.replace(ROW, system="other", values=[3.0, 3.1])
    assert report.summary("cnn", "t", [worse, ROW], times())[2] == "s: 1.10 % ± 0.14 % test error"


def test_a_study_that_other_code_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "code_of", lambda _: {"a.py": "1", "b.py": "2"})
    assert report.stale("cnn", {**TIMES, "code": {"a.py": "1", "b.py": "2"}}) == []
    old = {**TIMES, "code": {"a.py": "0", "b.py": "2"}, "runs": [], "run_seconds": 60}
    assert report.stale("cnn", old) == ["a.py"]
    assert report.stale("cnn", TIMES) == ["a.py", "b.py"]  # it isn't known what measured it
    assert report.summary("cnn", "t", [ROW], old)[3].endswith("`abc1234`, other code")
    assert report._cost("cnn", old).endswith("Measured by other code than the present: a.py.*")


def test_the_code_of_a_study_is_what_its_stage_depends_on() -> None:
    code = catalogue.code_of("cnn")
    assert {"mnist_pipe/models/cnn.py", "mnist_pipe/training/loop.py", "studies/cnn/runs.py"} <= code.keys()
    assert code["studies/cnn/runs.py"] == hashlib.md5(Path("studies/cnn/runs.py").read_bytes()).hexdigest()


def test_runs_without_what_the_findings_show_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "studies/frontier"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / paths.PUBLISHED, tmp_path / paths.PUBLISHED)
    for name, content in ((paths.STUDY_RUNS, {"runs": [], "conclusions": {}}), (paths.STUDY_TIMES, TIMES)):
        (folder / name).write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptDataError) as caught:
        report.report("frontier")
    assert str(caught.value) == (
        "studies/frontier/runs.json: the runs must be those of the present code, but got none with 'averages'; "
        "run: dvc --cd studies repro frontier"
    )
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"runs.json", "times.json", "published.csv"}
