"""The pages: every link leads somewhere, every command exists, and the first page is short."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import studies
from pipelines import STAGES, cli
from tests.support import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for top in ("docs", "studies", "benchmarks") for page in (ROOT / top).rglob("*.md"))]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """The lines of its code blocks and its code spans."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line.strip() for block in blocks for line in block.splitlines()] + spans


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://", "../../actions/")):  # the last is GitHub's own page
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(where), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_exists(page: Path) -> None:
    for line in commands(page):
        if found := re.match(r"make ([a-z.][\w./-]*)", line):
            assert found[1] in TARGETS or found[1].startswith(".venv/."), line
        if found := re.match(r"(?:\S+/)?mnist-pipe ([a-z]\w*)", line):
            assert found[1] in cli.COMMANDS, line
        if found := re.match(r"python -m ([\w.]+)", line):
            assert importlib.util.find_spec(found[1]) is not None, line
        if found := re.match(r"dvc (?:--cd studies )?repro (?:--?\w+ )*([a-z][\w-]*)$", line):
            assert found[1] in {*STAGES, *studies.STAGES, *studies.STUDIES}, line
        if found := re.match(r"bash (\S+)", line):
            assert (ROOT / found[1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_named_file_exists(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir()} - {"data", "models", "reports"}  # what a rebuild makes
    for span in commands(page):
        name = span.partition(":")[0].rstrip("/")
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", name) and name.split("/")[0] in tops:
            is_generated = name.startswith((".state/", ".venv/", ".dvc/tmp/"))
            assert is_generated or (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("top", ["mnist_pipe", "pipelines", "studies", "deploy"])
def test_every_page_named_in_code_exists(top: str) -> None:
    for path in (ROOT / top).rglob("*.py"):
        for name in re.findall(r"\b(?:docs|deploy|studies|benchmarks)/[\w./-]*\.md\b", path.read_text()):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


def test_every_named_params_key_exists() -> None:
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    key = re.compile(rf"((?:{'|'.join(params)})(?:\.[a-z_]+)+)(?!\w|\.py)")
    for page in PAGES:
        for span in commands(page):
            if found := key.match(span):
                value = params
                for part in found[1].split("."):
                    assert part in value, f"{page.name} names {found[1]}"
                    value = value[part]
