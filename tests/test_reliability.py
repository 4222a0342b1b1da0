"""Test the table of what `make test-chaos` counted."""

from __future__ import annotations

from pathlib import Path

from benchmarks import reliability

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_no_bit_goes_unnoticed[raw]" time="1.4">
<properties><property name="counted" value="1,000 flips, 9 refused" /></properties></testcase>
<testcase classname="tests.a" name="test_no_bit_goes_unnoticed[model]" time="2">
<properties><property name="counted" value="20 flips, 1 refused" /></properties></testcase>
<testcase classname="tests.a" name="test_kills" time="3"><failure message="" /></testcase>
<testcase classname="tests.a" name="test_writers[a-b]" time="0"><skipped message="" /></testcase>
</testsuite></testsuites>"""


def test_a_claim_is_a_row_with_the_sum_of_its_cases(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    entry = {"date": "d", "commit": "c", "hardware": "h", "torch": "t"}
    table = reliability.render({**entry, "result": reliability.outcomes(tmp_path / "report.xml")})
    assert [line for line in table.splitlines() if line.startswith("| ")][2:] == [
        "| no bit goes unnoticed | held | 2 cases; 1,020 flips, 10 refused | 3 |",
        "| kills | failed |  | 3 |",
        "| writers | skipped |  | 0 |",
    ]
    assert table.endswith("\n\nMeasured: d, h, `c`.")


def test_a_test_that_ran_again_has_its_last_outcome(tmp_path: Path) -> None:
    found: list[list[str]] = []
    for text in (REPORT, REPORT.replace('<failure message="" />', ""), REPORT.replace("tests.a", "tests.b")):
        (tmp_path / f"{len(found)}.xml").write_text(text)
        entries = reliability.outcomes(*(tmp_path / f"{number}.xml" for number in range(len(found) + 1)))
        found.append([entry["outcome"] for entry in entries])
    first = ["held", "held", "failed", "skipped"]
    assert found == [first, ["held", "held", "held", "skipped"], ["held", "held", "held", "skipped", *first]]


def test_only_texts_that_differ_in_their_numbers_are_added() -> None:
    assert reliability.added(["1 kill", "2 errors"]) == ["1 kill", "2 errors"]
    assert reliability.added(["5 kills, 16.2 s"]) == ["5 kills, 16.2 s"]
