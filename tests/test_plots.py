"""Test the plots: complete, deterministic PNG files for every input that a run can produce."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_pipe.evaluation import metrics, plots

Draw = Callable[[Path], None]
LABELS = (np.arange(200) % 10).astype(np.uint8)


def predictions(*, num_wrong: int) -> NDArray[np.uint8]:
    found = LABELS.copy()
    found[:num_wrong] = (found[:num_wrong] + 1) % 10
    return found


def matrix(*, num_wrong: int) -> NDArray[np.int64]:
    return metrics.confusion_matrix(LABELS, predictions(num_wrong=num_wrong))


def epochs(accuracies: list[float]) -> pd.DataFrame:
    losses = [2 - accuracy for accuracy in accuracies]
    columns: dict[str, Any] = {"epoch": range(1, len(accuracies) + 1), "train_loss": losses, "validation_loss": losses}
    return pd.DataFrame({**columns, "train_accuracy": accuracies, "validation_accuracy": accuracies})


def trials(accuracies: list[float], *, status: str = "finished") -> pd.DataFrame:
    names = {"model": "convnet", "optimizer": "adam", "status": status}
    return pd.DataFrame(
        [
            {"learning_rate": 10.0 ** -(n % 5), "validation_accuracy": a, **names}
            for n, a in enumerate(accuracies, start=1)
        ]
    )


def mistakes(path: Path, *, num_wrong: int) -> None:
    plots.draw_mistakes(
        path,
        np.zeros((200, 28, 28), dtype=np.float32),
        labels=LABELS,
        predictions=predictions(num_wrong=num_wrong),
        probabilities=np.linspace(0, 1, 200, dtype=np.float32),
        num_worst=7,
    )


def reliability(path: Path, *, confidences: NDArray[np.float64]) -> None:
    bins = metrics.calibration_bins(confidences, np.ones(len(confidences), dtype=bool), num_bins=15)
    plots.draw_reliability(path, bins, uncalibrated=bins, confidence=0.95)


DRAWINGS: dict[str, Draw] = {
    "confusion": lambda path: plots.draw_confusion(path, matrix(num_wrong=30)),
    "confusion, no mistake": lambda path: plots.draw_confusion(path, matrix(num_wrong=0)),
    "confusion, nothing right": lambda path: plots.draw_confusion(path, matrix(num_wrong=200)),
    "curves": lambda path: plots.draw_curves(path, epochs([0.5, 0.9, 0.99])),
    "curves, one epoch": lambda path: plots.draw_curves(path, epochs([0.9])),
    "curves, all right": lambda path: plots.draw_curves(path, epochs([0.9, 1.0])),
    "curves, always right": lambda path: plots.draw_curves(path, epochs([1.0, 1.0])),
    "curves, nothing right": lambda path: plots.draw_curves(path, epochs([0.0, 0.1])),
    "search": lambda path: plots.draw_search(path, trials([0.9, 0.5, 0.99])),
    "search, one trial": lambda path: plots.draw_search(path, trials([0.9])),
    "search, all right": lambda path: plots.draw_search(path, trials([1.0, 0.9])),
    "search, all diverged": lambda path: plots.draw_search(path, trials([0.0, np.nan], status="diverged")),
    "search, many trials": lambda path: plots.draw_search(path, trials(list(np.linspace(0.1, 0.99, 400)))),
    "rates": lambda path: plots.draw_rates(path, trials([0.9, 0.5, 0.99])),
    "rates, many trials": lambda path: plots.draw_rates(path, trials(list(np.linspace(0.1, 0.99, 400)))),
    "rates, all diverged": lambda path: plots.draw_rates(path, trials([0.0, np.nan], status="diverged")),
    "mistakes": lambda path: mistakes(path, num_wrong=30),
    "mistakes, fewer than asked": lambda path: mistakes(path, num_wrong=2),
    "mistakes, none": lambda path: mistakes(path, num_wrong=0),
    "templates": lambda path: plots.draw_templates(path, np.eye(10, 784, dtype=np.float32)),
    "templates, zero": lambda path: plots.draw_templates(path, np.zeros((10, 784), dtype=np.float32)),
    "reliability": lambda path: reliability(path, confidences=np.linspace(0.1, 1, 300)),
    "reliability, always sure": lambda path: reliability(path, confidences=np.ones(9)),
    "coverage": lambda path: plots.draw_coverage(
        path, np.linspace(0.1, 1, 300, dtype=np.float32), np.arange(300) % 7 > 0
    ),
    "coverage, all right": lambda path: plots.draw_coverage(path, np.ones(9, dtype=np.float32), np.ones(9, dtype=bool)),
    "classes": lambda path: plots.draw_classes(
        path, metrics.compute_class_metrics(matrix(num_wrong=30)), confidence=0.95
    ),
    "classes, all but one absent": lambda path: plots.draw_classes(
        path, metrics.compute_class_metrics(np.diag([9] + [0] * 9)), confidence=0.95
    ),
}
ONE_OF_EACH = [name for name in DRAWINGS if "," not in name]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_input_is_drawn_without_a_warning(tmp_path: Path, name: str) -> None:
    path = tmp_path / "deep" / "picture.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DRAWINGS[name](path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == pytest.approx(plots.WIDTH_INCHES * 200, abs=1)
        darkest, _ = picture.convert("L").getextrema()
    assert isinstance(darkest, int)
    assert darkest < 160, "nothing was drawn"
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_input_gives_the_same_bytes_in_any_matplotlib_style(tmp_path: Path, name: str) -> None:
    DRAWINGS[name](tmp_path / "a.png")
    with mpl.rc_context({"lines.linewidth": 9, "font.family": "monospace", "savefig.dpi": 50, "axes.facecolor": "red"}):
        DRAWINGS[name](tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_figure_contains_neither_software_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    DRAWINGS["templates"](path)
    content, position, kinds = path.read_bytes(), 8, []
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        kinds.append(kind.decode())
        position += 12 + length
    assert set(kinds) == {"IHDR", "pHYs", "IDAT", "IEND"}


def test_drawing_does_not_change_matplotlibs_settings(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    DRAWINGS["curves"](tmp_path / "a.png")
    assert dict(mpl.rcParams) == before


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        plots.draw_curves(tmp_path / "curves.png", pd.DataFrame({"epoch": [1], "train_loss": [1.0]}))
    assert list(tmp_path.iterdir()) == []


def test_a_single_mistake_is_visible_in_the_confusion_matrix(tmp_path: Path) -> None:
    """Check that one cell of a hundred is strongly coloured, though its count is 1 and hits have 20."""

    def num_red(num_wrong: int) -> int:
        plots.draw_confusion(tmp_path / "a.png", matrix(num_wrong=num_wrong))
        with Image.open(tmp_path / "a.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        return int((pixels[..., 0] - pixels[..., 2] > 80).sum())

    cell = (1040 * 0.8 / 10) ** 2
    assert num_red(0) == 0
    assert 0.5 * cell < num_red(1) < 1.5 * cell


def test_the_worst_mistakes_are_the_most_confident_wrong_rows() -> None:
    labels = np.array([1, 2, 3, 4, 5, 6], dtype=np.uint8)
    predicted = np.array([1, 0, 0, 4, 0, 0], dtype=np.uint8)
    probabilities = np.array([1.0, 0.5, 0.9, 0.99, 0.9, 0.6], dtype=np.float32)
    worst = plots.worst_mistakes(labels, predicted, probabilities, num_worst=3)
    assert worst.tolist() == [2, 4, 5]
