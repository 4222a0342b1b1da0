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
    published_result,
    rates,
    shown,
)
from studies.optimizers.runs import best_rates

CONTROLS = {
    "rectified": (
        "ReLU convolutions",
        "With a ReLU behind each convolution as well",
        "The report's network probably had these ReLUs, although the report does not mention them.",
    ),
    "slower": (
        "rate of the others",
        "At a rate of 0.001, the default of the adaptive optimizers,",
        "The report probably used one rate for all optimizers.",
    ),
}
"""For each control, the change as the table and the findings name it, and the conclusion if it closes the gap."""
_TRIED = (  # by hand
    "**Other settings.** Neither larger batches nor squared error gives the report's numbers. Each was tried with one "
    "seed and all else at the defaults:\n\n"
    "- batches of 512: SGD 96.3 %, Adadelta 75.2 %, Adagrad 92.0 %\n"
    "- squared error instead of cross-entropy: SGD 91.8 %, Adadelta 25.7 %, Adagrad 62.0 %"
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
                    published=published_result(name, measured.published),
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
    verdict = (
        "The order of the report's five optimizers, from the worst to the best, is the report's."
        if ours == list(REPORTED)
        else f"The order is not the report's, {' < '.join(NAMES[name] for name in REPORTED)}."
    )
    lines = [
        f"- {NAMES[name]}: {shown(defaults[name])}, {statistics.fmean(defaults[name]) - published[name]:+.1f} points "
        f"from the report's {published[name]:g} %"
        for name in ours
    ]
    return "\n\n".join([f"**Default rates.** {verdict} From the worst to the best, here:", "\n".join(lines)])


def _spread(defaults: Mapping[str, list[float]], tuned: Mapping[str, list[float]]) -> str:
    reported = [_range({name: column[name] for name in REPORTED}) for column in (defaults, tuned)]
    everyone = [_range(column) for column in (defaults, tuned)]
    samples = list(tuned.values())
    deviation = math.sqrt(statistics.fmean(statistics.variance(values) for values in samples))
    ratio, p_value = f_oneway(*samples)
    num_distinct, num_pairs = num_distinct_pairs(samples, level=_LEVEL), math.comb(len(samples), 2)
    best, worst = (pick(tuned, key=lambda name: statistics.fmean(tuned[name])) for pick in (max, min))
    verdict = (
        "could be chance"
        if p_value > _LEVEL
        else f"are measurable: their range is {everyone[1] / deviation:.0f} standard deviations over seeds"
        if num_distinct
        else "are measurable over all of them together, but not in any single pair"
    )
    lines = [
        f"- best: {NAMES[best]}, {shown(tuned[best])}",
        f"- worst: {NAMES[worst]}, {shown(tuned[worst])}",
        f"- range: {everyone[1]:.2f} points, and {everyone[0]:.2f} points at the defaults",
        f"- standard deviation over seeds, pooled over the optimizers: {deviation:.2f} points",
        f"- F test that all have the same mean: F = {ratio:.1f}, {_probability(p_value)}",
        f"- pairs that differ by Welch's test with Holm's correction, at {100 * _LEVEL:g} %: {num_distinct} of "
        f"{num_pairs}",
    ]
    return "\n\n".join(
        [
            f"**Tuned rates.** With the rates that the search chose, the report's five optimizers end within "
            f"{reported[1]:.2f} points of each other; at the defaults the range is {reported[0]:.2f} points. The "
            f"differences that remain between all {len(samples)} optimizers {verdict}.",
            "\n".join(lines),
        ]
    )


def _explanation(name: str, done: Sequence[Run], published: float) -> str:
    """Return a finding: how much of the gap from the published to the best rate's accuracy the default explains."""
    default, rate = accuracies(done, "defaults")[name], rates(done, "defaults")[name]
    tuned, best = accuracies(done, "tuned")[name], rates(done, "tuned")[name]
    best_mean, default_mean = statistics.fmean(tuned), statistics.fmean(default)
    lines = [
        f"- at the default rate, {rate:g}: {shown(default)}",
        f"- at the best rate of the search, {best:.2g}: {shown(tuned)}",
    ]
    if best_mean <= published:
        verdict = "Neither rate reaches the report's number, so there is nothing to explain."
    else:
        share = (best_mean - default_mean) / (best_mean - published)
        verdict = _verdict(share, _first_epoch_above(name, done, published))
        lines.append(
            f"- the default explains {100 * share:.0f} % of the {best_mean - published:.1f} points between the report "
            "and the best rate"
        )
    return "\n\n".join([f"**{NAMES[name]}'s {published:g} %.** {verdict}", "\n".join(lines)])


def _verdict(share: float, passed: str) -> str:
    """Return the conclusion from the share of a gap that the default rate explains."""
    if share >= _EXPLAINED:
        return "The default rate explains the report's number. The number says nothing about the method."
    if share > 1 - _EXPLAINED:
        return "The default rate explains the report's number in part."
    return (
        f"The default rate does not explain the report's number{passed}. The report must have used another rate, "
        "fewer epochs or another network."
    )


def _first_epoch_above(name: str, done: Sequence[Run], published: float) -> str:
    """Return a clause on the epoch in which the default rate first exceeds a published accuracy, or an empty one."""
    epochs, curves = histories(done, "defaults", name)
    above = [
        int(epoch) for epoch, value in zip(epochs, curves["test_accuracy"], strict=True) if 100 * value > published
    ]
    return f", which training at that rate exceeds in epoch {above[0]} of {epochs[-1]}" if above else ""


def _control(phase: str, done: Sequence[Run], published: Mapping[str, float]) -> str:
    """Return a finding: whether a control's change closes the gap between an optimizer's default and the report."""
    (name, changed), *_ = accuracies(done, phase).items()
    default, target = accuracies(done, "defaults")[name], published[name]
    label, change, conclusion = CONTROLS[phase]
    mean, default_mean = statistics.fmean(changed), statistics.fmean(default)
    closed = mean >= target if default_mean <= target else mean <= target
    verdict = (
        f"This change closes the gap to the report. {conclusion}"
        if closed
        else f"This change does not close the gap to the report: {abs(mean - target):.2f} points remain."
    )
    return (
        f"**{NAMES[name]}'s {target:g} %, {label}.** {verdict} {change} and all else at the defaults, {NAMES[name]} "
        f"ends at {shown(changed)} instead of {shown(default)}: {mean - default_mean:+.2f} points, "
        f"{_probability(welch(default, changed))}."
    )


def _searched(done: Sequence[Run]) -> str:
    trials = [run for run in done if run.config["phase"] == "search"]
    one = trials[0].config
    number = len(trials) // len(rates(done, "tuned"))
    diverged = sum(run.result["status"] == "diverged" for run in trials)
    edges = [NAMES[name] for name, rate in best_rates(done).items() if _is_extreme(name, rate, trials)]
    edge = f" {listed(edges)} chose an end of the range; a wider one may give more." if edges else ""
    defaults, tuned = (accuracies(done, phase) for phase in PHASES)
    lower = [NAMES[name] for name in tuned if statistics.fmean(tuned[name]) < statistics.fmean(defaults[name])]
    verdict = (
        f"So short a search favours rates that learn fast: {listed(lower)} "
        f"{'ends' if len(lower) == 1 else 'end'} lower at the chosen rate than at the default."
        if lower
        else "No optimizer ends lower at the chosen rate than at the default."
    )
    return (
        f"**Search.** The search tried {number} rates for each optimizer, {one['num_epochs']} epochs each, on "
        f"{one['num_rows']:,} training rows. {verdict} {diverged} of {len(trials)} trials diverged. The validation "
        f"split chose the rates, which are in the notes of the table.{edge}"
    )


def _network(done: Sequence[Run]) -> str:
    trained = next(run.config for run in done if run.config["phase"] in PHASES)
    lines = [
        "- between a convolution and its pooling layer: nothing, since the report names nothing and Keras adds nothing",
        "- first weights: Glorot's rule, and biases of zero",
        "- pixels: from 0 to 1",
        f"- batches: {trained['batch_size']} images",
        "- learning rate: constant",
    ]
    return "\n\n".join(
        [
            "**Network.** The network has the report's average pooling and the report's ReLU in the dense layers. "
            "What the report leaves open is as in Keras or its example:",
            "\n".join(lines),
        ]
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
    return f"p = {p_value:.2g}" if p_value >= 0.0001 else "p < 0.0001"
