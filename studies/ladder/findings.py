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
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row, probability, without_empty
from studies.ladder.results import (
    SIDES,
    is_linear,
    kinds_of,
    pair,
    size_of,
    steps_of,
    templates_of,
    values_of,
    weights_in_colour,
)
from studies.ladder.runs import by_name, is_moved

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


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the answer in two sentences."""
    classifiers = by_name(measured.runs, task="classify")
    steps = steps_of(classifiers, measured.conclusions)
    words = [_claim(step) for step in steps]
    accuracies = [row for row in rows if row.metric == "test_accuracy"]
    best, largest = max(accuracies, key=lambda row: row.mean), max(steps, key=lambda step: fmean(step["gains"]))
    return (
        f"The ladder leads from {accuracies[0].shown()} of the {accuracies[0].system} to {best.shown()} of the "
        f"{best.system}, {best.variant}; that a step improves {verdict.HOLDS} for {words.count(verdict.HOLDS)} of "
        f"{len(steps)} steps. The largest gain is that of {_arrow(largest)}: "
        f"{100 * fmean(largest['gains']):+.2f} points."
    )


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
        _on_locality(classifiers, by_name(done, task="shuffled"), conclusions),
        _on_prototypes(done),
        _on_few_rows(by_name(done, task="few"), conclusions),
        _on_the_regression(by_name(done, task="regress")),
    ]
    return "\n\n".join(paragraphs)


def _on_the_steps(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any], *, lesson: Row) -> str:
    steps = steps_of(classifiers, conclusions)
    failed = [_arrow(step) for step in steps if _claim(step) != verdict.HOLDS]
    trained_on_moved = [name for name, runs in classifiers.items() if is_moved(runs[0].config)]
    largest = [name for name in classifiers if name not in trained_on_moved][-1]
    assert lesson.published is not None
    text = (
        f"Not every step improves the test metric measurably: {'; '.join(failed)}."
        if failed
        else "Every step improves the test metric measurably."
    )
    header = (
        "step",
        "parameters",
        "from",
        "to",
        "gain",
        "better seeds",
        "only upper right",
        "only lower right",
        "p",
        "that it improves",
    )
    paragraphs = [
        f"**Steps.** {text} The lesson asks to investigate a step that does not.",
        without_empty(header, [_step(step, classifiers) for step in steps]),
        "Every model is trained on all 60,000 rows, for the same number of epochs and with the same schedule. The "
        "validation split chose its learning rate and label smoothing. A step is tested on the test rows of each seed "
        "with McNemar's exact test. The p-value is that of the median seed, enlarged because all seeds share the test "
        f"rows (Rüger 1978); the models differ measurably if it is below {verdict.SIGNIFICANCE:g}. *Only upper right* "
        "is the mean number of test rows that the upper model gets right and the lower does not; *only lower right* is "
        "the reverse.",
        f"**Linear model.** The linear model reaches {lesson.shown()}. The lesson calls {lesson.published.value:g} % "
        "its honest ceiling.",
    ]
    paragraphs += [_instead(pair(conclusions, lower=largest, upper=name), classifiers) for name in trained_on_moved]
    return "\n\n".join(paragraphs)


def _step(step: Mapping[str, Any], classifiers: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return the cells of a step's row."""
    lower, upper = classifiers[step["lower"]], classifiers[step["upper"]]
    gains = [100 * gain for gain in step["gains"]]
    return [
        _arrow(step),
        f"x {upper[0].result['parameters'] / lower[0].result['parameters']:.1f}",
        _accuracy(lower),
        _accuracy(upper),
        f"{fmean(gains):+.2f} ± {stdev(gains):.2f} points",
        f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
        f"{fmean(step['only_upper']):.0f}",
        f"{fmean(step['only_lower']):.0f}",
        probability(step["p_value"]).removeprefix("p ").removeprefix("= "),
        _claim(step),
    ]


def _instead(step: Mapping[str, Any], classifiers: Mapping[str, Sequence[Run]]) -> str:
    """Return a finding that compares a model trained on moved images with the largest model."""
    gain, share = 100 * fmean(step["gains"]), _share(classifiers, step)
    words = {verdict.HOLDS: "is measurably better than", verdict.CONTRADICTED: "is measurably worse than"}
    told = words.get(_claim(step), "does not differ measurably from")
    upper = f"{step['upper']}," if "," in step["upper"] else step["upper"]
    return (
        f"**Augmentation instead of size.** The {upper} {told} the {step['lower']}: {gain:+.2f} points, "
        f"{probability(step['p_value'])}. The former has {share} of the parameters of the latter."
    )


