"""The findings of `optimizers`: what an optimizer is worth for LeNet-5, and how rates decide the report's ranking."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import f_oneway, ttest_ind

from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row, listed
from studies.optimizers.results import (
    NAMES,
    PHASES,
    REPORTED,
    SYSTEM,
    accuracies,
    histories,
    published_figure,
    rates,
    shown,
)
from studies.optimizers.runs import best_rates

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
"""For each control, the change as the table and the findings name it, and the conclusion if the figure is reached."""
_TRIED = (  # by hand
    "**Tried as well**, with one seed and all else as at the defaults: batches of 512, which give SGD 96.3 %, Adadelta "
    "75.2 % and Adagrad 92.0 %, and squared error for the cross-entropy, which gives 91.8 %, 25.7 % and 62.0 %: "
    "neither is the report's."
)
_LEVEL = 0.05
_EXPLAINED = 0.8  # share of a difference: at least this explains it, at most 1 minus this does not


def rows(measured: Measured) -> list[Row]:
    """Return the test accuracy after the last epoch, one row for each optimizer and column."""
    found = []
    labels = {phase: phase for phase in PHASES} | {phase: f"defaults, {what}" for phase, (what, *_) in CONTROLS.items()}
    for phase, label in labels.items():
        for name, values in accuracies(measured.runs, phase).items():
            rate = rates(measured.runs, phase)[name]
            found.append(
                Row(
                    system=SYSTEM,
                    variant=f"{NAMES[name]}, {label}",
                    metric="test_accuracy",
                    values=values,
                    unit="%",
                    published=published_figure(name, measured.published),
                    note=f"rate {rate:.2g}",
                )
            )
    return found


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: what is left of the ranking, how sure that is, and what explains the two lowest numbers."""
    done = measured.runs
    defaults, tuned = (accuracies(done, phase) for phase in PHASES)
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
    """Return the two-sided p-value of a difference of means with unequal variances (Welch 1947).

    It is 1 if all values are equal.
    """
    if len({*first, *second}) == 1:
        return 1.0  # scipy returns NaN
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def num_distinct_pairs(samples: Sequence[Sequence[float]], *, level: float) -> int:
    """Return how many pairs of samples differ by Welch's test, corrected for their number (Holm 1979)."""
    p_values = sorted(welch(first, second) for first, second in itertools.combinations(samples, 2))
    passed = (p <= level / (len(p_values) - rank) for rank, p in enumerate(p_values))
    return sum(1 for _ in itertools.takewhile(bool, passed))


def _ranking(defaults: Mapping[str, list[float]], published: Mapping[str, float]) -> str:
    ours = sorted(REPORTED, key=lambda name: statistics.fmean(defaults[name]))
    order = " < ".join(f"{NAMES[name]} {shown(defaults[name])}" for name in ours)
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
    ratio, p_value = f_oneway(*samples)
    told_apart, num_pairs = num_distinct_pairs(samples, level=_LEVEL), math.comb(len(samples), 2)
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
        f"{shown(tuned[best])} and {NAMES[worst]} the worst with {shown(tuned[worst])}: a range of {everyone[1]:.2f} "
        f"points, {everyone[0]:.2f} at the defaults. A seed makes ± {deviation:.2f}; {what_is_left} "
        f"(F = {ratio:.1f}, p = {_probability(p_value)}). Of {num_pairs} pairs, Welch's test with Holm's correction "
        f"tells {told_apart} apart at {100 * _LEVEL:g} %."
    )


def _explanation(name: str, done: Sequence[Run], published: float) -> str:
    """Return a paragraph: how much of the gap from the published to the best rate's accuracy the default explains."""
    default, rate = accuracies(done, "defaults")[name], rates(done, "defaults")[name]
    tuned, best = accuracies(done, "tuned")[name], rates(done, "tuned")[name]
    best_mean, default_mean = statistics.fmean(tuned), statistics.fmean(default)
    told = (
        f"**{NAMES[name]}'s {published:g} %.** At {best:.2g}, the best of its search, it ends at {shown(tuned)}; at "
        f"the default of {rate:g} at {shown(default)}."
    )
    if best_mean <= published:
        return f"{told} Neither rate reaches the report's figure, so there is nothing to explain."
    share = (best_mean - default_mean) / (best_mean - published)
    if share >= _EXPLAINED:
        verdict = "the default rate explains the figure, which says nothing of the method"
    elif share <= 1 - _EXPLAINED:
        epochs, curves = histories(done, "defaults", name)
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
    """Return a paragraph: whether a control's change closes the gap between an optimizer's default and the report."""
    (name, changed), *_ = accuracies(done, phase).items()
    default, figure = accuracies(done, "defaults")[name], published[name]
    _, change, conclusion = CONTROLS[phase]
    mean, default_mean = statistics.fmean(changed), statistics.fmean(default)
    reached = mean >= figure if default_mean <= figure else mean <= figure
    verdict = f"is reached, {conclusion}" if reached else f"is missed by {abs(mean - figure):.2f} points even so"
    return (
        f"**{NAMES[name]}'s {figure:g} %.** {change}, all else as at the defaults, {NAMES[name]} ends at "
        f"{shown(changed)} in place of {shown(default)}, {mean - default_mean:+.2f} points "
        f"(p = {_probability(welch(default, changed))}): the report's figure {verdict}."
    )


def _searched(done: Sequence[Run]) -> str:
    trials = [run for run in done if run.config["phase"] == "search"]
    one = trials[0].config
    number = len(trials) // len(rates(done, "tuned"))
    diverged = sum(run.result["status"] == "diverged" for run in trials)
    chosen = ", ".join(f"{NAMES[name]} {rate:.2g}" for name, rate in rates(done, "tuned").items())
    edges = [NAMES[name] for name, rate in best_rates(done).items() if _is_extreme(name, rate, trials)]
    edge = f" At an end of what was tried: {listed(edges)}; wider ranges may give these more." if edges else ""
    defaults, tuned = (accuracies(done, phase) for phase in PHASES)
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


def _reported(rows: Sequence[Row]) -> dict[str, Row]:
    """Return for each optimizer of the report a row with its published number."""
    return {name: row for name in REPORTED for row in rows if row.variant.startswith(f"{NAMES[name]},")}


def _range(column: Mapping[str, list[float]]) -> float:
    means = [statistics.fmean(values) for values in column.values()]
    return max(means) - min(means)


def _probability(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= 0.0001 else "under 0.0001"
