"""The figures of the study `optimizers`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mnist_pipe.evaluation import plots
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.study import Measured
from studies.optimizers.results import CONTROL_LABELS, NAMES, PHASES, accuracies, histories, published_result


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw the report's accuracies beside ours, and the learning curves."""
    _dots(folder / "figure.png", measured.runs, measured.published)
    _curves(folder / "curves.png", measured.runs)
    return {
        "figure.png": "Test accuracy of each optimizer: the report's figure, at default and at searched rates",
        "curves.png": "Training loss and test accuracy by epoch of each optimizer, at default and at searched rates",
    }


def _dots(path: Path, done: Sequence[Run], published: Published) -> None:
    """Draw a line for each optimizer, on a scale on which 99 % is twice as far as 90 %: a dot a column and control."""
    columns: dict[str, dict[str, list[float]]] = {
        "published": {name: [found.value] for name in NAMES if (found := published_result(name, published))},
        "default rate": accuracies(done, "defaults"),
        "searched rate": accuracies(done, "tuned"),
        **{f"control: {label}": accuracies(done, phase) for phase, label in CONTROL_LABELS.items()},
    }
    markers = ("D", "o", "s", "^", "v", "<", ">")
    colours = (plots.INK, plots.SERIES_COLOURS[1], plots.SERIES_COLOURS[0], *plots.SERIES_COLOURS[2:6])
    names = [name for name in NAMES if name in columns["default rate"]]
    with plots.drawing(path, height=0.42 * len(names) + 1.4) as figure:
        axes = figure.subplots()
        for (column, by_name), marker, colour in zip(columns.items(), markers, colours, strict=False):
            shift = {"default rate": -0.14, "searched rate": 0.14}.get(column, 0.0)
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
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7.5)


def _curves(path: Path, done: Sequence[Run]) -> None:
    """Draw training loss and test accuracy by epoch, means over seeds: a column of panels for each of the study's."""
    styles = dict(zip(NAMES, itertools.product(("-", "--"), plots.SERIES_COLOURS), strict=False))
    with plots.drawing(path, height=5.6) as figure:
        figure.set_figwidth(8.5)
        panels: NDArray[Any] = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, phase in enumerate(PHASES):
            for name, (style, colour) in styles.items():
                epochs, curves = histories(done, phase, name)
                options = {"linestyle": style, "color": colour, "linewidth": 1.4, "label": NAMES[name]}
                panels[0, column].plot(epochs, curves["train_loss"], **options)
                panels[1, column].plot(epochs, _nines(100 * curves["test_accuracy"]), **options)
            panels[0, column].set(title=phase, yscale="log")
            panels[1, column].set_xlabel("epoch")
        lower: Axes = panels[1, 0]
        _name_nines(lower.set_yticks, [0, 50, 80, 90, 95, 98, 99])
        lower.set_ylabel("test accuracy\n(logarithm of the error)")
        panels[0, 0].set_ylabel("training loss, nats\n(logarithmic)")
        figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def _nines(percent: Any) -> NDArray[np.float64]:
    """Return the position at which an accuracy is drawn: 90 % at 1, 99 % at 2."""
    result: NDArray[np.float64] = -np.log10(1 - np.asarray(percent, dtype=np.float64) / 100)
    return result


def _name_nines(set_ticks: Any, percents: list[float]) -> None:
    set_ticks([float(_nines(percent)) for percent in percents], [f"{percent:g} %" for percent in percents])
