"""The figures of the study `ladder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES, PIXELS, SIDE
from mnist_pipe.evaluation import plots
from studies.common.ledger import Run
from studies.common.packing import unpacked
from studies.common.study import Measured
from studies.common.table import probability
from studies.ladder.results import (
    SIDES,
    is_linear,
    kinds_of,
    size_of,
    steps_of,
    templates_of,
    values_of,
    weights_in_colour,
)
from studies.ladder.runs import SHOWN, SHOWN_PROTOTYPES, by_name, is_moved

_PERCENT = FuncFormatter(lambda value, _: f"{value:g} %")


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw the ladder, the templates, two figures of where the models break, their sizes, and the regression."""
    done, conclusions = measured.runs, measured.conclusions
    classifiers = by_name(done, task="classify")
    draw_ladder(folder / "figure.png", classifiers, steps=steps_of(classifiers, conclusions))
    plots.draw_templates(folder / "templates.png", _templates(conclusions))
    draw_failures(folder / "failure.png", classifiers)
    draw_classes(folder / "classes.png", classifiers)
    draw_sizes(folder / "sizes.png", classifiers)
    draw_regression(folder / "regression.png", by_name(done, task="regress"), points=conclusions["scatter"])
    draw_locality(folder / "locality.png", classifiers, by_name(done, task="shuffled"))
    draw_prototypes(folder / "prototypes.png", done, shown=conclusions["prototypes"])
    draw_few(folder / "few.png", by_name(done, task="few"))
    return {
        "figure.png": "Test error against parameters of each model, with the p-value of each step",
        "templates.png": "Weights of the linear model as images, one a digit: blue for the digit, red against it",
        "failure.png": "Accuracy of each model as the test images are shifted and turned",
        "classes.png": "Accuracy of each digit and model as the test images are shifted and turned, as a heat map",
        "sizes.png": "Number of parameters of each model against the side of its images",
        "regression.png": "Predicted against true slant of the first test digits, for each regressor",
        "locality.png": "Test accuracy of two models with the pixels in place and shuffled; only the convnet loses",
        "prototypes.png": "Templates of the classes 4 and 7 by k-means, and accuracy by the number of templates",
        "few.png": "Training and test accuracy of two models that were trained on few rows",
    }


