"""The findings of `ladder`: its steps, where its models break, their size at higher resolutions, and the regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import atan, degrees
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES
from mnist_pipe.evaluation.report import format_count as count
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row, without_empty
from studies.ladder.results import (
    SIDES,
    is_linear,
    kinds_of,
    p_of,
    pair,
    size_of,
    steps_of,
    values_of,
    weights_in_colour,
)
from studies.ladder.runs import by_name, is_moved

SIGNIFICANCE = 0.05
"""Significance level: a step improves measurably if its p-value is below this."""
_REGRESSION = {"r2": "R²", "rmse": "root mean squared error", "mae": "mean absolute error"}


def rows(measured: Measured) -> list[Row]:
    """Return the test accuracy of each classifier, and R² and the errors of each regressor, one row each."""
    done, lesson = measured.runs, measured.published.find("linear softmax", "plain", "test_accuracy")
    classifiers = [
        Row(
            system=name.partition(", ")[0],
            variant="moved images" if is_moved(runs[0].config) else "plain",
            metric="test_accuracy",
            values=[100 * value for value in values_of(runs, "test_accuracy")],
            unit="%",
            published=lesson if is_linear(runs) else None,
            note=f"{count(runs[0].result['parameters'])} parameters",
        )
        for name, runs in by_name(done, task="classify").items()
    ]
    regressors = [
        Row(
            system=f"{name}, one output",
            variant="slant",
            metric=metric,
            values=values_of(runs, metric),
            unit="",
            published=None,
            note="" if metric == "r2" else "pixels a row",
        )
        for name, runs in by_name(done, task="regress").items()
        for metric in _REGRESSION
    ]
    return classifiers + regressors


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text on what the ladder shows, claim by claim of the lesson."""
    done, conclusions = measured.runs, measured.conclusions
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


def _on_the_steps(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any], *, lesson: Row) -> str:
    steps = steps_of(classifiers, conclusions)
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
    told += [_instead(pair(conclusions, lower=largest, upper=name), classifiers) for name in trained_on_moved]
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
        f"gets right and {only_lower:.0f} that only the lower does, {p_of(step)}: {verdict}."
    )


def _instead(step: Mapping[str, Any], classifiers: Mapping[str, Sequence[Run]]) -> str:
    """Return a sentence that compares a model trained on moved images with the largest model."""
    gain, share = 100 * fmean(step["gains"]), _share(classifiers, step)
    if step["p_value"] >= SIGNIFICANCE:
        verdict = "cannot be told apart from"
    else:
        verdict = "is measurably better than" if gain > 0 else "is measurably worse than"
    return (
        f"The {step['upper']}, with {share} of the parameters, {verdict} the {step['lower']} "
        f"({gain:+.2f} points, {p_of(step)})."
    )


def _on_the_templates(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    linear = next(runs for runs in classifiers.values() if is_linear(runs))
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
    """Return the table of the accuracies at every second shift and rotation.

    Its last column is the amount at which half of the test images are still recognised.
    """
    units = {"shifted": " pixels", "turned": "°"}
    steps = {"shifted": slice(None, None, 2), "turned": slice(2, None, 2)}
    amounts = {kind: values for kind, values, _, _ in kinds_of(classifiers)}
    head = ["model", *(f"{value:g}{unit}" for kind, unit in units.items() for value in amounts[kind][steps[kind]])]
    lines = []
    for name, runs in classifiers.items():
        curves = {kind: _curve(runs, kind) for kind in units}
        cells = [f"{value:.1f} %" for kind, curve in curves.items() for value in curve[steps[kind]]]
        halves = [(crossing(amounts[kind], curve, level=50), units[kind]) for kind, curve in curves.items()]
        reached = ", ".join(f"{value:.1f}{unit}" for value, unit in halves if value is not None)
        lines.append([name, *cells, reached])
    return without_empty([*head, "half at"], lines)


def _on_the_classes(classifiers: Mapping[str, Sequence[Run]]) -> str:
    plain = {name: runs for name, runs in classifiers.items() if not is_moved(runs[0].config)}
    told = []
    for name in (next(iter(plain)), list(plain)[-1]):
        parts = []
        for kind, amounts, _, unit in kinds_of(classifiers):
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
    linear = next(name for name, runs in plain.items() if is_linear(runs))
    convnets = [name for name in plain if name != linear]
    lines = [[name, *(count(size_of(runs, side=side)) for side in SIDES)] for name, runs in plain.items()]
    lines += [
        [f"{name}, maps averaged", *(count(size_of(plain[name], side=side, pooled=True)) for side in SIDES)]
        for name in convnets
    ]
    ratios = [size_of(plain[name], side=SIDES[-1]) / size_of(plain[linear], side=SIDES[-1]) for name in convnets]
    weights = weights_in_colour()
    per_class = weights // NUM_CLASSES
    millions = "that is not" if per_class < 1_000_000 else "that is"
    return "\n\n".join(
        [
            "Parameters by the side of a grey image:",
            without_empty(["model", *(f"{side} x {side}" for side in SIDES)], lines),
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
        r2, rmse, mae = (values_of(runs, metric) for metric in _REGRESSION)
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
    """Return where a curve first falls below `level`, or None if it does not; points are joined by straight lines."""
    points = list(zip(amounts, values, strict=True))
    for (left, above), (right, below) in pairwise(points):
        if above >= level > below:
            return left + (right - left) * (above - level) / (above - below)
    return None


def _improves(step: Mapping[str, Any]) -> bool:
    return bool(step["p_value"] < SIGNIFICANCE and fmean(step["gains"]) > 0)


def _arrow(step: Mapping[str, Any]) -> str:
    return f"{step['lower']} → {step['upper']}"


def _share(classifiers: Mapping[str, Sequence[Run]], step: Mapping[str, Any]) -> str:
    upper, lower = (classifiers[step[end]][0].result["parameters"] for end in ("upper", "lower"))
    return f"{100 * upper / lower:.0f} %"


def _curve(runs: Sequence[Run], kind: str) -> list[float]:
    """Return the accuracy in % at each amount, as the mean over the seeds."""
    means: NDArray[np.float64] = 100 * np.mean([one.result[kind]["accuracy"] for one in runs], axis=0)
    return [float(value) for value in means]


def _accuracy(runs: Sequence[Run]) -> str:
    return f"{100 * _mean(runs, 'test_accuracy'):.2f} %"


def _mean(runs: Sequence[Run], metric: str) -> float:
    return fmean(values_of(runs, metric))
