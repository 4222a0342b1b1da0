"""The figures of the study `optimizers`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.evaluation import plots
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.study import Measured
from studies.optimizers.results import CONTROL_LABELS, NAMES, PHASES, accuracies, histories, published_result

LABELS = {"defaults": "default rate", "tuned": "searched rate"}
"""What a legend calls each column of the study."""


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw the report's accuracies beside ours, and the learning curves."""
    _dots(folder / "figure.png", measured.runs, measured.published)
    _curves(folder / "curves.png", measured.runs, key="test_accuracy", published=measured.published)
    _curves(folder / "losses.png", measured.runs, key="train_loss", published=measured.published)
    rates = "at default and at searched rates; the line is the mean over seeds, the band their range"
    return {
        "figure.png": "Test accuracy of each optimizer: the report's figure, at default and at searched rates",
        "curves.png": f"Test accuracy by epoch, a panel for each optimizer, {rates}",
        "losses.png": f"Training loss by epoch, a panel for each optimizer, {rates}",
    }


def _dots(path: Path, done: Sequence[Run], published: Published) -> None:
    """Draw a line for each optimizer, on a scale on which 99 % is twice as far as 90 %: a dot a column and control."""
    columns: dict[str, dict[str, list[float]]] = {
        "published": {name: [found.value] for name in NAMES if (found := published_result(name, published))},
        **{label: accuracies(done, phase) for phase, label in LABELS.items()},
        **{f"control: {label}": accuracies(done, phase) for phase, label in CONTROL_LABELS.items()},
    }
    markers = ("D", "o", "s", "^", "v", "<", ">")
    colours = (plots.INK, plots.SERIES_COLOURS[1], plots.SERIES_COLOURS[0], *plots.SERIES_COLOURS[2:6])
    names = [name for name in NAMES if name in columns["default rate"]]
    shifts = (0.0, -0.13, 0.13, -0.26, 0.26, -0.39, 0.39)  # SGD has all of them
    with plots.drawing(path, height=0.5 * len(names) + 1.6) as figure:
        axes = figure.subplots()
        for (column, by_name), shift, marker, colour in zip(columns.items(), shifts, markers, colours, strict=True):
            rows = [row + shift for row, name in enumerate(names) if name in by_name]
            values = [by_name[name] for name in names if name in by_name]
            for row, one in zip(rows, values, strict=True):
                low, high = (_nines(end) for end in verdict.prediction_interval(one))
                axes.plot([low, high], [row] * 2, color=colour, linewidth=1.4)
            means = [_nines(statistics.fmean(one)) for one in values]
            fill = "white" if column == "published" else colour
            axes.plot(means, rows, marker, color=colour, markerfacecolor=fill, markersize=5.5, label=column)
        axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        _name_nines(axes.set_xticks, [80, 90, 95, 98, 99, 99.5])
        axes.tick_params(axis="y", length=0, labelcolor=plots.INK)
        axes.set_xlabel("last test accuracy, by the logarithm of the error")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _curves(path: Path, done: Sequence[Run], *, key: str, published: Published) -> None:
    """Draw a quantity by epoch, a panel for each optimizer: the mean over seeds at both rates, and their range."""
    is_accuracy = key == "test_accuracy"
    colours = dict(zip(PHASES, (plots.SERIES_COLOURS[1], plots.SERIES_COLOURS[0]), strict=True))
    with plots.drawing(path, height=6.2) as figure:
        figure.set_figwidth(7.5)
        panels: NDArray[Any] = figure.subplots(4, 3, sharex=True, sharey=True)
        for axes, (name, title) in zip(panels.flat, NAMES.items(), strict=False):
            for phase, colour in colours.items():
                epochs, curves = histories(done, phase, name)
                values = _nines(100 * curves[key]) if is_accuracy else curves[key]
                middle = _nines(100 * curves[key].mean(axis=0)) if is_accuracy else curves[key].mean(axis=0)
                axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, linewidth=0)
                axes.plot(epochs, middle, color=colour, linewidth=1.4, label=LABELS[phase])
            found = published_result(name, published) if is_accuracy else None
            if found:
                axes.axhline(
                    float(_nines(found.value)), color=plots.INK, linestyle=":", linewidth=1.2, label="published"
                )
            axes.set_title(title)
        panels.flat[-1].set_visible(False)
        panels[-2, -1].tick_params(labelbottom=True)  # the one below it is empty
        figure.supxlabel("epoch", fontsize=9, color=plots.MUTED)
        if is_accuracy:
            _name_nines(panels[0, 0].set_yticks, [0, 50, 80, 90, 95, 98, 99])
            figure.supylabel("test accuracy, by the logarithm of the error", fontsize=9, color=plots.MUTED)
        else:
            panels[0, 0].set_yscale("log")
            figure.supylabel("training loss in nats, logarithmic", fontsize=9, color=plots.MUTED)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8)


def _nines(percent: Any) -> NDArray[np.float64]:
    """Return the position at which an accuracy is drawn: 90 % at 1, 99 % at 2."""
    result: NDArray[np.float64] = -np.log10(1 - np.asarray(percent, dtype=np.float64) / 100)
    return result


def _name_nines(set_ticks: Any, percents: list[float]) -> None:
    set_ticks([float(_nines(percent)) for percent in percents], [f"{percent:g} %" for percent in percents])
