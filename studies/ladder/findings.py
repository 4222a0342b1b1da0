"""How the ladder is shown: its steps, where its models break, what they cost at a higher resolution, the regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import atan, degrees
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES, PIXELS
from mnist_pipe.evaluation import plots
from mnist_pipe.evaluation.report import format_count as count
from mnist_pipe.evaluation.report import format_p_value as p_value
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.table import Row, markdown
from studies.ladder.runs import by_name, is_moved, num_parameters, unpacked

TITLE = "A ladder from the linear classifier"
SIGNIFICANCE = 0.05
"""A step improves measurably where its p-value is below."""
SIDES = (14, 28, 56, 112, 224)
"""Pixels along a side of the images whose models are counted."""
_REGRESSION = {"r2": "R²", "rmse": "root mean squared error", "mae": "mean absolute error"}
_PERCENT = FuncFormatter(lambda value, _: f"{value:g} %")


def rows(done: Sequence[Run], conclusions: Mapping[str, Any], published: Published) -> list[Row]:  # noqa: ARG001
    """Test accuracy of each classifier; R² and errors of each regressor."""
    lesson = published.find("linear softmax", "plain", "test_accuracy")
    classifiers = [
        Row(
            system=name.partition(", ")[0],
            variant="moved images" if is_moved(runs[0].config) else "plain",
            metric="test_accuracy",
            values=[100 * value for value in _values(runs, "test_accuracy")],
            unit="%",
            published=lesson if _is_linear(runs) else None,
            note=f"{count(runs[0].result['parameters'])} parameters",
        )
        for name, runs in by_name(done, task="classify").items()
    ]
    regressors = [
        Row(
            system=f"{name}, one output",
            variant="slant",
            metric=metric,
            values=_values(runs, metric),
            unit="",
            published=None,
            note="" if metric == "r2" else "pixels a row",
            headline=metric == "r2",
        )
        for name, runs in by_name(done, task="regress").items()
        for metric in _REGRESSION
    ]
    return classifiers + regressors


def draw(folder: Path, done: Sequence[Run], conclusions: Mapping[str, Any]) -> list[str]:
    """The ladder, the templates, two pictures of where the models break, their sizes, and the regression."""
    classifiers = by_name(done, task="classify")
    draw_ladder(folder / "figure.png", classifiers, steps=_steps(classifiers, conclusions))
    plots.draw_templates(folder / "templates.png", _templates(conclusions))
    draw_failures(folder / "failure.png", classifiers)
    draw_classes(folder / "classes.png", classifiers)
    draw_sizes(folder / "sizes.png", classifiers)
    draw_regression(folder / "regression.png", by_name(done, task="regress"), points=conclusions["scatter"])
    return ["figure.png", "templates.png", "failure.png", "classes.png", "sizes.png", "regression.png"]


def tell(done: Sequence[Run], rows: Sequence[Row], conclusions: Mapping[str, Any]) -> str:
    """What the ladder shows, claim by claim of the lesson."""
    classifiers = by_name(done, task="classify")
    paragraphs = [
        _on_the_steps(classifiers, conclusions, lesson=next(row for row in rows if row.published)),
        _on_the_templates(classifiers, conclusions),
        _on_the_failures(classifiers, conclusions),
        _on_the_classes(classifiers),
        _on_the_sizes(classifiers),
        _on_the_regression(by_name(done, task="regress")),
    ]
    return "\n\n".join(paragraphs)


def draw_ladder(path: Path, classifiers: Mapping[str, Sequence[Run]], *, steps: Sequence[Mapping[str, Any]]) -> None:
    """Test error against parameters: mean and standard deviation over the seeds, and the p-value of the step to it."""
    with plots.drawing(path, height=4.4) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="parameters", title="test error, and p of the step to it")
        at = {}
        for (name, runs), colour in _coloured(classifiers):
            errors = [100 * (1 - value) for value in _values(runs, "test_accuracy")]
            at[name] = runs[0].result["parameters"], fmean(errors)
            lines = [*name.split(", "), f"{fmean(errors):.2f} ± {stdev(errors):.2f} %"]
            lines += [_p(step) for step in steps if step["upper"] == name]
            # The steps come from the upper left and go to the lower right; a model without one stands below another.
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
    """Accuracy of each model against the shift and the rotation of the test images."""
    with plots.drawing(path, height=3.6) as figure:
        figure.set_figwidth(8.4)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, amounts, title, unit) in zip(panels, _kinds(classifiers), strict=True):
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
    """Accuracy of each class against shift and rotation: a heat map for each model, means over the seeds."""
    colours = LinearSegmentedColormap.from_list("accuracy", [plots.RED, "#f3c2a6", "#ffffff"])
    kinds = _kinds(classifiers)
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
            line[0].set(title=f"{name}: % of each class recognised", ylabel="class")


def draw_sizes(path: Path, classifiers: Mapping[str, Sequence[Run]]) -> None:
    """Parameters of each model against the side of its images; dotted, with the mean of each map in its place."""
    with plots.drawing(path, height=3.6) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="pixels along a side", title="parameters")
        for (name, runs), colour in _coloured(classifiers):
            if is_moved(runs[0].config):
                continue
            axes.plot(SIDES, [_size(runs, side=side) for side in SIDES], "-o", markersize=3.5, color=colour, label=name)
            if _is_linear(runs):
                colours = f"{name}, {SIDES[-1]} x {SIDES[-1]} in colour"
                axes.plot(SIDES[-1], _weights_in_colour(), "x", color=colour, label=colours)
            else:
                axes.plot(SIDES, [_size(runs, side=side, pooled=True) for side in SIDES], ":", color=colour)
        axes.plot([], [], ":", color=plots.MUTED, label="with the mean of each map")
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_regression(
    path: Path, regressors: Mapping[str, Sequence[Run]], *, points: Mapping[str, Sequence[float]]
) -> None:
    """The predicted against the true slant of the first test digits, for each regressor at its first seed."""
    slants = np.array(points["slant"])
    low, high = slants.min() - 0.1, slants.max() + 0.1
    with plots.drawing(path, height=3.3) as figure:
        figure.set_figwidth(7)
        panels = figure.subplots(1, len(regressors), sharex=True, sharey=True, squeeze=False)
        for axes, (name, runs), colour in zip(panels[0], regressors.items(), plots.SERIES_COLOURS, strict=False):
            axes.plot([low, high], [low, high], color="#b4bac2", linewidth=1)
            axes.plot(slants, points[name], "o", markersize=2, alpha=0.4, color=colour, markeredgewidth=0)
            axes.set(xlim=(low, high), ylim=(low, high), xlabel="slant from the moments", aspect="equal")
            axes.set_title(f"{name}: R² {fmean(_values(runs, 'r2')):.4f}")
        panels[0, 0].set_ylabel("predicted slant")


def _heat_map(axes: Axes, rates: NDArray[np.float64], *, colours: LinearSegmentedColormap) -> None:
    """(classes, amounts) percentages as coloured and numbered cells."""
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


def _on_the_steps(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any], *, lesson: Row) -> str:
    steps = _steps(classifiers, conclusions)
    failed = [_arrow(step) for step in steps if not _improves(step)]
    trained_on_moved = [name for name, runs in classifiers.items() if is_moved(runs[0].config)]
    largest = [name for name in classifiers if name not in trained_on_moved][-1]
    assert lesson.published is not None
    told = [
        "Every model is trained on all 60,000 rows, for as many epochs and by the same schedule; its learning rate and "
        "label smoothing were chosen on the validation split. A step is tested on the test rows, seed by seed, by "
        "McNemar's exact test. Its p-value is that of the median seed, enlarged so that it holds although all seeds "
        f"share the test rows (Rüger 1978); below {SIGNIFICANCE:g} the two models differ measurably.",
        "\n".join(f"- {_step(step, classifiers)}" for step in steps),
        "Each step should measurably improve the test metric, says the lesson, or one should investigate. "
        + (f"Not every step does: {'; '.join(failed)}." if failed else "Every step does.")
        + f" It calls {lesson.published.value:g} % an honest ceiling of the linear model; here that reaches "
        f"{lesson.shown()}.",
    ]
    told += [_instead(_pair(conclusions, lower=largest, upper=name), classifiers) for name in trained_on_moved]
    return "\n\n".join(told)


def _step(step: Mapping[str, Any], classifiers: Mapping[str, Sequence[Run]]) -> str:
    lower, upper = classifiers[step["lower"]], classifiers[step["upper"]]
    gains = [100 * gain for gain in step["gains"]]
    growth = upper[0].result["parameters"] / lower[0].result["parameters"]
    size = "no more parameters" if growth == 1 else f"{growth:.1f} times the parameters"
    seeds = f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
    only_upper, only_lower = fmean(step["only_upper"]), fmean(step["only_lower"])
    verdict = "it improves measurably" if _improves(step) else "it does not improve measurably"
    if step["p_value"] < SIGNIFICANCE and not _improves(step):
        verdict = "it is measurably worse"
    return (
        f"**{_arrow(step)}** ({size}): {_accuracy(lower)} to {_accuracy(upper)}, {fmean(gains):+.2f} ± "
        f"{stdev(gains):.2f} points, better with {seeds}; a seed has {only_upper:.0f} rows that only the upper model "
        f"gets right and {only_lower:.0f} that only the lower does, {_p(step)}: {verdict}."
    )


def _instead(step: Mapping[str, Any], classifiers: Mapping[str, Sequence[Run]]) -> str:
    """What moved training images are worth beside the largest model."""
    gain, share = 100 * fmean(step["gains"]), _share(classifiers, step)
    if step["p_value"] >= SIGNIFICANCE:
        verdict = "cannot be told apart from"
    else:
        verdict = "is measurably better than" if gain > 0 else "is measurably worse than"
    return (
        f"The {step['upper']}, with {share} of the parameters, {verdict} the {step['lower']} "
        f"({gain:+.2f} points, {_p(step)})."
    )


def _on_the_templates(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    linear = next(runs for runs in classifiers.values() if _is_linear(runs))
    accuracy, nearest = 100 * _mean(linear, "test_accuracy"), 100 * conclusions["nearest_mean_accuracy"]
    like = conclusions["likeness"]
    said = (
        "The templates are said to be averages of each digit, and the classifier to ask how much an image is like them."
    )
    found = f"the correlation of a template with the average of its class is {min(like):.2f} to {max(like):.2f}"
    looks = "They resemble them" if fmean(like) > 0.7 else "They do not look it" if fmean(like) < 0.4 else "In part"
    gap = accuracy - nearest
    worth = f"worth {gap:.1f} points more" if gap > 0 else f"no better, by {-gap:.1f} points"
    return (
        f"{said} {looks}: {found}. Whoever does take the nearest average is right on {nearest:.2f} %; templates "
        f"trained to tell each digit from its rivals are {worth}."
    )


def _on_the_failures(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    shifts = next(iter(classifiers.values()))[0].config["shifts"]
    curves = {name: _curve(runs, "shifted") for name, runs in classifiers.items()}
    linear, *others = curves
    at = min(2, len(shifts) - 1)
    falls = {name: curve[0] - curve[at] for name, curve in curves.items()}
    worst, last = max(falls[name] for name in others), {name: curves[name][-1] for name in others}
    best = max(others, key=lambda name: last[name])
    tiny = "tiny shifts break it indeed" if falls[linear] > worst else "tiny shifts break it no more than those"
    breaks = "The others break too" if last[best] < curves[best][0] / 2 else "The others hold out longer"
    return "\n\n".join(
        [
            "Where they break: accuracy on test images that are moved in each of the four directions, or turned either "
            "way; means over directions and seeds.",
            _failures(classifiers),
            f"Moved by {shifts[at]} pixels, the {linear} loses {falls[linear]:.1f} points and the others lose at most "
            f"{worst:.1f}: {tiny}. {breaks}: a convolution moves with the image, the classifier behind it does not. "
            f"Moved by {shifts[-1]} pixels, the best, the {best}, is right on {last[best]:.1f} %; "
            f"{100 * conclusions['lost_ink'][-1]:.1f} % of the ink has then left the image.",
        ]
    )


def _failures(classifiers: Mapping[str, Sequence[Run]]) -> str:
    """Every second shift and rotation, and where half of the test images are still recognised."""
    units = {"shifted": " pixels", "turned": "°"}
    steps = {"shifted": slice(None, None, 2), "turned": slice(2, None, 2)}
    amounts = {kind: values for kind, values, _, _ in _kinds(classifiers)}
    head = ["model", *(f"{value:g}{unit}" for kind, unit in units.items() for value in amounts[kind][steps[kind]])]
    lines = []
    for name, runs in classifiers.items():
        curves = {kind: _curve(runs, kind) for kind in units}
        cells = [f"{value:.1f} %" for kind, curve in curves.items() for value in curve[steps[kind]]]
        halves = [(crossing(amounts[kind], curve, level=50), units[kind]) for kind, curve in curves.items()]
        reached = ", ".join(f"{value:.1f}{unit}" for value, unit in halves if value is not None)
        lines.append([name, *cells, reached])
    return markdown([*head, "half at"], lines)


def _on_the_classes(classifiers: Mapping[str, Sequence[Run]]) -> str:
    plain = {name: runs for name, runs in classifiers.items() if not is_moved(runs[0].config)}
    told = []
    for name in (next(iter(plain)), list(plain)[-1]):
        parts = []
        for kind, amounts, _, unit in _kinds(classifiers):
            rates = 100 * np.mean([one.result[kind]["by_class"][-1] for one in plain[name]], axis=0)
            low, high = int(rates.argmin()), int(rates.argmax())
            parts.append(
                f"at {amounts[-1]:g} {unit} it recognises {rates[high]:.0f} % of the {high}s and {rates[low]:.0f} % of "
                f"the {low}s"
            )
        told.append(f"The {name}: {', '.join(parts)}.")
    return f"The classes do not break alike. {' '.join(told)}"


def _on_the_sizes(classifiers: Mapping[str, Sequence[Run]]) -> str:
    plain = {name: runs for name, runs in classifiers.items() if not is_moved(runs[0].config)}
    linear = next(name for name, runs in plain.items() if _is_linear(runs))
    convnets = [name for name in plain if name != linear]
    lines = [[name, *(count(_size(runs, side=side)) for side in SIDES)] for name, runs in plain.items()]
    lines += [
        [f"{name}, maps averaged", *(count(_size(plain[name], side=side, pooled=True)) for side in SIDES)]
        for name in convnets
    ]
    ratios = [_size(plain[name], side=SIDES[-1]) / _size(plain[linear], side=SIDES[-1]) for name in convnets]
    weights = _weights_in_colour()
    per_class = weights // NUM_CLASSES
    millions = "that is not" if per_class < 1_000_000 else "that is"
    return "\n\n".join(
        [
            "Parameters by the side of a grey image:",
            markdown(["model", *(f"{side} x {side}" for side in SIDES)], lines),
            "The linear model grows with the square of the side, as the lesson says. So do these convnets, for their "
            f"last layer is a linear classifier of all values of their maps: at {SIDES[-1]} x {SIDES[-1]} they have "
            f"{min(ratios):.2f} to {max(ratios):.2f} times its parameters. What frees a model from the size of its "
            "images is not the convolution but the mean over each map (counted here, not trained). A colour image of "
            f"{SIDES[-1]} x {SIDES[-1]} has {count(per_class - 1)} inputs, and a linear model of ten classes "
            f"{count(weights)} parameters: {count(per_class)} a class, and {millions} the lesson's millions.",
        ]
    )


def _on_the_regression(regressors: Mapping[str, Sequence[Run]]) -> str:
    told = []
    for name, runs in regressors.items():
        r2, rmse, mae = (_values(runs, metric) for metric in _REGRESSION)
        told.append(
            f"{name}: R² {fmean(r2):.4f} ± {stdev(r2):.4f}, root mean squared error {fmean(rmse):.4f} ± "
            f"{stdev(rmse):.4f}, mean absolute error {fmean(mae):.4f} ± {stdev(mae):.4f}"
        )
    errors = {name: _mean(runs, "rmse") for name, runs in regressors.items()}
    best = min(errors, key=lambda name: errors[name])
    spread = next(iter(regressors.values()))[0].result["spread"]
    return (
        "The note on regression: the same network with one linear output, trained on the mean squared error, predicts "
        "the slant of a digit as its moments give it: its lean in pixels a row, the standard deviation of which is "
        f"{spread:.4f} over the test rows. {'; '.join(told)}. The error of the better one, the {best}, is "
        f"{degrees(atan(errors[best])):.1f}° about an upright digit."
    )


def crossing(amounts: Sequence[float], values: Sequence[float], *, level: float) -> float | None:
    """Where a curve first falls below `level`, on the straight line between its points; None where it does not."""
    points = list(zip(amounts, values, strict=True))
    for (left, above), (right, below) in pairwise(points):
        if above >= level > below:
            return left + (right - left) * (above - level) / (above - below)
    return None


def _steps(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each rung against the next larger one; a model trained on moved images against the same model without them."""
    plain = [name for name, runs in classifiers.items() if not is_moved(runs[0].config)]
    steps = [_pair(conclusions, lower=lower, upper=upper) for lower, upper in pairwise(plain)]
    for name, runs in classifiers.items():
        twins = [other for other in plain if _architecture(classifiers[other]) == _architecture(runs)]
        steps += [_pair(conclusions, lower=twin, upper=name) for twin in twins if twin != name]
    return steps


