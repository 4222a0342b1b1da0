"""The plots of the report: small figures that stay legible on a phone, drawn without pyplot or a display.

Each `draw_` function writes one PNG file to `path`, whole or not at all; the same numbers give the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from mnist_pipe.atomic import atomic_file
from mnist_pipe.data.facts import MNIST, Shape
from mnist_pipe.evaluation.metrics import CalibrationBins, ClassMetrics, wilson_interval

WIDTH_INCHES = 5.2
"""Width of every figure, in inches: at the width of a phone its 9-point text is still legible."""
INK, MUTED, FAINT, BLUE, RED = "#1f2328", "#6a727c", "#e4e7eb", "#1f5fa8", "#b8431b"
SERIES_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6a4c9c",
    "#1f2328",
)  # Okabe and Ito
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COUNTED_CLASSES = 20
_MAX_TICKS = 100
_SHOWN_CLASSES, _WORST_CLASSES = 30, 20
_MAX_TEMPLATES = 50
_NAME_WIDTH = 14  # characters of a class's name
MANY_TRIALS = 200
"""Number of trials above which the markers of trials are small."""
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the plots are the same on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b4bac2",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#b4bac2",
    "ytick.color": "#b4bac2",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def draw_confusion(path: Path, matrix: NDArray[np.int64], *, names: Sequence[str] = MNIST.labels) -> None:
    """Draw a confusion matrix with the actual classes as rows and the predicted ones as columns.

    Only mistakes are coloured, on a square-root scale: beside 980 hits, 3 mistakes would not be visible. The counts are
    written for up to `_COUNTED_CLASSES`; with more, the cells are too small and the plot grows with their number.

    Args:
        path: the PNG file.
        matrix: the counts, int64 `(classes, classes)`.
        names: the names of the classes.
    """
    number = len(names)
    mistakes = matrix * (1 - np.eye(number, dtype=np.int64))
    colours = LinearSegmentedColormap.from_list("mistakes", ["#ffffff", "#f3c2a6", RED])
    is_counted = number <= _COUNTED_CLASSES
    side = max(4.9, 0.13 * min(number, _MAX_TICKS))  # room for a line of text in each row
    with drawing(path, height=side, width=max(WIDTH_INCHES, side + 0.3)) as figure:
        axes = figure.subplots()
        axes.imshow(mistakes, cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=max(1, int(mistakes.max()))))
        for actual, predicted in np.ndindex(matrix.shape):
            count, hit = int(matrix[actual, predicted]), actual == predicted
            if hit:
                axes.add_patch(Rectangle((predicted - 0.5, actual - 0.5), 1, 1, facecolor="#f1f3f5"))
            if count and is_counted:
                dark = not hit and count > 0.45 * mistakes.max()
                colour = MUTED if hit else "white" if dark else INK
                axes.text(predicted, actual, str(count), ha="center", va="center", color=colour)
        num_mistakes, num_rows = int(mistakes.sum()), int(matrix.sum())
        axes.set_title(f"{num_mistakes:,} of {num_rows:,} predicted wrong")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("actual class")
        shown = [_short(name) for name in names]
        size = 9 if is_counted else 6.5
        places = range(0, number, -(-number // _MAX_TICKS))
        turned = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(places, [shown[place] for place in places], fontsize=size, rotation=turned, parse_math=False)
        axes.set_yticks(places, [shown[place] for place in places], fontsize=size, parse_math=False)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=FAINT)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)


def draw_curves(path: Path, table: pd.DataFrame) -> None:
    """Draw loss and accuracy by epoch, of a table with the columns of `reports/curves.csv`."""
    epochs = table["epoch"].to_numpy()
    with drawing(path, height=4.9) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for axes, name, label in ((upper, "loss", "{:.3f}"), (lower, "accuracy", "{:.2%}")):
            lines = {split: table[f"{split}_{name}"].to_numpy() for split in ("train", "validation")}
            height = _accuracy_axis(axes, np.concatenate(list(lines.values()))) if name == "accuracy" else np.asarray
            ends = []
            for (split, values), colour in zip(lines.items(), (MUTED, BLUE), strict=True):
                axes.plot(epochs, height(values), color=colour, marker="o", markersize=3.5)
                text = f"{split} {label.format(values[-1]).replace('%', ' %')}"
                ends.append((float(height(values)[-1]), text, colour))
            axes.set_title(name)
            label_ends(axes, x=float(epochs[-1]), ends=ends)
        upper.yaxis.set_major_locator(MaxNLocator(5))
        upper.set_xlim(epochs[0] - max(0.04 * len(epochs), 0.1), epochs[-1] + 0.1)
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(FixedLocator(list(epochs)) if len(epochs) < 10 else MaxNLocator(10, integer=True))


def worst_mistakes(
    labels: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    *,
    num_worst: int,
) -> NDArray[np.int64]:
    """Return the rows that were predicted wrong with the highest probabilities.

    Args:
        labels: the actual classes, uint8 `(N,)`.
        predictions: the predicted classes, uint8 `(N,)`.
        probabilities: the probability of each predicted class, float32 `(N,)`.
        num_worst: the largest number of rows to return.

    Returns:
        Row numbers, int64 `(at most num_worst,)`, by falling probability; of equal ones the first row comes first.
    """
    wrong = np.flatnonzero(predictions != labels)
    return wrong[np.argsort(-probabilities[wrong], kind="stable")][:num_worst]


def draw_mistakes(
    path: Path,
    images: NDArray[np.float32],
    *,
    labels: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    num_worst: int,
    names: Sequence[str] = MNIST.labels,
) -> None:
    """Draw the images that the model predicted wrong with the highest probabilities.

    Args:
        path: the PNG file.
        images: float32 `(N, height, width)`, or `(N, 3, height, width)` in colour.
        labels: the actual classes, uint8 `(N,)`.
        predictions: the predicted classes, uint8 `(N,)`.
        probabilities: the probability of each predicted class, float32 `(N,)`.
        num_worst: the largest number of images to draw.
        names: the names of the classes.
    """
    worst = worst_mistakes(labels, predictions, probabilities, num_worst=num_worst)
    num_wrong = int((predictions != labels).sum())
    columns = 5
    rows = max(1, -(-len(worst) // columns))
    with drawing(path, height=0.35 + 1.22 * rows) as figure:
        title = f"{len(worst)} of {num_wrong} mistakes, the surest first" if num_wrong else "no mistakes"
        figure.suptitle(title, x=0.02, ha="left", fontsize=10)
        for axes, row in tiles(figure, rows, columns, items=list(worst)):
            axes.imshow(images[row] if images.ndim == 3 else _in_colour(images[row]), cmap="gray_r")
            actual, predicted = _short(names[labels[row]]), _short(names[predictions[row]])
            axes.set_title(
                f"{actual} → {predicted}  {probabilities[row]:.0%}".replace("%", " %"),
                loc="center",
                fontsize=9 if len(actual + predicted) < 6 else 6,
                pad=4,
                parse_math=False,
            )


def _in_colour(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a standardised image, float32 `(3, height, width)`, as levels in [0, 1], `(height, width, 3)`."""
    low, high = float(image.min()), float(image.max())
    return (image.transpose(1, 2, 0) - low) / max(high - low, 1e-6)


