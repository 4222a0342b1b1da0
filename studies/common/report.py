"""What a study measured, as its table, its figures and its section of the READMEs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_pipe import atomic, paths
from studies import STUDIES
from studies.common import catalogue, table
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.table import Row

README = paths.STUDIES / "README.md"
_PROJECT_README = Path("README.md")


def report(study: str) -> str:
    """Write everything that is shown of `study` and return its verdicts, counted.

    Raises:
        InputError: a figure that the study is compared with is not in `published.csv`.
        CorruptDataError: the study has not been measured.
    """
    findings, folder = catalogue.findings_of(study), paths.STUDIES / study
    runs, conclusions = measured(study)
    rows = findings.rows(runs, conclusions, Published())
    atomic.write_bytes(folder / "table.csv", table.csv(rows))
    pictures = findings.draw(folder, runs, conclusions)
    text = [
        f"## {study}",
        f"*{findings.TITLE[0].upper()}{findings.TITLE[1:]}.*",
        re.sub(r"(\d)%", r"\1 %", findings.tell(runs, rows, conclusions)),  # as this project writes it
        table.markdown(table.COLUMNS, [table.cells(row) for row in rows]),
        *(f"![{Path(picture).stem} of {study}]({study}/{picture})" for picture in pictures),
        _cost(atomic.read_json(folder / paths.STUDY_TIMES)),
    ]
    _replace(README, study, lambda _: "\n\n".join(text))
    _replace(_PROJECT_README, "studies", lambda before: with_systems(before, study, rows))
    counted = Counter("missed" if row.verdict.startswith("missed") else row.verdict for row in rows)
    return ", ".join(f"{number} {verdict}" for verdict, number in counted.items())


def measured(study: str) -> tuple[list[Run], Mapping[str, Any]]:
    """The runs of `study` and what was concluded from them.

    Raises:
        CorruptDataError: there are none.
    """
    path = paths.STUDIES / study / paths.STUDY_RUNS
    content = atomic.read_json(path, fix=f"run: dvc repro studies/dvc.yaml:{study}")
    return [Run(**entry, seconds=0.0, address="") for entry in content["runs"]], content["conclusions"]


def with_systems(before: str, study: str, rows: Sequence[Row]) -> str:
    """The table `before` of every study's systems, with the rows of `study` as they are now; the others' stay."""
    first_cell = {name: f"[{name}](studies/README.md#{name})" for name in STUDIES}
    head, rule, *lines = before.splitlines()
    by_study = {name: [line for line in lines if line.startswith(f"| {first_cell[name]} |")] for name in STUDIES}
    by_study[study] = []
    for row in rows:
        if row.headline:
            system, variant, measure, published, ours, _, verdict, _ = table.cells(row)
            cells = (first_cell[study], f"{system}, {variant}", measure, published, ours, verdict)
            by_study[study].append(table.line(cells))
    return "\n".join([head, rule, *(line for own in by_study.values() for line in own)])


def _cost(times: Mapping[str, Any]) -> str:
    where = f"{times['num_cpus']} processors of an {times['processor']}"
    where += f" and {times['num_gpus']} GPUs" if times["num_gpus"] else ", no GPU"
    wall = f"{times['wall_seconds'] / 60:.1f} minutes, " if "wall_seconds" in times else "interrupted and resumed, "
    work = f"{times['run_seconds'] / 60:.1f} one after the other"
    if "processor_seconds" in times:  # less where others used the machine too
        work += f", {times['processor_seconds'] / 60:.1f} of a processor's work"
    return f"*{len(times['runs'])} runs in {wall}{work}; {where}, torch {times['torch']}.*"


def _replace(path: Path, mark: str, change: Callable[[str], str]) -> None:
    """Put what `change` makes of the text between the marks `mark` of the file in its place."""
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    old, end, after = rest.partition(f"<!-- /{mark} -->")
    assert start, f"{path} has no mark {mark}"
    assert end, f"{path} has no end of {mark}"
    atomic.write_bytes(path, f"{before}{start}{change(old)}\n{end}{after}".encode())