def _pair(conclusions: Mapping[str, Any], *, lower: str, upper: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        step for step in conclusions["steps"] if (step["lower"], step["upper"]) == (lower, upper)
    )
    return found


def _improves(step: Mapping[str, Any]) -> bool:
    return bool(step["p_value"] < SIGNIFICANCE and fmean(step["gains"]) > 0)


def _arrow(step: Mapping[str, Any]) -> str:
    return f"{step['lower']} → {step['upper']}"


def _p(step: Mapping[str, Any]) -> str:
    return f"p = {p_value(step['p_value'])}".replace("= <", "<")


def _share(classifiers: Mapping[str, Sequence[Run]], step: Mapping[str, Any]) -> str:
    upper, lower = (classifiers[step[end]][0].result["parameters"] for end in ("upper", "lower"))
    return f"{100 * upper / lower:.0f} %"


def _kinds(classifiers: Mapping[str, Sequence[Run]]) -> list[tuple[str, list[float], str, str]]:
    """(key of the result, amounts, title, unit) of the two ways to move the test images."""
    config = next(iter(classifiers.values()))[0].config
    return [
        ("shifted", config["shifts"], "test images shifted", "pixels"),
        ("turned", config["rotations"], "test images turned", "degrees"),
    ]


def _curve(runs: Sequence[Run], kind: str) -> list[float]:
    """Accuracy in % at each amount, the mean over the seeds."""
    means: NDArray[np.float64] = 100 * np.mean([one.result[kind]["accuracy"] for one in runs], axis=0)
    return [float(value) for value in means]


