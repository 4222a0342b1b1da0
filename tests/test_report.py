"""Test the stage `evaluate` against counts by hand, and the report that is made from its output."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from contextlib import chdir
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_pipe import paths, timings
from mnist_pipe.atomic import read_json, write_bytes, write_json
from mnist_pipe.data.splits import NormalizedSplit, write_normalized
from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation import report
from mnist_pipe.evaluation.predictions import read_predictions
from mnist_pipe.models import build, saved
from mnist_pipe.params.schema import EvaluateParams
from pipelines import STAGES
from pipelines import evaluate as stage
from pipelines import report as report_stage
from tests.support import ROOT

PARAMS = EvaluateParams(confidence=0.95, num_calibration_bins=15, num_worst_mistakes=5)
MISTAKES = {"validation": 2, "test": 4}  # of 200 rows each, all of class 3 but classified as 4
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project after `evaluate`: the candidate misses only a few labels, the baseline classifies every image as 0."""
    root = tmp_path_factory.mktemp("project")
    provenance = {"dataset": "mnist", "fallback_for": None, "mean": 0.1, "std": 0.3, "source_sha256": "ab"}
    for split, num_wrong in MISTAKES.items():
        labels = (np.arange(200) % 10).astype(np.uint8)
        shown = labels.copy()
        shown[np.flatnonzero(labels == 3)[:num_wrong]] = 4
        # A bright pixel k in the first row encodes class k.
        images = np.zeros((200, 28, 28), dtype=np.float32)
        images[np.arange(200), 0, shown] = 1
        index = np.arange(200, dtype=np.uint32)
        data = NormalizedSplit(images=images, labels=labels, index=index, provenance=provenance)
        write_normalized(root / paths.NORMALIZED / f"{split}.parquet", data)
    candidate, baseline = build("linear"), build("linear")
    with torch.no_grad():
        for parameter in candidate.parameters():
            if parameter.ndim == 2:
                parameter[:, :10] = 5 * torch.eye(10)
    recipe = {"optimizer": "adam", "learning_rate": 0.0015, "batch_size": 256, "num_epochs": 2, "schedule": "one_cycle"}
    card = {"model": "linear", "model_params": {}, "recipe": recipe, "num_parameters": 7850}
    saved.save_model(root / paths.CANDIDATE, candidate, card={**card, "temperature": 0.5})
    saved.save_model(root / paths.BASELINE, baseline, card=card)
    write_csv(root / paths.CURVES, CURVES)
    write_csv(root / paths.TRIALS, TRIALS)
    with chdir(root):
        run_stage()
    return root