def _on_the_templates(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    linear = next(runs for runs in classifiers.values() if is_linear(runs))
    accuracy, nearest = 100 * _mean(linear, "test_accuracy"), 100 * conclusions["nearest_mean_accuracy"]
    like = conclusions["likeness"]
    verb = "resemble" if fmean(like) > 0.7 else "do not resemble" if fmean(like) < 0.4 else "partly resemble"
    lines = [
        f"- correlation of a template with the average of its class: {min(like):.2f} to {max(like):.2f}",
        f"- accuracy of the class with the nearest average: {nearest:.2f} %",
        f"- accuracy of the trained templates: {accuracy - nearest:+.1f} points relative to that",
    ]
    return "\n\n".join(
        [
            f"**Templates.** The templates of the linear model {verb} the averages of the digits. The lesson says "
            "that they are these averages, and that the classifier measures how much an image is like them.",
            "\n".join(lines),
            "In the figure, blue weights count for the digit and red ones against it. Pixels that never vary, as in "
            "the corners, are not 0 after standardisation: their weights act as biases, which tints the background.",
        ]
    )


def _on_the_failures(classifiers: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    shifts = next(iter(classifiers.values()))[0].config["shifts"]
    curves = {name: _curve(runs, "shifted") for name, runs in classifiers.items()}
    linear, *others = curves
    at = min(2, len(shifts) - 1)
    falls = {name: curve[0] - curve[at] for name, curve in curves.items()}
    worst, last = max(falls[name] for name in others), {name: curves[name][-1] for name in others}
    best = max(others, key=lambda name: last[name])
    told = "Small shifts break" if falls[linear] > worst else "Small shifts do not break"
    half = "less than half" if last[best] < curves[best][0] / 2 else "at least half"
    return "\n\n".join(
        [
            f"**Shifts and rotations.** {told} the {linear} more than the others: at {shifts[at]} pixels it loses "
            f"{falls[linear]:.1f} points, and the others lose at most {worst:.1f}. The accuracies are means over the "
            "four directions of a shift or the two of a rotation, and over seeds; *half at* is where the accuracy "
            "falls below 50 %.",
            _failures(classifiers),
            f"At {shifts[-1]} pixels the best model, the {best}, has {last[best]:.1f} %, {half} of its accuracy on "
            f"images that are not moved; {100 * conclusions['lost_ink'][-1]:.1f} % of the ink is then outside the "
            "image. The feature maps of a convolution move with the image, but the classifier behind them does not.",
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
    gaps, lines = [], []
    for name in (next(iter(plain)), list(plain)[-1]):
        for kind, amounts, _, unit in kinds_of(classifiers):
            rates = 100 * np.mean([one.result[kind]["by_class"][-1] for one in plain[name]], axis=0)
            low, high = int(rates.argmin()), int(rates.argmax())
            gaps.append(rates[high] - rates[low])
            lines.append(
                f"- {name}, {amounts[-1]:g} {unit}: {rates[high]:.0f} % of the {high}s and {rates[low]:.0f} % of the "
                f"{low}s"
            )
    return "\n\n".join(
        [
            f"**Digits.** At the largest shift and rotation, the best and the worst digit of a model differ by "
            f"{min(gaps):.0f} to {max(gaps):.0f} points of accuracy:",
            "\n".join(lines),
        ]
    )


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
    millions = "not millions, contrary to" if per_class < 1_000_000 else "millions, in agreement with"
    facts = [
        f"- convnets at {SIDES[-1]} x {SIDES[-1]}: {min(ratios):.2f} to {max(ratios):.2f} times the parameters of the "
        "linear model",
        "- maps averaged: the mean over each map, not the convolution, makes the number of parameters independent of "
        "the image size. These models are only counted, not trained.",
        f"- linear model of ten classes for a colour image of {SIDES[-1]} x {SIDES[-1]}, which has "
        f"{count(per_class - 1)} inputs: {count(weights)} parameters. For one class this is {count(per_class)}, "
        f"{millions} the lesson.",
    ]
    return "\n\n".join(
        [
            "**Size.** The number of parameters of the linear model grows with the square of the image side, as the "
            "lesson says. The same holds for these convnets, because their last layer is a linear classifier of all "
            "values of their maps. Parameters by the side of a grey image:",
            without_empty(["model", *(f"{side} x {side}" for side in SIDES)], lines),
            "\n".join(facts),
        ]
    )


def _on_locality(
    classifiers: Mapping[str, Sequence[Run]], mixed: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]
) -> str:
    lost = {one["name"]: one for one in conclusions["locality"]}
    lines = [
        f"- {name}: {_accuracy(classifiers[name])} → {_accuracy(runs)}, {-100 * fmean(lost[name]['gains']):+z.2f} "
        f"points; that it falls: {_claim(lost[name])} ({probability(lost[name]['p_value'])})"
        for name, runs in mixed.items()
    ]
    return "\n\n".join(
        [
            "**Locality.** A linear model does not know which pixels are neighbours, the lesson says. If the pixels of "
            "all images are put into one other order, it learns the same, and a convolutional network loses what it "
            "assumes:",
            "\n".join(lines),
        ]
    )


def _on_prototypes(done: Sequence[Run]) -> str:
    numbers, curves = templates_of(done)
    means = 100 * curves.mean(0)
    header = ["templates a class", *map(str, numbers)]
    cells = [
        "test accuracy",
        *(f"{mean:.2f} ± {100 * own.std(ddof=1):.2f} %" for mean, own in zip(means, curves.T, strict=True)),
    ]
    return "\n\n".join(
        [
            "**One template a class.** An open and a closed 4, a 7 with and without a bar are classes of more than one "
            "shape. With templates by k-means within a class, and the class of the nearest one as the answer, the "
            f"accuracy rises from {means[0]:.1f} % with one template to {means[-1]:.1f} % with {numbers[-1]}:",
            without_empty(header, [cells]),
        ]
    )


def _on_few_rows(few: Mapping[str, Sequence[Run]], conclusions: Mapping[str, Any]) -> str:
    config = next(iter(few.values()))[0].config
    lines = [
        [
            name,
            count(runs[0].result["parameters"]),
            f"{100 * _mean(runs, 'train_accuracy'):.2f} %",
            f"{_accuracy(runs)} ± {100 * stdev(values_of(runs, 'test_accuracy')):.2f}",
        ]
        for name, runs in few.items()
    ]
    words = {verdict.HOLDS: "is measurably better than", verdict.CONTRADICTED: "is measurably worse than"}
    told = "; ".join(
        f"the {one['upper']} {words.get(_claim(one), 'does not differ measurably from')} the {one['lower']}, "
        f"{_points(one)}, {probability(one['p_value'])}"
        for one in conclusions["few"]
    )
    return "\n\n".join(
        [
            f"**Few images.** The lesson warns of a huge network on {config['num_rows']} images. On the first "
            f"{config['num_rows']} training rows, for {config['recipe']['num_epochs']} epochs and without moving "
            f"images, {told}:",
            without_empty(["model", "parameters", "training rows", "test rows"], lines),
        ]
    )


def _points(one: Mapping[str, Any]) -> str:
    return f"{100 * fmean(one['gains']):+.2f} points"


def _on_the_regression(regressors: Mapping[str, Sequence[Run]]) -> str:
    lines = []
    for name, runs in regressors.items():
        parts = [
            f"{label} {fmean(values_of(runs, metric)):.4f} ± {stdev(values_of(runs, metric)):.4f}"
            for metric, label in _REGRESSION.items()
        ]
        lines.append(f"- {name}: {', '.join(parts)}")
    errors = {name: _mean(runs, "rmse") for name, runs in regressors.items()}
    best = min(errors, key=lambda name: errors[name])
    spread = next(iter(regressors.values()))[0].result["spread"]
    return "\n\n".join(
        [
            f"**Regression.** The {best} predicts the slant of a digit best, with a root mean squared error of "
            f"{degrees(atan(errors[best])):.1f}° for an upright digit.",
            "\n".join(lines),
            "Each network has one linear output and is trained on the mean squared error. The slant is the lean of the "
            "digit in pixels a row, computed from its moments; its standard deviation over the test rows is "
            f"{spread:.4f}.",
        ]
    )


def crossing(amounts: Sequence[float], values: Sequence[float], *, level: float) -> float | None:
    """Return where a curve first falls below `level`, or None if it does not; points are joined by straight lines."""
    points = list(zip(amounts, values, strict=True))
    for (left, above), (right, below) in pairwise(points):
        if above >= level > below:
            return left + (right - left) * (above - level) / (above - below)
    return None


def _claim(step: Mapping[str, Any]) -> str:
    """Return the verdict on the claim that the upper model is better."""
    return verdict.of_claim(fmean(step["gains"]), p_value=step["p_value"])


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