def _templates(conclusions: Mapping[str, Any]) -> NDArray[np.float32]:
    return unpacked(conclusions["templates"], np.float16).astype(np.float32).reshape(NUM_CLASSES, PIXELS)


def _weights_in_colour() -> int:
    """Parameters of a linear model of ten classes for the largest images with three channels."""
    return (3 * SIDES[-1] ** 2 + 1) * NUM_CLASSES


def _coloured(classifiers: Mapping[str, Sequence[Run]]) -> Iterator[tuple[tuple[str, Sequence[Run]], str]]:
    return zip(classifiers.items(), plots.SERIES_COLOURS, strict=False)


def _size(runs: Sequence[Run], *, side: int, pooled: bool = False) -> int:
    model, model_params = _architecture(runs)
    return num_parameters(model, model_params, side=side, pooled=pooled)


def _architecture(runs: Sequence[Run]) -> tuple[str, dict[str, Any]]:
    recipe = runs[0].config["recipe"]
    return recipe["model"], recipe["model_params"]


def _is_linear(runs: Sequence[Run]) -> bool:
    return _architecture(runs)[0] == "linear"


def _accuracy(runs: Sequence[Run]) -> str:
    return f"{100 * _mean(runs, 'test_accuracy'):.2f} %"


def _mean(runs: Sequence[Run], metric: str) -> float:
    return fmean(_values(runs, metric))


def _values(runs: Sequence[Run], metric: str) -> list[float]:
    return [one.result[metric] for one in runs]
