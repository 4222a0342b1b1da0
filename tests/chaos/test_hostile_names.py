"""Give every page but the report a hostile text where it shows a name: it is shown, and not obeyed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from mnist_pipe import paths
from mnist_pipe.local import services
from mnist_pipe.registry import model_card
from tests.support import ROOT, mlflow
from tests.support.checkout import environment
from tests.support.hostile import HOSTILE, MARK
from tests.support.registry import NAME, MakeCandidate, register

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page

from tests.support.browser import SECONDS, chromium

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SHOWN = "[click]"
"""What of `HOSTILE` a page that shows it has in its text."""
SCORE = {
    "num_rows": 10, "accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, "interval": [0.4, 0.6], "nll": 1.0,
    "calibration_error": 0.1,
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "test": SCORE, "validation": SCORE, "confidence": 0.95, "baseline": {"test": SCORE},
    "calibration": {"temperature": 1.0, "test": SCORE},
    "coverage": [{"min_confidence": 0.5, "coverage": 1.0, "accuracy": 0.5}],
}  # fmt: skip
CARD: dict[str, Any] = {
    "model": HOSTILE, "model_params": {HOSTILE: HOSTILE}, "recipe": {"optimizer": HOSTILE, "sizes": [HOSTILE]},
    "dataset": HOSTILE, "labels": [HOSTILE], "num_parameters": 1, "mean": 0.5, "std": 0.5,
}  # fmt: skip
LINEAGE = {"git_revision": HOSTILE, "versions": {HOSTILE: HOSTILE}}


class Tags(HTMLParser):
    """The names of the tags of a page, and where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src") or name.startswith("on")]


def body(card: str) -> str:
    """Return the card below its front matter, which MLflow shows."""
    return card.rpartition("\n---\n")[2]


def test_the_model_card_shows_hostile_names() -> None:
    text = model_card.render("toy-classifier", card=CARD, evaluation=EVALUATION, lineage=LINEAGE)
    harmless = dict.fromkeys(CARD, "x") | {"model_params": {"x": "x"}, "recipe": {"optimizer": "x", "sizes": ["x"]}}
    numbers = {key: CARD[key] for key in ("num_parameters", "mean", "std")}
    plain = model_card.render(
        "toy-classifier", card={**harmless, **numbers, "labels": ["x"]}, evaluation=EVALUATION,
        lineage={"git_revision": "x", "versions": {"x": "x"}},
    )  # fmt: skip
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    found, expected = Tags(reader.render(body(text))), Tags(reader.render(body(plain)))
    assert (found.names, found.links) == (expected.names, [])
    assert text.count("\n") == plain.count("\n")
    assert "\x1b" not in text
    front = YAML(typ="safe").load(text.split("---\n")[1])
    assert front["datasets"] == [HOSTILE]
    assert front["tags"] == ["mnist-pipe", HOSTILE]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Page of which the test fails if it obeys `HOSTILE` or asks anything of the user."""
    context = browser.new_context(viewport={"width": 1600, "height": 1200})
    context.set_default_timeout(1000 * SECONDS)
    opened = context.new_page()
    dialogs: list[str] = []
    opened.on("dialog", lambda dialog: dialogs.append(dialog.message))
    yield opened
    for link in opened.locator("a[href^='javascript:']").all():
        link.evaluate("element => element.click()")
    opened.wait_for_timeout(500)
    assert opened.title() != MARK
    assert dialogs == []
    context.close()


def answer(page: Page, path: str, *, content: bytes | Path, kind: str) -> None:
    """Let the browser get this content when it asks for `path`, without a server."""
    text = content.read_bytes() if isinstance(content, Path) else content
    page.route(path, lambda route: route.fulfill(body=text, content_type=kind))


def test_the_drawing_page_shows_hostile_names(page: Page) -> None:
    model = {
        **{"name": HOSTILE, "version": HOSTILE, "accuracy": 0.5, "labels": [HOSTILE, "b"], "problem": HOSTILE},
        **{"shape": [28, 28], "resize": HOSTILE},
    }
    prediction = {"probabilities": [0.9, 0.1], "seen": "AA==", "saliency": "AA=="}
    reply = {"predictions": [prediction], "doubt": HOSTILE}
    answer(page, "http://drawing/", content=ROOT / "mnist_pipe/serving/page.html", kind="text/html")
    answer(page, "http://drawing/model", content=json.dumps(model).encode(), kind="application/json")
    answer(page, "http://drawing/predict*", content=json.dumps(reply).encode(), kind="application/json")
    page.goto("http://drawing/")
    page.get_by_text(SHOWN).first.wait_for()
    page.locator("#board").click()
    page.locator("#answer").get_by_text(SHOWN).wait_for()
    assert all(SHOWN in page.inner_text(place) for place in ("#model", "#error", "#bars", "#sure"))


@pytest.mark.mlflow
def test_mlflows_pages_show_hostile_names(
    page: Page, make_candidate: MakeCandidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = model_card.render(NAME, card=CARD, evaluation=EVALUATION, lineage=LINEAGE)
    root = tmp_path / "project"
    (root / paths.MLFLOW_ARTIFACTS).mkdir(parents=True)
    monkeypatch.chdir(root)
    with mlflow.server(tmp_path, store=paths.sqlite_uri(tmp_path / "server.db")) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        # What the project writes, and the same text as it is, which only MLflow's own page can make harmless.
        for seed, description in enumerate((text, f"{text}\n{HOSTILE}")):
            registered = register(root, make_candidate(seed, 10), text=description, lineage={"git_revision": HOSTILE})
            page.goto(f"{url}/#/models/{NAME}/versions/{registered.version}")
            page.get_by_text(SHOWN).first.wait_for()
            assert page.title() != MARK


@pytest.mark.services
def test_prefects_pages_show_hostile_names(page: Page, tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    code = f"""
from prefect.artifacts import create_markdown_artifact, create_table_artifact
text = {HOSTILE!r}
create_markdown_artifact(text, key="text", description=text)
create_table_artifact([{{text: text}}], key="table", description=text)
"""
    [server] = services.up(tmp_path, names=("prefect",))
    try:
        variables = {**environment(), **services.prefect_environment(tmp_path)}
        subprocess.run([sys.executable, "-c", code], env=variables, check=True, cwd=ROOT)
        page.goto(server.url)
        page.fill("input[type=password]", (tmp_path / services.SECRETS / "prefect").read_text())
        page.click("button:has-text('Login')")
        for key in ("text", "table"):
            page.goto(f"{server.url}/artifacts/key/{key}")
            page.get_by_text("click").first.wait_for()
            assert page.title() != MARK
    finally:
        services.down(tmp_path)
