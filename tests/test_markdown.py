"""Test tables and regions of Markdown files."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from mnist_pipe.errors import one_line, printable
from mnist_pipe.evaluation import markdown
from tests.support.hostile import HOSTILE

PAGE = "# Title\n<!-- one -->\nold\nlines\n<!-- /one -->\nbetween\n<!-- two -->\n<!-- /two -->\nend"


def test_a_table_has_a_header_a_rule_and_its_rows() -> None:
    found = markdown.table(("a", "", "c"), iter([("1", "2", "3"), ("", "5", "")]))
    assert found == "| a |  | c |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n|  | 5 |  |"


@pytest.mark.parametrize("text", [HOSTILE, "a_b *c* `d` <e> &amp; \\| [f](g) ü", "1.5 % of 3"])
def test_a_text_is_shown_as_it_is_in_a_cell_and_as_code(text: str) -> None:
    row = markdown.row([markdown.plain(text), markdown.code(text)])
    html = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n|---|---|\n{row}\n")
    shown, code = re.findall(r"<td>(.*?)</td>", html)
    line = printable(one_line(text))
    assert unescape(shown) == line
    assert unescape(code) == f"<code>{line.replace('`', chr(39))}</code>"


@pytest.mark.parametrize(
    ("name", "old", "expected"),
    [
        ("one", "old\nlines\n", PAGE.replace("old\nlines\n", "new ü\n")),
        ("two", "", PAGE.replace("<!-- two -->\n", "<!-- two -->\nnew ü\n")),
    ],
)
def test_a_region_is_replaced_and_the_rest_stays(tmp_path: Path, name: str, old: str, expected: str) -> None:
    path, given = tmp_path / "page.md", list[str]()
    path.write_text(PAGE)

    def change(before: str) -> str:
        given.append(before)
        return "new ü"

    markdown.replace_region(path, name, change)
    assert given == [old]
    assert path.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("content", ["no mark", "<!-- one -->\nno end"])
def test_a_page_without_the_marks_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(content)
    with pytest.raises(AssertionError, match="one"):
        markdown.replace_region(path, "one", str)
    assert path.read_text() == content
