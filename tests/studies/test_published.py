"""Test that published values are found, or reported as missing in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mnist_pipe import paths
from mnist_pipe.errors import InputError
from studies.common.published import Published
from tests.support import ROOT

PUBLISHED = Published(ROOT / paths.PUBLISHED)


def test_every_published_result_has_a_source_and_can_be_found() -> None:
    rows = list(csv.DictReader((ROOT / paths.PUBLISHED).read_text().splitlines()))
    for row in rows:
        assert row["reference"], row
        found = PUBLISHED.find(row["system"], row["variant"], row["metric"], setting=row["setting"])
        assert (found.value, found.reference) == (float(row["value"]), row["reference"])


def test_a_missing_result_is_reported_with_a_suggestion() -> None:
    with pytest.raises(InputError) as caught:
        PUBLISHED.find("LeNet-6", "plain", "test_error")
    assert str(caught.value) == (
        f"{ROOT / paths.PUBLISHED}: system must have a row for LeNet-6, plain, test_error, "
        "but got none with system 'LeNet-6'; did you mean 'LeNet-5'?"
    )


def test_results_that_differ_only_in_setting_are_found_by_setting() -> None:
    reported = ("CNN 32-64 + max-pool + 128", "rotation 10 + translation 0.1; Adam 1e-3; NLL", "test_accuracy")
    assert PUBLISHED.find(*reported, setting="epoch 4").value == 99.08
    with pytest.raises(InputError, match=r"setting must distinguish the rows of .*, but got 5 rows"):
        PUBLISHED.find(*reported)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file must be a readable table"),
        ("system,value\na,1\n", "the table must have the columns source, system"),
    ],
)
def test_a_damaged_table_is_reported_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "published.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Published(path)
    assert len(str(caught.value).splitlines()) == 1