def draw_templates(
    path: Path, weights: NDArray[np.float32], *, shape: Shape = MNIST.shape, names: Sequence[str] = MNIST.labels
) -> None:
    """Draw the weights of the linear model as one image per class, for the first `_MAX_TEMPLATES` classes.

    Of grey images, weights for the class are blue, weights against it red. Of images in colour, grey is a weight of 0,
    and a channel is lighter where it speaks for the class.

    Args:
        path: the PNG file.
        weights: float32 `(classes, channels * height * width)`.
        shape: the shape of the images.
        names: the names of the classes.
    """
    limit = float(np.quantile(np.abs(weights), 0.995)) or 1.0  # a few rarely inked pixels would make the rest pale
    colours = LinearSegmentedColormap.from_list("templates", [RED, "#ffffff", BLUE])
    shown = list(range(min(len(names), _MAX_TEMPLATES)))
    rows = -(-len(shown) // 5)
    with drawing(path, height=0.35 + 1.2 * rows) as figure:
        for axes, label in tiles(figure, rows, 5, items=shown):
            template = weights[label].reshape(shape)
            if len(template) == 1:
                axes.imshow(template[0], cmap=colours, vmin=-limit, vmax=limit)
            else:
                axes.imshow((0.5 + template.transpose(1, 2, 0) / (2 * limit)).clip(0, 1))
            name = _short(names[label])
            axes.set_title(name, loc="center", pad=4, fontsize=10 if len(name) < 8 else 7, parse_math=False)


def draw_search(path: Path, trials: pd.DataFrame) -> None:
    """Draw each trial's validation accuracy against its learning rate, of a table as in `reports/trials.csv`."""
    scored = _scored(trials)
    unscored = trials.drop(scored.index)
    colours = dict(zip(sorted(trials["optimizer"].unique()), SERIES_COLOURS * 9, strict=False))
    markers = dict(zip(sorted(trials["model"].unique()), SERIES_MARKERS * 9, strict=False))
    with drawing(path, height=4.9) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        height = _accuracy_axis(axes, scored["validation_accuracy"].to_numpy())
        # A line for each kind of trial: one for each trial would take a minute for 10,000.
        for (optimizer, model, status), group in scored.groupby(["optimizer", "model", "status"], sort=False):
            colour = colours[optimizer]
            axes.plot(
                group["learning_rate"],
                height(group["validation_accuracy"]),
                linestyle="none",
                marker=markers[model],
                markersize=7 if len(trials) <= MANY_TRIALS else 3,
                color=colour,
                markerfacecolor=colour if status == "finished" else "white",
                markeredgewidth=1.4 if len(trials) <= MANY_TRIALS else 0.6,
                alpha=0.9,
            )
        for optimizer, group in unscored.groupby("optimizer", sort=False):  # on the axis, as they have no accuracy
            axes.plot(
                group["learning_rate"],
                np.full(len(group), 0.02),
                "x",
                color=colours[optimizer],
                markersize=6,
                markeredgewidth=1.6,
                transform=axes.get_xaxis_transform(),
            )
        axes.set_title("validation accuracy of each trial")
        axes.set_xlabel("learning rate")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

        def handle(label: str, **style: Any) -> Line2D:
            return Line2D([], [], linestyle="none", label=label, markersize=6, **style)

        optimizers = [handle(name, marker="o", color=colour) for name, colour in colours.items()]
        others = [handle(name, marker=marker, color=MUTED) for name, marker in markers.items()]
        if (scored["status"] != "finished").any():
            others.append(handle("stopped early", marker="o", color=MUTED, markerfacecolor="white"))
        if len(unscored):
            others.append(handle("diverged or failed", marker="x", color=MUTED))

        def legend(handles: list[Line2D], loc: Any) -> None:
            labels = [str(one.get_label()) for one in handles]
            columns = -(-len(handles) // 3)
            figure.legend(handles, labels, loc=loc, ncols=columns, fontsize=8, handletextpad=0.1, columnspacing=1)

        legend(optimizers, "outside lower left")
        legend(others, "outside lower right")


def _scored(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that have an accuracy, of a table as in `reports/trials.csv`."""
    scored: pd.DataFrame = trials[
        trials["status"].isin(["finished", "stopped"]) & np.isfinite(trials["validation_accuracy"])
    ]
    return scored


def draw_rates(path: Path, trials: pd.DataFrame) -> None:
    """Draw validation accuracy against learning rate once for each optimizer, of a table as in `reports/trials.csv`.

    The trials of the other optimizers are grey, so that each is seen beside all.
    """
    scored = _scored(trials)
    names = sorted(trials["optimizer"].unique())
    rows = -(-len(names) // 2)
    size = 5 if len(trials) <= MANY_TRIALS else 2
    with drawing(path, height=0.8 + 1.5 * rows) as figure:
        grid = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
        for axes, name, colour in zip(grid.flat, names, SERIES_COLOURS * 9, strict=False):
            axes.set_xscale("log")
            height = _accuracy_axis(axes, scored["validation_accuracy"].to_numpy())
            for group, style in ((scored, {"color": FAINT}), (scored[scored["optimizer"] == name], {"color": colour})):
                rates, accuracies = group["learning_rate"], height(group["validation_accuracy"])
                axes.plot(rates, accuracies, linestyle="none", marker="o", markersize=size, **style)
            axes.set_title(name)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("learning rate", fontsize=9, color=MUTED)


def draw_reliability(path: Path, bins: CalibrationBins, *, uncalibrated: CalibrationBins, confidence: float) -> None:
    """Draw the accuracy against the predicted probability by bin, with Wilson intervals, and the rows of each bin.

    Args:
        path: the file of the picture.
        bins: the reliability of the model.
        uncalibrated: its reliability before calibration, drawn as hollow markers.
        confidence: the confidence of the intervals, 0 to 1.
    """
    with drawing(path, height=4.9) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color="#b4bac2", linewidth=1)
        for count, correct, total in zip(bins.counts, bins.num_correct, bins.confidence_sums, strict=True):
            if count:
                low, high = wilson_interval(int(correct), num_rows=int(count), confidence=confidence)
                upper.plot([total / count] * 2, [low, high], color=BLUE, alpha=0.45)
                upper.plot(total / count, correct / count, "o", color=BLUE, markersize=5)
        filled = uncalibrated.counts > 0
        upper.plot(
            (uncalibrated.confidence_sums / uncalibrated.counts.clip(1))[filled],
            (uncalibrated.num_correct / uncalibrated.counts.clip(1))[filled],
            "o",
            color=MUTED,
            markersize=5,
            markerfacecolor="none",
            label=f"before calibration, error {uncalibrated.error:.4f}",
        )
        upper.plot([], [], "o", color=BLUE, markersize=5, label=f"calibrated, error {bins.error:.4f}")
        upper.legend(loc="lower right")
        upper.set_ylabel("accuracy")
        upper.set(xlim=(0, 1.01), ylim=(0, 1.03))
        lower.bar(bins.edges[:-1], bins.counts, width=np.diff(bins.edges) * 0.86, align="edge", color=BLUE, alpha=0.75)
        lower.set_yscale("log")
        lower.yaxis.set_major_locator(LogLocator(numticks=8))
        lower.set_ylim(bottom=0.7)
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
        lower.minorticks_off()
        lower.set_ylabel("rows")
        lower.set_xlabel("probability of the predicted class")


def draw_coverage(path: Path, confidences: NDArray[np.float32], correct: NDArray[np.bool_]) -> None:
    """Draw the accuracy of the most confident rows against their share of all rows.

    Args:
        path: the file of the picture.
        confidences: the probability of the predicted class, float32 `(N,)`.
        correct: whether the prediction is right, bool `(N,)`.
    """
    order = np.argsort(-confidences, kind="stable")
    answered = np.arange(1, len(order) + 1)
    errors = 1 - np.cumsum(correct[order]) / answered
    with drawing(path, height=3.4) as figure:
        axes = figure.subplots()
        axes.plot(100 * answered / len(order), 100 * errors, color=BLUE)
        axes.set(xlim=(0, 101), ylim=(0, None))
        axes.set_xlabel("rows answered, the most confident first, %")
        axes.set_ylabel("wrong answers, %")


def draw_classes(path: Path, classes: Sequence[ClassMetrics], *, confidence: float) -> None:
    """Draw the recall of each class with its Wilson interval, the worst first; beyond 30 classes only the worst 20.

    `confidence` is that of the intervals, 0 to 1.
    """
    known = sorted(
        (one for one in classes if one.num_rows), key=lambda one: (one.num_correct / one.num_rows, one.label)
    )
    shown = known if len(known) <= _SHOWN_CLASSES else known[:_WORST_CLASSES]
    with drawing(path, height=max(3.4, 0.22 * len(shown) + 0.8)) as figure:
        axes = figure.subplots()
        lows = []
        for place, one in enumerate(shown):
            low, high = wilson_interval(one.num_correct, num_rows=one.num_rows, confidence=confidence)
            lows.append(low)
            axes.plot([low, high], [place] * 2, color=BLUE, alpha=0.4, linewidth=3, solid_capstyle="butt")
            axes.plot(one.num_correct / one.num_rows, place, "o", color=BLUE, markersize=6)
        which = f"the worst {len(shown)} of {len(known)} classes" if len(shown) < len(known) else "each class"
        axes.set_title(f"share of {which} recognised")
        axes.set_yticks(range(len(shown)), [_short(one.name) for one in shown], parse_math=False)
        axes.invert_yaxis()
        axes.set_ylabel("actual class")
        lowest = min(lows, default=0.0)
        axes.set_xlim(lowest - 0.03 * (1 - lowest), 1 + 0.03 * (1 - lowest))
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", visible=False)


def _short(name: str) -> str:
    """Return the name of a class, cut to `_NAME_WIDTH` characters."""
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")


@contextmanager
def drawing(path: Path, *, height: float, width: float = WIDTH_INCHES) -> Iterator[Figure]:
    """Yield a figure in the project's style, of a size in inches, and save it to `path` at the end of the block."""
    # default first: a matplotlibrc changes nothing
    with matplotlib.style.context(("default", _STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in the name of a class
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09), facecolor="white")
        yield figure
        with atomic_file(path) as temporary:
            # The version of matplotlib in the file would change its bytes with every upgrade.
            figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})


def tiles(figure: Figure, rows: int, columns: int, *, items: list[Any]) -> Iterator[tuple[Axes, Any]]:
    """Yield axes without ticks for each item, with the item, row by row; hide the axes that are left over."""
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(FAINT)
    for axes in grid.flat[len(items) :]:
        axes.set_visible(False)
    yield from zip(grid.flat, items, strict=False)


def _accuracy_axis(axes: Axes, accuracies: NDArray[np.floating[Any]]) -> Callable[[Any], NDArray[np.float64]]:
    """Set up a y axis on which 99 to 99.9 % takes as much room as 90 to 99 %.

    Args:
        axes: the axes to set up.
        accuracies: the accuracies to show, floating point `(N,)`.

    Returns:
        The function that maps an accuracy, or an array of them, to its float64 position on the axis.
    """
    errors = 1 - accuracies
    floor = float(errors[errors > 0].min(initial=0.01)) / 2  # where 100 % is drawn

    def height(accuracy: Any) -> NDArray[np.float64]:
        result: NDArray[np.float64] = -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=np.float64), floor))
        return result

    heights = height(accuracies) if accuracies.size else np.array([0.0, 1.0])
    low, high = heights.min(), heights.max()
    room = max(0.08 * (high - low), 0.25 if high == low else 0.1)
    axes.set_ylim(low - room, high + room)
    steps = (1.0, 0.3) if high - low > 1.5 else (1.0, 0.5, 0.3, 0.2)
    ticks = [1 - step * 10.0**-decade for decade in range(5) for step in steps]
    ticks = [tick for tick in ticks if low - room <= height(tick) <= high + room and 1 - tick > 1.5 * floor]
    ticks += [1.0] if (errors <= 0).any() else []
    axes.set_yticks([float(height(tick)) for tick in ticks], [_PERCENT(tick) for tick in ticks])
    return height


def label_ends(axes: Axes, *, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Label each line beside its last point, and move two labels apart that would touch.

    Args:
        axes: the axes of the lines.
        x: the x coordinate of the last points.
        ends: the y coordinate of the last point, the label and the colour of each line.
    """
    points = sorted(axes.transData.transform((x, value))[1] for value, _, _ in ends)
    touching = len(points) > 1 and points[-1] - points[0] < 14 * axes.figure.dpi / 72
    for rank, (value, text, colour) in enumerate(sorted(ends)):
        shift = (-6 if rank == 0 else 6) if touching else 0
        axes.annotate(
            text, (x, value), xytext=(7, shift), textcoords="offset points", color=colour, va="center", fontsize=8.5
        )
