"""The section and the rows that a study writes into the READMEs."""

from __future__ import annotations

from dataclasses import replace

from studies.common import report
from studies.common.table import Row


def test_a_study_renews_its_own_rows_among_the_systems_and_leaves_the_others() -> None:
    head, rule = "| study | system |", "| --- | --- |"
    linear, cnn, frontier = (
        f"| [{name}](studies/README.md#{name}) | old | |" for name in ("lecun1998", "cnn", "frontier")
    )
    row = Row(system="s", variant="v", metric="test_error", values=[1.0, 1.2], unit="%", published=None)
    new = "| [cnn](studies/README.md#cnn) | s, v | test error |  | 1.10 % ± 0.14 % | not published |"
    full, without = ("\n".join([head, rule, *lines]) for lines in ([linear, cnn, frontier], [linear, frontier]))
    for before in (full, without):
        found = report.with_systems(before, "cnn", [row, replace(row, headline=False)])
        assert found.splitlines() == [head, rule, linear, new, frontier]
