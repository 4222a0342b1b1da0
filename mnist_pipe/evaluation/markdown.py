"""Tables in GitHub's Markdown, and the regions of a Markdown file that a program writes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mnist_pipe import atomic
from mnist_pipe.errors import one_line, printable


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of `header` and `rows`, without a line break at the end."""
    return "\n".join(row(cells) for cells in (header, ["---"] * len(header), *rows))


def row(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def plain(text: object) -> str:
    """Return Markdown that shows `text` as it is, on one line: no HTML, link or cell begins in it."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(printable(one_line(text)), quote=False))


def code(text: object) -> str:
    """Return Markdown that shows `text` as code, on one line, also in a cell of a table."""
    return f"`{printable(one_line(text)).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def replace_region(path: Path, name: str, change: Callable[[str], str]) -> None:
    """Replace the lines between `<!-- name -->` and `<!-- /name -->` in the file by the result of `change`.

    `change` takes the old lines and returns the new ones without a line break at the end.
    """
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    old, end, after = rest.partition(f"<!-- /{name} -->")
    assert start, f"{path} has no mark {name}"
    assert end, f"{path} has no end of {name}"
    atomic.write_bytes(path, f"{before}{start}{change(old)}\n{end}{after}".encode())