CURVES = [
    {"epoch": n, "train_loss": 2 / n, "train_accuracy": 0.9, "validation_loss": 1 / n, "validation_accuracy": 0.99}
    for n in (1, 2)
]
TRIALS = [
    {
        "trial": number,
        "status": status,
        "model": "convnet",
        "optimizer": "muon",
        "learning_rate": 0.01 * (number + 1),
        "weight_decay": 1e-5,
        "batch_size": 128,
        "rotation_degrees": 3.25,
        "translation_pixels": 1.5,
        "epochs": 3,
        "train_loss": loss,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
    }
    for number, (status, accuracy, loss) in enumerate(
        [("stopped", 0.9, 0.4), ("diverged", 0.0, ""), ("finished", 0.985, 0.05), ("failed", "", "")]
    )
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run_stage() -> None:
    """Run the tasks of the stage without Prefect."""
    by_split = {split: stage.score_split.fn(split, PARAMS) for split in stage.SPLITS}
    stage.summarise.fn(by_split, PARAMS)
    stage.draw.fn(PARAMS, by_split["test"]["uncalibrated_bins"])


def gate(name: str, *, passed: bool, **figures: float) -> dict[str, Any]:
    return {"name": name, "rule": f"a rule of {name}", "passed": passed, "figures": figures, "text": f"Text of {name}."}


@pytest.fixture
def project(evaluated: Path, tmp_path: Path) -> Path:
    """Copy of `evaluated` with everything else that the report is made from."""
    root = tmp_path / "project"
    shutil.copytree(evaluated, root)
    splits = ("train", "validation", "test")
    by_class = {split: {str(label): 20 for label in range(10)} for split in splits}
    data = {"dataset": "mnist", "fallback_for": None, "mean": 0.1307, "std": 0.3081, "test_images_in_train": 0}
    write_json(root / paths.DATA_REPORT, {**data, "rows": dict.fromkeys(splits, 200), "rows_by_class": by_class})
    write_json(root / paths.BEST, {"trial": 2, "config": {}})
    for name, seconds in {"search": 121.7, "ingest": 1.93, "a later one": 0.5}.items():
        timings.record(name, seconds=seconds, root=root)
    (root / paths.PARAMS).write_text("ingest:\n  dataset: mnist # <b>bold</b>\n")
    write_json(
        root / paths.REGISTRATION,
        {
            "name": "mnist-classifier",
            "version": 3,
            "alias": "champion",
            "promoted": True,
            "reason": "Every gate passed.",
            "content_sha256": "5e" * 32,
            "gates": [
                gate("baseline", passed=True, rows=200, p_value=3.2e-17),
                gate("calibration", passed=True, calibration_error=0.012345),
            ],
            "previous": 2,
            "lineage": {
                "data_sha256": {"train": "aa" * 32, "validation": "bb" * 32},
                "params_sha256": "cc" * 32,
                "git_revision": "3f1c2ab49d0e7715c7a3a1fb6cf0a3b3c6b0a1d2",
                "git_dirty": False,
                "versions": {"python": "3.11.7", "torch": "2.13.0"},
            },
            "tracking_uri": "sqlite:///.state/mlflow.db",
        },
    )
    return root


def change(path: Path, **values: Any) -> None:
    write_json(path, {**read_json(path), **values})


class Page(HTMLParser):
    """Page as a reader sees it: its text, its elements, and the elements that are still open."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\N{NARROW NO-BREAK SPACE}", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(root: Path) -> Page:
    return Page(report.render_page(root, stages=tuple(STAGES)))


# --- the stage `evaluate`


def test_metrics_of_both_models_agree_with_a_count_by_hand(evaluated: Path) -> None:
    found = read_json(evaluated / paths.EVALUATION)
    assert (found["dataset"], found["fallback_for"], found["model"]) == ("mnist", None, "linear")
    for split, num_wrong in MISTAKES.items():
        assert (found[split]["num_rows"], found[split]["num_correct"]) == (200, 200 - num_wrong)
        assert found[split]["accuracy"] == (200 - num_wrong) / 200
        assert found["baseline"][split]["accuracy"] == 0.1
        assert found["baseline"][split]["nll"] == pytest.approx(np.log(10))
        paired = found["mcnemar_against_baseline"][split]
        assert (paired["both_right"], paired["only_first"]) == (20, 180 - num_wrong)
        assert (paired["only_second"], paired["both_wrong"]) == (0, num_wrong)
        assert paired["p_value"] == pytest.approx(0.5 ** (180 - num_wrong))
    assert [one["num_correct"] for one in found["per_class"]] == [20, 20, 20, 16, 20, 20, 20, 20, 20, 20]
    assert found["per_class"][4]["precision"] == 20 / 24
    calibrated, raw = (np.exp(logit) / (np.exp(logit) + 9) for logit in (10, 5))
    assert found["test"]["calibration_error"] == pytest.approx(abs(calibrated - 0.98))
    assert found["calibration"]["temperature"] == 0.5
    assert found["calibration"]["test"]["calibration_error"] == pytest.approx(abs(raw - 0.98))
    assert found["coverage"][0] == {"min_confidence": 0.0, "coverage": 1.0, "accuracy": 0.98}


def test_every_prediction_is_recorded(evaluated: Path) -> None:
    found = read_predictions(evaluated / paths.PREDICTIONS / "test.parquet")
    assert found.provenance["dataset"] == "mnist"
    assert found.correct.sum() == 196
    assert (found.baseline_prediction == 0).all()
    np.testing.assert_allclose(found.true_probability[3], 1 / (np.exp(10) + 9), rtol=1e-5)
    with (evaluated / paths.CONFUSION).open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 200
    assert rows[3] == {"actual": "3", "predicted": "4"}


def test_a_second_evaluation_gives_the_same_bytes(evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / paths.PLOTS)
    with chdir(tmp_path / "again"):
        run_stage()
    files = [path.relative_to(evaluated) for path in (evaluated / paths.REPORTS).rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".png"]) == 9
    for path in files:
        assert (evaluated / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path


# --- the report


def test_the_page_is_self_contained(project: Path) -> None:
    found = page(project)
    assert {name for name, _ in found.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    sources = [value for _, attributes in found.elements for key, value in attributes.items() if key in ("src", "href")]
    assert len(sources) > 10
    assert all(str(source).startswith(("#", "data:")) for source in sources)
    assert all("url(" not in str(value) for _, attributes in found.elements for value in attributes.values())
    assert "@import" not in (html := report.render_page(project))
    assert "url(" not in html
    policy = next(meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_figure_has_a_description(project: Path) -> None:
    pictures = page(project).all("img")
    assert len(pictures) == 9
    assert all(len(picture["alt"] or "") > 40 for picture in pictures)
    assert len({picture["src"] for picture in pictures}) == len(pictures)


def test_every_link_within_the_page_has_a_target(project: Path) -> None:
    found = page(project)
    targets = {attributes.get("id") for _, attributes in found.elements}
    links = [str(link["href"]) for link in found.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= targets
    labels = {str(attributes["aria-labelledby"]) for _, attributes in found.elements if "aria-labelledby" in attributes}
    assert labels <= targets


def test_the_page_shows_what_was_registered_and_why(project: Path) -> None:
    text = page(project).text
    assert "Version 3 is the new champion Every gate passed. Version 2 is kept as previous ." in text
    assert "Asked: a rule of baseline. Text of baseline. p value 3 × 10⁻¹⁷ rows 200" in text
    assert "calibration error 0.01235" in text
    assert "Test accuracy 98.00 % 95 % interval 94.97 % to 99.22 %" in text
    assert "4 of 200 test images are predicted wrong; most often 3 is taken for 4 (4)." in text
    assert "The source is revision 3f1c2ab49d0e , unchanged." in text


TITLES: dict[str, dict[str, Any]] = {
    "Version 3 is the new champion": {},
    "Version 3 is the champion": {"promoted": False},
    "Version 3 was registered, not promoted": {"promoted": False, "alias": None},
    "Nothing was registered": {"promoted": False, "alias": None, "version": None},
}


@pytest.mark.parametrize("title", TITLES)
def test_the_title_is_the_outcome(project: Path, title: str) -> None:
    change(project / paths.REGISTRATION, previous=None, **TITLES[title])
    text = page(project).text
    assert f"{title} Every gate passed. Result" in text
    assert [one for one in TITLES if one in text] == [title]


def test_a_failed_gate_is_marked(project: Path) -> None:
    gates = [gate("baseline", passed=False), gate("calibration", passed=True)]
    change(project / paths.REGISTRATION, gates=gates)
    marks = [mark["aria-label"] for mark in page(project).all("span") if mark.get("class") == "verdict"]
    assert marks == ["failed", "passed"]


TRIAL_ROWS = ["2 best 98.50 % finished", "0 90.00 % stopped", "1 – diverged", "3 – failed"]


def test_trials_are_sorted_by_accuracy_and_those_without_a_score_come_last(project: Path) -> None:
    text = page(project).text
    table = text[text.index("Trials by validation accuracy") : text.index("Training", text.index("Trials by"))]
    places = [table.index(row) for row in TRIAL_ROWS]
    assert places == sorted(places)
    assert "4 trials: 1 diverged, 1 failed, 1 finished, 1 stopped." in text


def test_a_long_trial_table_is_shortened_with_a_note(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_TRIALS", 2)
    text = page(project).text
    assert "Trials by validation accuracy, the first 2; all are in reports/trials.csv" in text
    assert "4 trials:" in text
    assert [row for row in TRIAL_ROWS if row in text] == TRIAL_ROWS[:2]


def test_importances_are_listed_with_their_uncertainty(project: Path) -> None:
    random = np.random.default_rng(0)
    rates = 10 ** random.uniform(-4, -1, 60)
    trials = [
        {
            **TRIALS[2],
            "trial": number,
            "learning_rate": rate,
            "batch_size": int(random.choice([64, 128])),
            "weight_decay": 10 ** random.uniform(-6, -3),
            "validation_accuracy": 0.98 - 0.1 * (np.log10(rate) + 2.5) ** 2,
        }
        for number, rate in enumerate(rates)
    ]
    write_csv(project / paths.TRIALS, [*trials, TRIALS[1]])
    text = page(project).text
    part = text[text.index("What the accuracy of a trial depends on") :]
    found = re.findall(r"(learning rate|batch|weight decay) (\d+)\s% ± (\d+)\s%", part)
    assert found[0][0] == "learning rate"
    assert {name for name, _, _ in found} == {"learning rate", "batch", "weight decay"}  # the model never changes
    shares = {name: (int(mean), int(deviation)) for name, mean, deviation in found}
    assert shares["learning rate"][0] > 80  # the accuracy is a function of it alone
    assert shares["batch"][0] < 10
    assert 0 < shares["learning rate"][1] < 20


def test_the_final_of_a_search_is_listed_by_mean(project: Path) -> None:
    finals = [
        {"trial": 2, "accuracies": [0.99, 0.992], "mean": 0.991, "deviation": 0.0014},
        {"trial": 0, "accuracies": [0.98, 0.99], "mean": 0.985, "deviation": 0.007},
    ]
    write_json(project / paths.BEST, {"trial": 2, "config": {}, "final": finals})
    text = page(project).text
    assert "The best 2 were trained in full with 2 seeds each; the highest mean" in text
    assert re.search(r"2 99\.10\s% 0\.14\s% 99\.00\s%, 99\.20\s% 0 98\.50\s%", text)


def test_few_trials_have_no_importances(project: Path) -> None:
    assert "What the accuracy of a trial depends on" not in page(project).text


def test_ten_thousand_trials_make_no_larger_page(project: Path) -> None:
    """Only the table's rows are limited by number; the rest must not grow with the trials either."""
    few = [{**TRIALS[2], "trial": number, "validation_accuracy": number / 300} for number in range(250)]
    many = [{**TRIALS[2], "trial": number, "validation_accuracy": number / 20_000} for number in range(10_000)]
    sizes = []
    for trials in (few, many):
        write_csv(project / paths.TRIALS, trials)
        write_json(project / paths.BEST, {"trial": 0, "config": {}})
        sizes.append(len(report.render_page(project)))
    assert sizes[1] < 1.02 * sizes[0]


def test_times_are_listed_in_the_order_of_the_stages(project: Path) -> None:
    assert "ingest 1.9 s search 2 min 2 s a later one 0.5 s" in page(project).text


def test_missing_times_are_reported_on_the_page(project: Path) -> None:
    (project / paths.TIMINGS).unlink()
    assert "No times were recorded." in page(project).text


def test_own_images_have_what_was_read_in_the_section_on_data(project: Path) -> None:
    labels = [f"bird {number}" for number in range(62)]
    card, data = (read_json(project / path) for path in (paths.CANDIDATE / paths.CARD, paths.DATA_REPORT))
    write_json(project / paths.CANDIDATE / paths.CARD, card | {"labels": labels, "resize": "fit", "shape": [3, 32, 24]})
    by_class = {split: dict.fromkeys(labels, 3) for split in data["rows"]}
    found = {"format": "images", "rows_by_class": by_class, "validation_images_in_train": 4, "dropped_duplicates": 17}
    messages = ["birds/owl/1.png: the image must be undamaged, but got <b>nothing</b>"]
    write_json(project / paths.DATA_REPORT, data | found | {"num_unreadable": 30, "unreadable": messages})
    text = " ".join(report.render_page(project).split())
    for name, value in (
        ("read as", "images"),
        ("an image", "3 × 32 × 24"),
        ("classes", "62"),
        ("validation images", "held out"),
        ("of them in training", "4"),
        ("duplicates dropped", "17"),
        ("unreadable pictures", "30"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert "The unreadable pictures, the first 1</summary>" in text
    assert "but got &lt;b&gt;nothing&lt;/b&gt;</code>" in text
    assert '<tr><th scope="row">bird 61</th><td>3</td><td>3</td><td>3</td></tr>' in text


def test_a_published_data_set_has_its_citation_and_licence(project: Path) -> None:
    text = " ".join(report.render_page(project).split())
    assert "Licence: CC BY-SA 3.0, as Keras states it." in text
    assert "<dt>read as</dt>" not in text


def test_a_fallback_is_announced_at_the_top(project: Path) -> None:
    assert "banner" not in [div.get("class") for div in page(project).all("div")]
    change(project / paths.EVALUATION, dataset="digits", fallback_for="mnist")
    found = page(project)
    assert "banner" in [div.get("class") for div in found.all("div")]
    assert found.text.index("This is not mnist. No mirror supplied mnist") < found.text.index("Test accuracy")


def test_a_tree_without_git_is_reported(project: Path) -> None:
    lineage = read_json(project / paths.REGISTRATION)["lineage"]
    change(project / paths.REGISTRATION, lineage={**lineage, "git_revision": "not a git checkout", "git_dirty": None})
    text = page(project).text
    assert "The source was not a git checkout" in text
    assert "git checkout" not in text.replace("not a git checkout", "")


def test_texts_from_files_are_escaped(project: Path) -> None:
    change(project / paths.EVALUATION, dataset=SCRIPT, fallback_for=SCRIPT, model=SCRIPT)
    change(project / paths.DATA_REPORT, dataset=SCRIPT)
    change(project / paths.REGISTRATION, name=SCRIPT, reason=SCRIPT, gates=[gate(SCRIPT, passed=True)])
    write_csv(project / paths.TRIALS, [{**trial, "model": SCRIPT, "optimizer": SCRIPT} for trial in TRIALS])
    (project / paths.PARAMS).write_text(SCRIPT)
    html = report.render_page(project)
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert Page(html).text.count(SCRIPT) > 10


def test_the_page_contains_no_credentials_of_a_mirror(project: Path) -> None:
    (project / paths.PARAMS).write_text("mirrors: [https://ann:p@ss@host.example/mnist, ../shared/mnist]")
    assert "mirrors: [https://…@host.example/mnist, ../shared/mnist]" in page(project).text


def test_the_same_files_give_the_same_page(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "elsewhere")
    assert report.render_page(project) == report.render_page(tmp_path / "elsewhere")


@pytest.mark.parametrize("path", [paths.EVALUATION, paths.REGISTRATION, paths.TRIALS, paths.CURVES])
def test_a_missing_file_is_reported(project: Path, path: Path) -> None:
    (project / path).unlink()
    with pytest.raises(CorruptDataError) as error:
        report.render_page(project)
    assert str(error.value) == f"{project / path} does not exist; run: dvc repro"


def test_a_missing_figure_is_reported(project: Path) -> None:
    evaluation = read_json(project / paths.EVALUATION)
    del evaluation["test"]["nll"]
    write_json(project / paths.EVALUATION, evaluation)
    with pytest.raises(CorruptDataError) as error:
        report.render_page(project)
    assert str(error.value) == (
        f"{project / paths.REPORTS}: a report is incomplete: 'dict object' has no attribute 'nll'; run: dvc repro"
    )


def test_the_page_is_replaced_atomically(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(project / paths.REPORT, b"the old page")
    monkeypatch.chdir(project)
    (project / paths.TRIALS).rename("away")
    with pytest.raises(CorruptDataError):
        report_stage.write.fn()
    assert paths.REPORT.read_bytes() == b"the old page"
    Path("away").rename(paths.TRIALS)
    before = paths.REPORT.stat().st_ino
    report_stage.write.fn()
    assert paths.REPORT.read_text(encoding="utf-8") == report.render_page(Path(), stages=tuple(STAGES))
    assert paths.REPORT.stat().st_ino != before, "written in place"
    assert not list(paths.REPORTS.glob(".*"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.0386, "0.039"), (0.0010, "0.001"), (3.2e-17, "3 × 10⁻¹⁷"), (9.7e-5, "1 × 10⁻⁴"), (0.0, "< 10⁻³⁰⁰")],
)
def test_p_values_are_formatted_for_people(value: float, text: str) -> None:
    assert report.format_p_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (95.2, "1 min 35 s")]
)
def test_durations_are_formatted_for_people(seconds: float, text: str) -> None:
    assert report.format_duration(seconds) == text


def test_the_template_is_part_of_the_package() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "evaluation/*.html" in data["mnist_pipe"]


# --- in a browser


@pytest.fixture
def chromium(tmp_path: Path) -> list[str]:
    """Command line of a browser that can access only files."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["background-networking", "component-update", "default-apps", "extensions", "gpu", "quic", "sync"]
    return [
        program,
        "--headless",
        "--no-first-run",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *(f"--disable-{feature}" for feature in quiet),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'chromium'}",
    ]


def browse(command: list[str], *arguments: str) -> str:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 700, 1200])
def test_a_browser_shows_every_figure_without_horizontal_scrolling(
    project: Path, chromium: list[str], width: int
) -> None:
    page = report.render_page(project)
    write_bytes(project / "page.html", page.encode())
    # The page's own policy forbids scripts, so another page inspects it in a frame.
    (project / "host.html").write_text(
        f"""<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><pre></pre><script>
        onload = () => {{
          const page = document.querySelector("iframe").contentDocument;
          document.querySelector("pre").textContent = JSON.stringify({{
            hidden: page.documentElement.scrollWidth - page.documentElement.clientWidth,
            pictures: [...page.images].map((image) => image.naturalWidth),
          }});
        }};</script>"""
    )
    flags = ["--allow-file-access-from-files", "--window-size=1400,1000"]
    dom = browse(chromium, *flags, "--dump-dom", (project / "host.html").as_uri())
    found = json.loads(dom.split("<pre>")[1].split("</pre>")[0])
    assert found == {"hidden": 0, "pictures": [1040] * page.count("<img ")}


@pytest.mark.browser
def test_the_page_renders_in_light_and_dark_mode(project: Path, chromium: list[str]) -> None:
    write_bytes(project / "page.html", report.render_page(project).encode())
    brightness = {}
    for mode in (0, 1):  # values of Chromium's enum: dark, light
        path = project / f"{mode}.png"
        flags = [f"--blink-settings=preferredColorScheme={mode}", "--window-size=1200,2400", f"--screenshot={path}"]
        browse(chromium, *flags, (project / "page.html").as_uri())
        with Image.open(path) as picture:
            brightness[mode] = float(np.asarray(picture.convert("L")).mean())
    assert brightness[0] < 70
    assert brightness[1] > 200
