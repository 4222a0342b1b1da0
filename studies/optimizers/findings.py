"""What an optimizer is worth for LeNet-5, and what of the report's ranking its learning rates made."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr  # scipy.stats would take half a second longer to import

from mnist_pipe.evaluation import plots
from studies.common.ledger import Run
from studies.common.published import Figure, Published
from studies.common.table import Row, listed
from studies.optimizers.runs import best_rates

TITLE = "LeNet-5 under every optimizer, at default and at tuned learning rates"
SYSTEM = "LeNet-5 (average pooling; ReLU dense layers; 32x32 input)"
NAMES = {
    "adadelta": "Adadelta",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "momentum": "SGD with momentum",
    "nadam": "Nadam",
    "adamax": "Adamax",
    "amsgrad": "AMSGrad",
    "adamw": "AdamW",
    "muon": "Muon",
}
REPORTED = ("adadelta", "sgd", "adagrad", "rmsprop", "adam")
"""In the order of the report's table, from the worst to the best."""
PHASES = ("defaults", "tuned")
CONTROLS = {
    "rectified": (
        "ReLU convolutions",
        "With a ReLU behind each convolution as well",
        "so its network probably had one, though it does not say so",
    ),
    "slower": (
        "rate of the others",
        "At the rate of 0.001 that is the default of the adaptive optimizers",
        "so it probably set one rate for all",
    ),
}
"""What is changed, in the table and in the findings, and what it says of the report if it gives its figure."""
_TRIED = (  # by hand
    "**Tried as well**, with one seed and all else as at the defaults: batches of 512, which give SGD 96.3 %, Adadelta "
    "75.2 % and Adagrad 92.0 %, and squared error for the cross-entropy, which gives 91.8 %, 25.7 % and 62.0 %: "
    "neither is the report's."
)
_LEVEL = 0.05
_EXPLAINED = 0.8  # of a difference: more explains it, and less than the rest does not


def rows(done: Sequence[Run], conclusions: Mapping[str, Any], published: Published) -> list[Row]:  # noqa: ARG001
    """Test accuracy after the last epoch, by optimizer and column."""
    found = []
    labels = {phase: phase for phase in PHASES} | {phase: f"defaults, {what}" for phase, (what, *_) in CONTROLS.items()}
    for phase, label in labels.items():
        for name, accuracies in _accuracies(done, phase).items():
            rate = _rates(done, phase)[name]
            found.append(
                Row(
                    system=SYSTEM,
                    variant=f"{NAMES[name]}, {label}",
                    metric="test_accuracy",
                    values=accuracies,
                    unit="%",
                    published=_published(name, published),
                    note=f"rate {rate:.2g}",
                    headline=phase == "tuned",
                )
            )
    return found


def draw(folder: Path, done: Sequence[Run], conclusions: Mapping[str, Any]) -> list[str]:  # noqa: ARG001
    """The report's bars with both columns beside them, and the learning curves."""
    _bars(folder / "figure.png", done, Published())
    _curves(folder / "curves.png", done)
    return ["figure.png", "curves.png"]


def tell(done: Sequence[Run], rows: Sequence[Row], conclusions: Mapping[str, Any]) -> str:  # noqa: ARG001
    """What of the ranking is left, how sure that is, and what the two lowest figures of the report come from."""
    defaults, tuned = (_accuracies(done, phase) for phase in PHASES)
    published = {name: row.published.value for name, row in _reported(rows).items() if row.published}
    return "\n\n".join(
        [
            _ranking(defaults, published),
            _spread(defaults, tuned),
            *(_explanation(name, done, published[name]) for name in ("adadelta", "sgd")),
            *(_control(phase, done, published) for phase in CONTROLS),
            _TRIED,
            _searched(done),
            _network(done),
        ]
    )


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of a difference of means with unequal variances (Welch 1947)."""
    errors = [statistics.variance(values) / len(values) for values in (first, second)]
    difference = abs(statistics.fmean(first) - statistics.fmean(second))
    if not sum(errors):
        return 0.0 if difference else 1.0
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True)
    )
    return float(2 * stdtr(freedom, -difference / math.sqrt(sum(errors))))


def num_told_apart(samples: Sequence[Sequence[float]], *, level: float) -> int:
    """How many pairs of samples differ by Welch's test, corrected for their number (Holm 1979)."""
    p_values = sorted(welch(first, second) for first, second in itertools.combinations(samples, 2))
    passed = (p <= level / (len(p_values) - rank) for rank, p in enumerate(p_values))
    return sum(1 for _ in itertools.takewhile(bool, passed))


