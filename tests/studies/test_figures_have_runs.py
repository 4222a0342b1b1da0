"""Law: a sentence about results takes its figures from the runs; a figure that is typed quotes a source, named here."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import studies
from studies.common import catalogue, report

FOLDER = Path(studies.__file__).parent
MODULES = sorted(FOLDER.glob("*/findings.py"))
FIGURE = re.compile(r"(?<![\w.])\d+(?:,\d{3})+|(?<![\w.])\d+\.\d+(?: ?%)?|(?<![\w.])\d+ ?%")
QUOTED = {  # of each study, what is typed because it is said elsewhere
    "lecun1998": {
        "340,908": "connections of LeNet-5, section II.B",
        "401,000": "connections of LeNet-5, figure 11",
        "17,000": "parameters of LeNet-4, section III.C.5",
        "60,000": "training rows of MNIST",
        "4 %": "tolerance of tests/studies/test_lecun1998.py",
        "5 %": "a level of significance",
    },
    "gradient_descent": {
        "60,000": "training rows of MNIST",
        "6,000": "steps of ten epochs in the lesson",
        "90 %": "a level, not a result",
        "5 %": "a level of significance",
    },
    "cnn": {
        **dict.fromkeys(["0.1", "1.0", "0.7"], "the settings of a row of published.csv"),
        **dict.fromkeys(["98.7", "98.9 %"], "the report's range, as in published.csv"),
    },
    "ladder": {"60,000": "training rows of MNIST", "50 %": "a level, not a result"},
    "frontier": {"60,000": "training rows of MNIST", "95 %": "the level of an interval"},
}


def typed(module: Path) -> set[str]:
    """Return the figures in the strings of a module, without its docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    )
    return {figure for text in texts for figure in FIGURE.findall(text)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.parent.name)
def test_no_figure_of_a_result_is_typed(module: Path) -> None:
    assert typed(module) == set(QUOTED.get(module.parent.name, {}))


@pytest.mark.parametrize("name", studies.STUDIES)
def test_the_findings_on_the_page_are_those_of_the_committed_runs(name: str) -> None:
    study, found = catalogue.study_of(name), report.measured(name)
    text = report._spaced(study.render_findings(found, study.rows(found)))
    assert text in report.README.read_text(encoding="utf-8")


def test_the_page_says_how_long_all_studies_take() -> None:
    times = (json.loads((FOLDER / name / "times.json").read_text()) for name in studies.STUDIES)
    hours = sum(each["wall_seconds"] for each in times) / 3600
    assert f"takes {hours:.0f} hours on two cores" in report.README.read_text(encoding="utf-8")


def test_a_typed_figure_is_found(tmp_path: Path) -> None:
    module = tmp_path / "findings.py"
    module.write_text(
        '"""Has 1.5 % in its docstring."""\nA = "0.0276 with batches of 32, 96.3 %"\nB = f"{1:.2f} of 55,000"\n'
    )
    assert typed(module) == {"0.0276", "96.3 %", "55,000"}
