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
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.study import Measured
from studies.optimizers.results import NAMES, PHASES, accuracies, histories, published_result, shown


def draw(folder: Path, measured: Measured) -> list[str]:
    """Draw the report's bars with both columns beside them, and the learning curves."""
    _bars(folder / "figure.png", measured.runs, measured.published)
    _curves(folder / "curves.png", measured.runs)
    return ["figure.png", "curves.png"]


def _bars(path: Path, done: Sequence[Run], published: Published) -> None:
    """Draw horizontal bars, on a scale on which 99 % is twice as far as 90 %."""
    columns = {"published": {name: [found.value] for name in NAMES if (found := published_result(name, published))}}
    columns |= {phase: accuracies(done, phase) for phase in PHASES}
    colours = dict(zip(columns, (plots.MUTED, plots.SERIES_COLOURS[1], plots.SERIES_COLOURS[0]), strict=True))
    names = [name for name in NAMES if name in columns["tuned"]]
    with plots.drawing(path, height=0.62 * len(names) + 1.1) as figure:
        axes = figure.subplots()
        for row, name in enumerate(names):
            bars = [(column, values[name]) for column, values in columns.items() if name in values]
            for place, (column, values) in enumerate(bars):
                y = row + 0.27 * (place - (len(bars) - 1) / 2)
                mean = statistics.fmean(values)
                label = column if row == 0 else None
                axes.barh(y, _nines(mean), height=0.25, color=colours[column], label=label)
                text = f"{mean:g} %" if column == "published" else shown(values)
                axes.annotate(text, (float(_nines(mean)), y), (3, 0), textcoords="offset points", va="center", size=7)
        axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 2.75)
        _name_nines(axes.set_xticks, [0, 50, 90, 99, 99.5])
        axes.tick_params(axis="y", length=0, labelcolor=plots.INK)
        axes.grid(axis="y", visible=False)
        axes.set_title("test accuracy after the last epoch")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


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
        lower.set_ylabel("test accuracy")
        panels[0, 0].set_ylabel("training loss, nats")
        figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def _nines(percent: Any) -> NDArray[np.float64]:
    """Return the position at which an accuracy is drawn: 90 % at 1, 99 % at 2."""
    result: NDArray[np.float64] = -np.log10(1 - np.asarray(percent, dtype=np.float64) / 100)
    return result


def _name_nines(set_ticks: Any, percents: list[float]) -> None:
    set_ticks([float(_nines(percent)) for percent in percents], [f"{percent:g} %" for percent in percents])
