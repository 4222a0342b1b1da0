"""The report: one self-contained HTML page, which opens offline, on any machine, years from now.

The page runs no script and loads nothing: plots are inlined, and its content security policy forbids anything else. The
template engine escapes all values.
"""

from __future__ import annotations

import base64
import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mnist_pipe import paths, timings
from mnist_pipe.atomic import read_json
from mnist_pipe.data.facts import Facts, listed
from mnist_pipe.data.sources import SOURCES
from mnist_pipe.errors import CorruptDataError, one_line
from mnist_pipe.evaluation.importances import importances
from mnist_pipe.params.schema import SEARCHED

MAX_TRIALS = 200
"""Largest number of rows of the table of trials; a search may have far more trials."""
_TEMPLATE = Path(__file__).with_name("report.html")
_FIX = "run: dvc repro"
_NUMBER = re.compile(r"[\d.e+-]+")
_CREDENTIALS = re.compile(r"://[^/\s]+@")  # of a mirror; users share a page more readily than params.yaml


def render_page(root: Path, *, stages: Sequence[str] = ()) -> str:
    """Return the report on the project in the folder `root`, as HTML.

    Args:
        root: the folder with the outputs of all stages.
        stages: the names of the stages, in the order in which the page lists their times.

    Raises:
        CorruptDataError: a file that the report reads is missing or incomplete.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=format_percent,
        count=format_count,
        number=format_number,
        p_value=format_p_value,
        statistic=format_statistic,
        duration=format_duration,
    )
    try:
        return environment.get_template(_TEMPLATE.name).render(_content(root, stages=stages))
    except (jinja2.UndefinedError, KeyError, TypeError) as error:
        state = f"is incomplete: {one_line(error)}"
        raise CorruptDataError.missing("a report", state=state, where=root / paths.REPORTS, fix=_FIX) from error


def format_percent(share: float | None, digits: int = 2) -> str:
    """Format a share as a percentage: `0.9935` as `99.35 %`, and None as a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def format_count(number: int) -> str:
    """Format an integer with separators: `10000` as `10,000`."""
    return f"{number:,}"


def format_number(value: Any) -> str:
    """Format a float to four significant digits, an integer as `format_count` does, and any other value by `str`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return format_count(value) if isinstance(value, int) else f"{value:.4g}"


def format_p_value(p: float) -> str:
    """Format a p-value: `0.0123` as `0.012`, `3.2e-17` as `3 × 10⁻¹⁷`, and 0, which underflowed, as `< 10⁻³⁰⁰`."""
    if p == 0:
        return "< 10⁻³⁰⁰"
    if p >= 0.001:
        return f"{p:.2g}"
    digit, exponent = f"{p:.0e}".split("e")
    return f"{digit} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def format_statistic(value: float | Sequence[float]) -> str:
    """Format a mean or standard deviation of the pixels, which images in colour have for each channel."""
    return ", ".join(f"{one:.4f}" for one in listed(value))


def format_duration(seconds: float) -> str:
    """Format a duration in seconds: `95.2` as `1 min 35 s`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _content(root: Path, *, stages: Sequence[str]) -> dict[str, Any]:
    def load(path: Path) -> Any:
        return read_json(root / path, fix=_FIX)

    evaluation, best, card = load(paths.EVALUATION), load(paths.BEST), load(paths.CANDIDATE / paths.CARD)
    source = SOURCES.get(evaluation["dataset"])
    trials = sorted(_table(root / paths.TRIALS), key=_rank)
    seconds = {stage: entry.seconds for stage, entry in timings.read(root).items()}
    known = [stage for stage in stages if stage in seconds]
    return {
        "registration": load(paths.REGISTRATION),
        "evaluation": evaluation,
        "title": source.title if source else evaluation["dataset"],
        "citation": source.citation if source else "",
        "licence": source.licence if source else "",
        "data": load(paths.DATA_REPORT),
        "card": card,
        "facts": Facts.of(card),
        "best_trial": str(best["trial"]),
        "finals": best.get("final", []),
        "trials": trials[:MAX_TRIALS],
        "importances": [
            {"label": _label(one.field), **vars(one)} for one in importances([t for t in trials if _is_scored(t)])
        ],
        "searched": _searched(trials[:MAX_TRIALS]),
        "num_trials": len(trials),
        "statuses": dict(sorted(Counter(trial["status"] for trial in trials).items())),
        "epochs": _table(root / paths.CURVES),
        "confusions": _confusions(root / paths.CONFUSION),
        "timings": {stage: seconds[stage] for stage in [*known, *sorted(seconds.keys() - set(known))]},
        "params": _CREDENTIALS.sub("://…@", (root / paths.PARAMS).read_text(encoding="utf-8")),
        "images": {path.stem: _inline(path) for path in sorted((root / paths.PLOTS).glob("*.png"))},
    }


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        raise CorruptDataError.missing(path, fix=_FIX) from None


def _rank(trial: dict[str, str]) -> tuple[bool, float, int]:
    """Return a sort key that puts the best trial first, and trials without a valid score last."""
    scored = _is_scored(trial)
    return not scored, -float(trial["validation_accuracy"]) if scored else 0.0, int(trial["trial"])


def _is_scored(trial: Mapping[str, str]) -> bool:
    return trial["status"] in ("finished", "stopped") and trial["validation_accuracy"] != ""


def _label(column: str) -> str:
    """Return the header of a column of the table of trials."""
    field, _, argument = column.partition(".")
    return argument or SEARCHED[field].label


def _searched(trials: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return, for each searched field of a recipe in the table of trials, its header and its cells by trial."""
    columns = []
    for name in trials[0] if trials else ():
        field, _, _ = name.partition(".")
        if field not in SEARCHED:
            continue
        how = SEARCHED[field]
        filled = {trial["trial"]: trial[name] for trial in trials if trial[name] != ""}
        read = str if how.shown == "{}" else float
        shown = {number: how.shown.format(read(cell)) for number, cell in filled.items()}
        columns.append(
            {
                "label": _label(name),
                "is_text": not all(_NUMBER.fullmatch(cell) for cell in filled.values()),
                "cells": {trial["trial"]: shown.get(trial["trial"], "–") for trial in trials},
            }
        )
    return columns


def _confusions(path: Path) -> list[tuple[str, str, int]]:
    """Return (actual class, predicted class, rows) of each kind of mistake, the most frequent first."""
    pairs = Counter((row["actual"], row["predicted"]) for row in _table(path))
    mistakes = [(actual, predicted, rows) for (actual, predicted), rows in pairs.items() if actual != predicted]
    return sorted(mistakes, key=lambda mistake: (-mistake[2], mistake))


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
