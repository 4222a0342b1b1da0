"""What a study measured, as its table, its figures and its section of the READMEs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_pipe import atomic, paths
from mnist_pipe.evaluation import markdown
from studies import STUDIES
from studies.common import catalogue, table
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.study import Measured
from studies.common.table import Row

README = paths.STUDIES / "README.md"
_PROJECT_README = Path("README.md")


def report(name: str) -> str:
    """Write everything that is shown of the study `name` and return its verdicts, counted.

    Raises:
        InputError: a figure that the study is compared with is not in `published.csv`.
        CorruptDataError: the study has not been measured.
    """
    study, folder = catalogue.study_of(name), paths.STUDIES / name
    found = measured(name)
    rows = study.rows(found)
    atomic.write_bytes(folder / "table.csv", table.csv(rows))
    pictures = study.draw(folder, found)
    text = [
        f"## {name}",
        f"*{study.title[0].upper()}{study.title[1:]}.*",
        re.sub(r"(\d)%", r"\1 %", study.render_findings(found, rows)),  # as this project writes it
        table.without_empty(table.COLUMNS, [table.cells(row) for row in rows]),
        *(f"![{Path(picture).stem} of {name}]({name}/{picture})" for picture in pictures),
        _cost(atomic.read_json(folder / paths.STUDY_TIMES)),
    ]
    markdown.replace_region(README, name, lambda _: "\n\n".join(text))
    markdown.replace_region(_PROJECT_README, "studies", lambda before: with_systems(before, name, rows))
    counted = Counter("missed" if row.verdict.startswith("missed") else row.verdict for row in rows)
    return ", ".join(f"{number} {verdict}" for verdict, number in counted.items())


def measured(name: str) -> Measured:
    """What the study `name` measured, beside what was published.

    Raises:
        InputError: `published.csv` is damaged.
        CorruptDataError: the study has not been measured.
    """
    path = paths.STUDIES / name / paths.STUDY_RUNS
    content = atomic.read_json(path, fix=f"run: dvc repro studies/dvc.yaml:{name}")
    runs = [Run(**entry) for entry in content["runs"]]
    return Measured(runs=runs, conclusions=content["conclusions"], published=Published())


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
            by_study[study].append(markdown.row(cells))
    return "\n".join([head, rule, *(line for own in by_study.values() for line in own)])


def _cost(times: Mapping[str, Any]) -> str:
    where = f"{times['num_cpus']} processors of an {times['processor']}"
    where += f" and {times['num_gpus']} GPUs" if times["num_gpus"] else ", no GPU"
    wall = f"{times['wall_seconds'] / 60:.1f} minutes, " if "wall_seconds" in times else "interrupted and resumed, "
    work = f"{times['run_seconds'] / 60:.1f} one after the other"
    if "processor_seconds" in times:  # less where others used the machine too
        work += f", {times['processor_seconds'] / 60:.1f} of a processor's work"
    return f"*{len(times['runs'])} runs in {wall}{work}; {where}, torch {times['torch']}.*"