def draw_ladder(path: Path, classifiers: Mapping[str, Sequence[Run]], *, steps: Sequence[Mapping[str, Any]]) -> None:
    """Draw test error against parameters: mean and standard deviation over the seeds, and the p-value of each step."""
    with plots.drawing(path, height=4.4) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="parameters (logarithmic)", ylabel="test error (logarithmic)")
        axes.set_title("test error, p of each step; hollow: moved images")
        at = {}
        for (name, runs), colour in _coloured(classifiers):
            errors = [100 * (1 - value) for value in values_of(runs, "test_accuracy")]
            at[name] = runs[0].result["parameters"], fmean(errors)
            lines = [*name.split(", "), f"{fmean(errors):.2f} ± {stdev(errors):.2f} %"]
            lines += [probability(step["p_value"]) for step in steps if step["upper"] == name]
            # The steps run from the upper left to the lower right; a model on moved images stands below its twin.
            below = is_moved(runs[0].config)
            axes.errorbar(
                *at[name],
                yerr=stdev(errors),
                fmt="o",
                color=colour,
                markerfacecolor="white" if below else colour,
                capsize=3,
                zorder=3,
            )
            axes.annotate(
                "\n".join(lines),
                at[name],
                xytext=(-8, -2) if below else (8, 2),
                textcoords="offset points",
                ha="right" if below else "left",
                va="top" if below else "bottom",
                color=colour,
                fontsize=8.5,
            )
        for step in steps:
            x, y = zip(at[step["lower"]], at[step["upper"]], strict=True)
            axes.plot(x, y, color=plots.MUTED, linewidth=1, linestyle=":", zorder=1)
        sizes, means = ([point[axis] for point in at.values()] for axis in (0, 1))
        low, high = min(means) / 1.9, max(means) * 1.9
        axes.set(xlim=(min(sizes) / 1.8, max(sizes) * 3.6), ylim=(low, high))
        ticks = [tick for tick in (0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 50) if low < tick < high]
        axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def draw_failures(path: Path, classifiers: Mapping[str, Sequence[Run]]) -> None:
    """Draw the accuracy of each model against the shift and the rotation of the test images."""
    with plots.drawing(path, height=3.6) as figure:
        figure.set_figwidth(8.4)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, amounts, title, unit) in zip(panels, kinds_of(classifiers), strict=True):
            for (name, runs), colour in _coloured(classifiers):
                seeds = 100 * np.array([one.result[kind]["accuracy"] for one in runs])
                style = "--" if is_moved(runs[0].config) else "-"
                axes.plot(amounts, seeds.mean(0), style, marker="o", markersize=3, color=colour, label=name)
                axes.fill_between(amounts, seeds.min(0), seeds.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.set(title=title, xlabel=unit)
            axes.yaxis.set_major_formatter(_PERCENT)
        panels[0].set_ylim(0, 102)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def draw_classes(path: Path, classifiers: Mapping[str, Sequence[Run]]) -> None:
    """Draw the accuracy of each class against shift and rotation: a heat map for each model, means over the seeds."""
    colours = LinearSegmentedColormap.from_list("accuracy", [plots.RED, "#f3c2a6", "#ffffff"])
    kinds = kinds_of(classifiers)
    widths = [len(amounts) for _, amounts, _, _ in kinds]
    with plots.drawing(path, height=2.6 * len(classifiers)) as figure:
        figure.set_figwidth(8.4)
        grid = figure.subplots(len(classifiers), 2, width_ratios=widths, squeeze=False)
        for line, (name, runs) in zip(grid, classifiers.items(), strict=True):
            for axes, (kind, amounts, _, unit) in zip(line, kinds, strict=True):
                rates = 100 * np.mean([one.result[kind]["by_class"] for one in runs], axis=0)
                _heat_map(axes, rates.T, colours=colours)
                axes.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
                axes.set_xlabel(unit)
            line[0].set(title=f"{name}: % recognised, shifted", ylabel="digit")
            line[1].set(title="turned")


def draw_sizes(path: Path, classifiers: Mapping[str, Sequence[Run]]) -> None:
    """Draw the parameters of each model against the side of its images.

    Dotted lines are the convnets whose classifier reads the mean of each map.
    """
    with plots.drawing(path, height=3.6) as figure:
        axes = figure.subplots()
        axes.set(
            xscale="log", yscale="log", xlabel="pixels along a side (logarithmic)", ylabel="parameters (logarithmic)"
        )
        for (name, runs), colour in _coloured(classifiers):
            if is_moved(runs[0].config):
                continue
            axes.plot(
                SIDES, [size_of(runs, side=side) for side in SIDES], "-o", markersize=3.5, color=colour, label=name
            )
            if is_linear(runs):
                colours = f"{name}, {SIDES[-1]} x {SIDES[-1]} in colour"
                axes.plot(SIDES[-1], weights_in_colour(), "x", color=colour, label=colours)
            else:
                axes.plot(SIDES, [size_of(runs, side=side, pooled=True) for side in SIDES], ":", color=colour)
        axes.plot([], [], ":", color=plots.MUTED, label="with the mean of each map")
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_regression(
    path: Path, regressors: Mapping[str, Sequence[Run]], *, points: Mapping[str, Sequence[float]]
) -> None:
    """Draw the predicted against the true slant of the first test digits, for each regressor at its first seed."""
    slants = np.array(points["slant"])
    low, high = slants.min() - 0.1, slants.max() + 0.1
    with plots.drawing(path, height=3.3) as figure:
        figure.set_figwidth(7)
        panels = figure.subplots(1, len(regressors), sharex=True, sharey=True, squeeze=False)
        for axes, (name, runs), colour in zip(panels[0], regressors.items(), plots.SERIES_COLOURS, strict=False):
            axes.plot([low, high], [low, high], color="#b4bac2", linewidth=1)
            axes.plot(slants, points[name], "o", markersize=2, alpha=0.4, color=colour, markeredgewidth=0)
            axes.set(xlim=(low, high), ylim=(low, high), xlabel="slant from the moments, pixels a row", aspect="equal")
            axes.set_title(f"{name}: R² {fmean(values_of(runs, 'r2')):.4f}")
        panels[0, 0].set_ylabel("predicted slant, pixels a row")
        figure.suptitle(
            f"the first {len(slants):,} test images, seed {next(iter(regressors.values()))[0].config['seed']}"
        )


def draw_locality(path: Path, classifiers: Mapping[str, Sequence[Run]], mixed: Mapping[str, Sequence[Run]]) -> None:
    """Draw the test accuracy of each model and seed, with pixels in place and shuffled."""
    columns = {"pixels in place": {name: classifiers[name] for name in mixed}, "pixels shuffled": mixed}
    values = {
        label: {name: values_of(runs, "test_accuracy") for name, runs in column.items()}
        for label, column in columns.items()
    }
    _draw_pairs(path, values)


def draw_few(path: Path, few: Mapping[str, Sequence[Run]]) -> None:
    """Draw the accuracy of each model and seed on its few training rows and on the test rows."""
    labels = {"training rows": "train_accuracy", "test rows": "test_accuracy"}
    _draw_pairs(
        path,
        {label: {name: values_of(runs, metric) for name, runs in few.items()} for label, metric in labels.items()},
    )


def _draw_pairs(path: Path, columns: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw a line for each model, with a dot for each seed and column."""
    names = list(next(iter(columns.values())))
    with plots.drawing(path, height=1.3 + 0.4 * len(names)) as figure:
        axes = figure.subplots()
        for (label, by_name), colour, marker in zip(columns.items(), plots.SERIES_COLOURS, "os", strict=False):
            for row, name in enumerate(names):
                accuracies = [100 * value for value in by_name[name]]
                axes.plot(
                    accuracies, [row] * len(accuracies), marker, color=colour, alpha=0.7, label="" if row else label
                )
        axes.set_yticks(range(len(names)), names)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="accuracy, a mark for each seed")
        axes.xaxis.set_major_formatter(_PERCENT)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_prototypes(path: Path, done: Sequence[Run], *, shown: Sequence[str]) -> None:
    """Draw the templates of `SHOWN`, a row for each class, and the accuracy by the number of templates."""
    numbers, curves = templates_of(done)
    with plots.drawing(path, height=3.0) as figure:
        figure.set_figwidth(8.4)
        *panels, axes = figure.subplots(1, len(SHOWN) + 1, width_ratios=[1] * len(SHOWN) + [1.6])
        for panel, text, label in zip(panels, shown, SHOWN, strict=True):
            images = unpacked(text, np.float16).reshape(SHOWN_PROTOTYPES // 2, 2, SIDE, SIDE)
            panel.imshow(images.astype(np.float32).transpose(0, 2, 1, 3).reshape(-1, 2 * SIDE), cmap="gray_r")
            panel.set_title(f"templates of the {label}s")
            panel.set_axis_off()
        axes.plot(numbers, 100 * curves.T, "o", color=plots.BLUE, markersize=3.5, alpha=0.6)
        axes.plot(numbers, 100 * curves.mean(0), color=plots.BLUE)
        axes.set(xscale="log", xlabel="templates a class (logarithmic)", title="accuracy of the nearest template, test")
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(_PERCENT)


def _heat_map(axes: Axes, rates: NDArray[np.float64], *, colours: LinearSegmentedColormap) -> None:
    """Draw percentages, float64 `(classes, amounts)`, as coloured and numbered cells."""
    axes.imshow(rates, cmap=colours, vmin=0, vmax=100, aspect="auto")
    for label, amount in np.ndindex(rates.shape):
        rate = rates[label, amount]
        axes.text(
            amount,
            label,
            f"{rate:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if rate < 35 else plots.INK,
        )
    axes.set_yticks(range(NUM_CLASSES))
    axes.tick_params(length=0, labelsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _coloured(classifiers: Mapping[str, Sequence[Run]]) -> Iterator[tuple[tuple[str, Sequence[Run]], str]]:
    return zip(classifiers.items(), plots.SERIES_COLOURS, strict=False)


def _templates(conclusions: Mapping[str, Any]) -> NDArray[np.float32]:
    return unpacked(conclusions["templates"], np.float16).astype(np.float32).reshape(NUM_CLASSES, PIXELS)
