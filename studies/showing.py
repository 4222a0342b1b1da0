"""What a study measured, as its table, its figures and its section of the READMEs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_pipe import files, layout
from mnist_pipe.runs import Run
from studies import STUDIES, catalogue, table
from studies.published import Published
from studies.table import Row

README = layout.STUDIES / "README.md"
_PROJECT_README = Path("README.md")
_HEAD = ("study", "system", "measured", "published", "ours", "verdict")


def show(study: str) -> str:
    """Write everything that is shown of `study` and return its verdicts, counted.

    Raises:
        InputError: a figure that the study is compared with is not in `published.csv`.
        CorruptDataError: the study has not been measured.
    """
    findings, folder = catalogue.findings_of(study), layout.STUDIES / study
    runs, conclusions = measured(study)
    rows = findings.rows(runs, conclusions, Published())
    files.write_bytes(folder / "table.csv", table.csv(rows))
    pictures = findings.draw(folder, runs, conclusions)
    text = [
        f"## {study}",
        f"*{findings.TITLE[0].upper()}{findings.TITLE[1:]}.*",
        re.sub(r"(\d)%", r"\1 %", findings.tell(runs, rows, conclusions)),  # as this project writes it
        table.markdown(table.COLUMNS, [table.cells(row) for row in rows]),
        *(f"![{Path(picture).stem} of {study}]({study}/{picture})" for picture in pictures),
        _cost(files.read_json(folder / layout.STUDY_TIMES)),
    ]
    _place(README, study, "\n\n".join(text))
    _place(_PROJECT_README, "studies", systems())
    counted = Counter("missed" if row.verdict.startswith("missed") else row.verdict for row in rows)
    return ", ".join(f"{number} {verdict}" for verdict, number in counted.items())


def measured(study: str) -> tuple[list[Run], Mapping[str, Any]]:
    """The runs of `study` and what was concluded from them.

    Raises:
        CorruptDataError: there are none.
    """
    path = layout.STUDIES / study / layout.STUDY_RUNS
    content = files.read_json(path, fix=f"run: dvc repro studies/dvc.yaml:{study}")
    return [Run(**entry, seconds=0.0, address="") for entry in content["runs"]], content["conclusions"]


def systems() -> str:
    """The table of the systems of every study that has been measured."""
    lines = []
    for study in STUDIES:
        if (layout.STUDIES / study / layout.STUDY_RUNS).exists():
            rows: Sequence[Row] = catalogue.findings_of(study).rows(*measured(study), Published())
            link = f"[{study}](studies/README.md#{study})"
            for row in rows:
                if row.headline:
                    system, variant, measure, published, ours, _, verdict, _ = table.cells(row)
                    lines.append((link, f"{system}, {variant}", measure, published, ours, verdict))
    return table.markdown(_HEAD, lines)


def _cost(times: Mapping[str, Any]) -> str:
    where = f"{times['num_cpus']} processors of an {times['processor']}"
    where += f" and {times['num_gpus']} GPUs" if times["num_gpus"] else ", no GPU"
    wall = f"{times['wall_seconds'] / 60:.1f} minutes, " if "wall_seconds" in times else "interrupted and resumed, "
    work = f"{times['run_seconds'] / 60:.1f} one after the other"
    if "processor_seconds" in times:  # less where others used the machine too
        work += f", {times['processor_seconds'] / 60:.1f} of a processor's work"
    return f"*{len(times['runs'])} runs in {wall}{work}; {where}, torch {times['torch']}.*"


def _place(path: Path, mark: str, text: str) -> None:
    """Put `text` between the marks `mark` of the file."""
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    assert start, f"{path} has no mark {mark}"
    assert end, f"{path} has no end of {mark}"
    files.write_bytes(path, f"{before}{start}{text}\n{end}{after}".encode())