def one_way(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """F, the variance between samples over that within them, and the chance of so large a one by luck alone."""
    num_values, num_samples = sum(map(len, samples)), len(samples)
    mean = sum(map(sum, samples)) / num_values
    between = sum(len(values) * (statistics.fmean(values) - mean) ** 2 for values in samples) / (num_samples - 1)
    within = sum((value - statistics.fmean(values)) ** 2 for values in samples for value in values)
    within /= num_values - num_samples
    if not within:
        return math.inf, 0.0
    return between / within, float(fdtrc(num_samples - 1, num_values - num_samples, between / within))


def _ranking(defaults: Mapping[str, list[float]], published: Mapping[str, float]) -> str:
    ours = sorted(REPORTED, key=lambda name: statistics.fmean(defaults[name]))
    order = " < ".join(f"{NAMES[name]} {_shown(defaults[name])}" for name in ours)
    if ours == list(REPORTED):
        verdict = "the report's order, from the worst to the best, comes out again"
    else:
        verdict = f"the order is not the report's, {' < '.join(NAMES[name] for name in REPORTED)}"
    gaps = ", ".join(f"{NAMES[name]} {statistics.fmean(defaults[name]) - published[name]:+.1f}" for name in ours)
    return f"**At the defaults** {verdict}: {order}. Points from the report: {gaps}."


def _spread(defaults: Mapping[str, list[float]], tuned: Mapping[str, list[float]]) -> str:
    reported = [_range({name: column[name] for name in REPORTED}) for column in (defaults, tuned)]
    everyone = [_range(column) for column in (defaults, tuned)]
    samples = list(tuned.values())
    deviation = math.sqrt(statistics.fmean(statistics.variance(values) for values in samples))
    ratio, p_value = one_way(samples)
    told_apart, num_pairs = num_told_apart(samples, level=_LEVEL), math.comb(len(samples), 2)
    best, worst = (pick(tuned, key=lambda name: statistics.fmean(tuned[name])) for pick in (max, min))
    what_is_left = (
        "what is left cannot be told from chance"
        if p_value > _LEVEL
        else f"what is left is {everyone[1] / deviation:.0f} standard deviations of a seed"
        if told_apart
        else "what is left shows over all of them together, but in no pair by itself"
    )
    return (
        f"**At its best rate** each of the five ends within {reported[1]:.2f} points of the others, where the defaults "
        f"put {reported[0]:.2f} between the best and the worst. Of all {len(samples)}, {NAMES[best]} is the best with "
        f"{_shown(tuned[best])} and {NAMES[worst]} the worst with {_shown(tuned[worst])}: a range of {everyone[1]:.2f} "
        f"points, {everyone[0]:.2f} at the defaults. A seed makes ± {deviation:.2f}; {what_is_left} "
        f"(F = {ratio:.1f}, p = {_probability(p_value)}). Of {num_pairs} pairs, Welch's test with Holm's correction "
        f"tells {told_apart} apart at {100 * _LEVEL:g} %."
    )


def _explanation(name: str, done: Sequence[Run], published: float) -> str:
    """How much of what a published accuracy is below that of the best rate comes from the default rate."""
    default, rate = _accuracies(done, "defaults")[name], _rates(done, "defaults")[name]
    tuned, best = _accuracies(done, "tuned")[name], _rates(done, "tuned")[name]
    best_mean, default_mean = statistics.fmean(tuned), statistics.fmean(default)
    told = (
        f"**{NAMES[name]}'s {published:g} %.** At {best:.2g}, the best of its search, it ends at {_shown(tuned)}; at "
        f"the default of {rate:g} at {_shown(default)}."
    )
    if best_mean <= published:
        return f"{told} Neither rate reaches the report's figure, so there is nothing to explain."
    share = (best_mean - default_mean) / (best_mean - published)
    if share >= _EXPLAINED:
        verdict = "the default rate explains the figure, which says nothing of the method"
    elif share <= 1 - _EXPLAINED:
        epochs, curves = _histories(done, "defaults", name)
        passed = [
            int(epoch) for epoch, value in zip(epochs, curves["test_accuracy"], strict=True) if 100 * value > published
        ]
        verdict = "the default rate does not explain the figure"
        verdict += f", which it passes in epoch {passed[0]} of {epochs[-1]}" if passed else ""
        verdict += ": the report must have trained with another rate, for a shorter time or another network"
    else:
        verdict = "the default rate explains the figure in part"
    return (
        f"{told} That is {100 * share:.0f} % of the {best_mean - published:.1f} points between the report and the best "
        f"rate: {verdict}."
    )


def _control(phase: str, done: Sequence[Run], published: Mapping[str, float]) -> str:
    """Whether what is changed makes up for what an optimizer's default is away from the report."""
    (name, changed), *_ = _accuracies(done, phase).items()
    default, figure = _accuracies(done, "defaults")[name], published[name]
    _, change, conclusion = CONTROLS[phase]
    mean, default_mean = statistics.fmean(changed), statistics.fmean(default)
    reached = mean >= figure if default_mean <= figure else mean <= figure
    verdict = f"is reached, {conclusion}" if reached else f"is missed by {abs(mean - figure):.2f} points even so"
    return (
        f"**{NAMES[name]}'s {figure:g} %.** {change}, all else as at the defaults, {NAMES[name]} ends at "
        f"{_shown(changed)} in place of {_shown(default)}, {mean - default_mean:+.2f} points "
        f"(p = {_probability(welch(default, changed))}): the report's figure {verdict}."
    )


def _searched(done: Sequence[Run]) -> str:
    trials = [run for run in done if run.config["phase"] == "search"]
    one = trials[0].config
    number = len(trials) // len(_rates(done, "tuned"))
    diverged = sum(run.result["status"] == "diverged" for run in trials)
    chosen = ", ".join(f"{NAMES[name]} {rate:.2g}" for name, rate in _rates(done, "tuned").items())
    edges = [NAMES[name] for name, rate in best_rates(done).items() if _is_extreme(name, rate, trials)]
    edge = f" At an end of what was tried: {listed(edges)}; wider ranges may give these more." if edges else ""
    defaults, tuned = (_accuracies(done, phase) for phase in PHASES)
    lower = [NAMES[name] for name in tuned if statistics.fmean(tuned[name]) < statistics.fmean(defaults[name])]
    short = (
        f" A search so short prefers rates that are fast: {listed(lower)} ended below what the default rate gave."
        if lower
        else ""
    )
    return (
        f"**The search** gave each optimizer {number} rates of {one['num_epochs']} epochs over {one['num_rows']:,} "
        f"training rows; {diverged} of {len(trials)} trials diverged. Chosen on the validation split: {chosen}."
        f"{edge}{short}"
    )


def _network(done: Sequence[Run]) -> str:
    trained = next(run.config for run in done if run.config["phase"] in PHASES)
    return (
        "**The network** is as the report describes it: average pooling, ReLU in the dense layers, and nothing between "
        "a convolution and its pool, for it names nothing there and Keras puts nothing there unless it is told to. "
        "What it does not say is Keras's, or its example's: first weights by Glorot's rule with biases of zero, pixels "
        f"from 0 to 1, batches of {trained['batch_size']}, a constant rate."
    )


def _is_extreme(name: str, rate: float, trials: Sequence[Run]) -> bool:
    tried = [run.config["learning_rate"] for run in trials if run.config["optimizer"] == name]
    return rate in (min(tried), max(tried))


def _bars(path: Path, done: Sequence[Run], published: Published) -> None:
    """Horizontal bars, on a scale on which 99 % is twice as far as 90 %."""
    columns = {"published": {name: [_value(name, published)] for name in REPORTED}}
    columns |= {phase: _accuracies(done, phase) for phase in PHASES}
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
                text = f"{mean:g} %" if column == "published" else _shown(values)
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
    """Training loss and test accuracy by epoch, means over seeds; a column of panels for each of the study."""
    styles = dict(zip(NAMES, itertools.product(("-", "--"), plots.SERIES_COLOURS), strict=False))
    with plots.drawing(path, height=5.6) as figure:
        figure.set_figwidth(8.5)
        panels: NDArray[Any] = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, phase in enumerate(PHASES):
            for name, (style, colour) in styles.items():
                epochs, curves = _histories(done, phase, name)
                look = {"linestyle": style, "color": colour, "linewidth": 1.4, "label": NAMES[name]}
                panels[0, column].plot(epochs, curves["train_loss"], **look)
                panels[1, column].plot(epochs, _nines(100 * curves["test_accuracy"]), **look)
            panels[0, column].set(title=phase, yscale="log")
            panels[1, column].set_xlabel("epoch")
        lower: Axes = panels[1, 0]
        _name_nines(lower.set_yticks, [0, 50, 80, 90, 95, 98, 99])
        lower.set_ylabel("test accuracy")
        panels[0, 0].set_ylabel("training loss, nats")
        figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def _histories(done: Sequence[Run], phase: str, name: str) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """The epochs after which an optimizer was looked at, and its loss and accuracy then, means over the seeds."""
    found = [run.result for run in done if run.config["phase"] == phase and name in run.result]
    curves = {
        key: np.mean([np.array(result[name][key], dtype=np.float64) for result in found], axis=0)  # None is NaN
        for key in ("train_loss", "test_accuracy")
    }
    return np.array(found[0]["epochs"]), curves


def _accuracies(done: Sequence[Run], phase: str) -> dict[str, list[float]]:
    """By optimizer the last test accuracy of each seed, in percent."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for run in sorted((run for run in done if run.config["phase"] == phase), key=lambda run: run.config["seed"]):
        for name in run.config["learning_rates"]:
            found[name].append(round(100 * run.result[name]["test_accuracy"][-1], 4))
    return {name: values for name, values in found.items() if values}


def _rates(done: Sequence[Run], phase: str) -> dict[str, float]:
    found = {name: rate for run in done if run.config["phase"] == phase for name, rate in _members(run)}
    return {name: found[name] for name in NAMES if name in found}


def _members(run: Run) -> list[tuple[str, float]]:
    return list(run.config["learning_rates"].items())


def _published(name: str, published: Published) -> Figure | None:
    return published.find(SYSTEM, NAMES[name], "test_accuracy") if name in REPORTED else None


def _value(name: str, published: Published) -> float:
    figure = _published(name, published)
    assert figure is not None
    return figure.value


def _reported(rows: Sequence[Row]) -> dict[str, Row]:
    """By optimizer a row with what was published of it."""
    return {name: row for name in REPORTED for row in rows if row.variant.startswith(f"{NAMES[name]},")}


def _nines(percent: Any) -> NDArray[np.float64]:
    """Where an accuracy is drawn: 90 % at 1, 99 % at 2."""
    result: NDArray[np.float64] = -np.log10(1 - np.asarray(percent, dtype=np.float64) / 100)
    return result


def _name_nines(set_ticks: Any, percents: list[float]) -> None:
    set_ticks([float(_nines(percent)) for percent in percents], [f"{percent:g} %" for percent in percents])


def _range(column: Mapping[str, list[float]]) -> float:
    means = [statistics.fmean(values) for values in column.values()]
    return max(means) - min(means)


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} %"


def _probability(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= 0.0001 else "under 0.0001"
