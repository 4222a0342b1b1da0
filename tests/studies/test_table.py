"""The table of a study: verdicts, and published figures that are found or told to be missing."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_pipe import paths
from mnist_pipe.errors import InputError
from studies.common import report, table
from studies.common.published import Figure, Published
from studies.common.table import Row
from tests.conftest import ROOT

PUBLISHED = Published(ROOT / paths.PUBLISHED)


def _row(values: list[float], *, published: float | None, metric: str = "test_error", decimals: int = 1) -> Row:
    figure = (
        None if published is None else Figure(value=published, unit="%", setting="", reference="", decimals=decimals)
    )
    return Row(system="s", variant="v", metric=metric, values=values, unit="%", published=figure)


@pytest.mark.parametrize(
    ("values", "published", "metric", "verdict"),
    [
        ([1.0, 1.1], 1.1, "test_error", "reached"),
        ([1.14, 1.14], 1.1, "test_error", "reached, as rounded"),
        ([1.1, 1.5], 1.2, "test_error", "within two deviations"),
        ([1.5, 1.5], 1.2, "test_error", "missed by 0.30 %"),
        ([99.0, 99.2], 99.0, "test_accuracy", "reached"),
        ([98.0, 98.0], 99.0, "test_accuracy", "missed by 1.00 %"),
        ([0.04, 0.04], 0.2, "train_loss", "reached"),
        ([5.0], None, "test_error", "not published"),
        ([1.3], 1.2, "test_error", "missed by 0.10 %"),  # one value has no deviation to be within
    ],
)
def test_the_verdict_follows_the_numbers(
    values: list[float], published: float | None, metric: str, verdict: str
) -> None:
    assert _row(values, published=published, metric=metric).verdict == verdict


def test_a_row_shows_mean_deviation_and_difference() -> None:
    row = _row([1.0, 1.2, 1.1], published=1.5)
    assert row.shown() == "1.10 % ± 0.10 %"
    assert table.cells(row)[3:7] == ("1.5 %", "1.10 % ± 0.10 %", "-0.40", "reached")


def test_columns_without_content_are_left_out_of_the_markdown() -> None:
    assert (
        table.markdown(("a", "b", "c"), [("1", "", "2"), ("3", "", "")])
        == "| a | c |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"
    )


def test_the_csv_has_the_value_of_every_seed() -> None:
    (line,) = csv.DictReader(io.StringIO(table.csv([_row([1.0, 1.25], published=2.0)]).decode()))
    assert (line["values"], line["num_seeds"], line["mean"], line["difference"]) == ("1 1.25", "2", "1.125", "-0.875")


def test_every_published_figure_has_a_source_and_can_be_found() -> None:
    rows = list(csv.DictReader((ROOT / paths.PUBLISHED).open()))
    for row in rows:
        assert row["reference"], row
        found = PUBLISHED.find(row["system"], row["variant"], row["metric"], setting=row["setting"])
        assert (found.value, found.reference) == (float(row["value"]), row["reference"])


def test_a_missing_figure_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError) as caught:
        PUBLISHED.find("LeNet-6", "plain", "test_error")
    assert str(caught.value) == (
        f"{ROOT / paths.PUBLISHED}: system must have a row for LeNet-6, plain, test_error, "
        "but got none with system 'LeNet-6'; did you mean 'LeNet-5'?"
    )


def test_figures_that_only_their_setting_tells_apart_are_asked_for_by_it() -> None:
    reported = ("CNN 32-64 + max-pool + 128", "rotation 10 + translation 0.1; Adam 1e-3; NLL", "test_accuracy")
    assert PUBLISHED.find(*reported, setting="epoch 4").value == 99.08
    with pytest.raises(InputError, match=r"tell the rows of .* apart by their setting, but got 5 rows"):
        PUBLISHED.find(*reported)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file must be a readable table"),
        ("system,value\na,1\n", "the table must have the columns source, system"),
    ],
)
def test_a_damaged_table_is_told_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "published.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Published(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_study_renews_its_own_rows_among_the_systems_and_leaves_the_others() -> None:
    head, rule = "| study | system |", "| --- | --- |"
    linear, cnn, frontier = (
        f"| [{name}](studies/README.md#{name}) | old | |" for name in ("lecun1998", "cnn", "frontier")
    )
    row = _row([1.0, 1.2], published=None)
    new = "| [cnn](studies/README.md#cnn) | s, v | test error |  | 1.10 % ± 0.14 % | not published |"
    full, without = ("\n".join([head, rule, *lines]) for lines in ([linear, cnn, frontier], [linear, frontier]))
    for before in (full, without):
        found = report.with_systems(before, "cnn", [row, replace(row, headline=False)])
        assert found.splitlines() == [head, rule, linear, new, frontier]
