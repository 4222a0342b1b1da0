"""Test the verdicts and the CSV file of a study's table."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from studies.common import table
from studies.common.published import PublishedResult
from studies.common.table import Row


def _row(values: list[float], *, published: float | None, metric: str = "test_error", decimals: int = 1) -> Row:
    result = (
        None
        if published is None
        else PublishedResult(value=published, unit="%", setting="", reference="", decimals=decimals)
    )
    return Row(system="s", variant="v", metric=metric, values=values, unit="%", published=result)


@pytest.mark.parametrize(
    ("values", "published", "metric", "verdict"),
    [
        ([1.0, 1.1], 1.1, "test_error", "reproduced"),
        ([0.50, 0.51], 1.1, "test_error", "differs: better"),
        ([99.0, 99.0], 98.0, "test_accuracy", "differs: better"),
        ([98.0, 98.0], 99.0, "test_accuracy", "differs: worse"),
        ([0.04, 0.04], 0.2, "train_loss", "differs: better"),
        ([5.0], None, "test_error", ""),
    ],
)
def test_the_verdict_follows_the_numbers(
    values: list[float], published: float | None, metric: str, verdict: str
) -> None:
    assert _row(values, published=published, metric=metric).verdict == verdict


def test_another_setting_is_not_comparable_and_the_row_says_why() -> None:
    row = dataclasses.replace(_row([1.0, 1.1], published=1.1), not_comparable="another system", note="n")
    assert row.verdict == "not comparable"
    assert table.cells(row)[-1] == "another system; n"


def test_a_row_shows_mean_deviation_and_difference() -> None:
    row = _row([1.0, 1.2, 1.1], published=1.5)
    assert row.shown() == "1.10 % ± 0.10 %"
    assert table.cells(row)[3:8] == ("1.5 %", "1.10 % ± 0.10 %", "3", "-0.40", "reproduced")


def test_columns_without_content_are_left_out_of_the_markdown() -> None:
    assert (
        table.without_empty(("a", "b", "c"), [("1", "", "2"), ("3", "", "")])
        == "| a | c |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"
    )


def test_the_csv_has_the_value_of_every_seed() -> None:
    (line,) = csv.DictReader(io.StringIO(table.csv([_row([1.0, 1.25], published=2.0)]).decode()))
    assert (line["values"], line["num_seeds"], line["mean"], line["difference"]) == ("1 1.25", "2", "1.125", "-0.875")


@pytest.mark.parametrize(
    ("p_value", "text"),
    [
        (0.00009, "p < 0.0001"),
        (0.0123, "p = 0.012"),
        (0.049716, "p = 0.0497"),
        (0.04999999, "p = 0.04999999"),
        (0.05, "p = 0.05"),
        (1.0, "p = 1"),
    ],
)
def test_a_p_value_is_never_rounded_across_the_significance_level(p_value: float, text: str) -> None:
    assert table.probability(p_value) == text
