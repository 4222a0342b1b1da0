"""Test the row that a study writes into the project's README."""

from __future__ import annotations

import dataclasses

from studies.common import report
from studies.common.published import PublishedResult
from studies.common.table import Row

TIMES = {"date": "2026-11-27", "commit": "abc1234", "hardware": "2 CPU cores of X, no GPU", "torch": "2"}
ROW = Row(system="s", variant="v", metric="test_error", values=[1.0, 1.2], unit="%", published=None)


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


def test_the_summary_counts_the_published_results_that_are_reached() -> None:
    rows = [published(2.0), published(0.1), ROW]
    assert report.summary("cnn", "t", rows, TIMES) == (
        "[cnn](studies/README.md#cnn)", "t", "1 of 2 published results reached",
        "2026-11-27, 2 CPU cores of X, no GPU, `abc1234`",
    )  # fmt: skip


def test_the_summary_without_published_results_is_our_best() -> None:
    worse = dataclasses.replace(ROW, system="other", values=[3.0, 3.1])
    assert report.summary("cnn", "t", [worse, ROW], TIMES)[2] == "s: 1.10 % ± 0.14 % test error"
