"""The findings of `optimizers`: what an optimizer is worth for LeNet-5, and how rates decide the report's ranking."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import f_oneway, ttest_ind, tukey_hsd

from studies.common import verdict
from studies.common.ledger import Run
from studies.common.published import PublishedResult
from studies.common.study import Measured
from studies.common.table import Row, listed, probability, without_empty
from studies.optimizers.results import (
    CONTROL_LABELS,
    NAMES,
    PHASES,
    SYSTEM,
    accuracies,
    histories,
    published_result,
    rates,
    shown,
)
from studies.optimizers.runs import KERAS_DEFAULTS, REPORTED, best_rates

_CONTROL = "a control, chosen to explain the figure"
_ADAPTIVE = ("adagrad", "rmsprop", "adam")
"""Optimizers of the report that Wilson et al. 2017 call adaptive."""
_EXPLAINED = 0.8  # share of a difference: at least this explains it, at most 1 minus this does not


def rows(measured: Measured) -> list[Row]:
    """Return the test accuracy after the last epoch, one row for each optimizer and column."""
    found = []
    labels = {phase: phase for phase in PHASES} | {phase: f"defaults, {what}" for phase, what in CONTROL_LABELS.items()}
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
                    published=None if phase == "tuned" else published_result(name, measured.published),
                    note=f"rate {rate:.2g}",
                    not_comparable=_CONTROL if phase in CONTROL_LABELS else "",
                )
            )
    return found


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the answer in two sentences."""
    reported = _reported(rows)
    reproduced = [NAMES[name] for name, row in reported.items() if row.verdict == verdict.REPRODUCED]
    tuned = accuracies(measured.runs, "tuned")
    defaults = accuracies(measured.runs, "defaults")
    spans = [_range({name: column[name] for name in REPORTED}) for column in (defaults, tuned)]
    share = "mostly" if spans[1] < spans[0] / 2 else "not mostly"
    return (
        f"At the libraries' default rates {len(reproduced)} of the report's {len(reported)} accuracies are reproduced"
        f"{f' ({listed(reproduced)})' if reproduced else ''}. Its ranking is {share} one of default rates: they span "
        f"{spans[0]:.1f} points, searched rates {spans[1]:.1f}."
    )


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: which figures are found, what explains the others, and what is left of the ranking."""
    done = measured.runs
    defaults, tuned = (accuracies(done, phase) for phase in PHASES)
    reported = {name: row.published for name, row in _reported(rows).items() if row.published}
    published = {name: result.value for name, result in reported.items()}
    return "\n\n".join(
        [
            _ranking(defaults, published),
            _rectified(done, published),
            _sgd(done, reported),
            _spread(defaults, tuned),
            _explanation("adadelta", done, published["adadelta"]),
            _claims(done),
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
    told = (
        "The order of the report's five optimizers, from the worst to the best, is the report's."
        if ours == list(REPORTED)
        else f"The order is not the report's, {' < '.join(NAMES[name] for name in REPORTED)}."
    )
    lines = [
        f"- {NAMES[name]}: {shown(defaults[name])}, {statistics.fmean(defaults[name]) - published[name]:+.1f} points "
        f"from the report's {published[name]:g} %"
        for name in ours
    ]
    return "\n\n".join([f"**Default rates.** {told} From the worst to the best, here:", "\n".join(lines)])


def _spread(defaults: Mapping[str, list[float]], tuned: Mapping[str, list[float]]) -> str:
    reported = [_range({name: column[name] for name in REPORTED}) for column in (defaults, tuned)]
    everyone = [_range(column) for column in (defaults, tuned)]
    samples = list(tuned.values())
    deviation = math.sqrt(statistics.fmean(statistics.variance(values) for values in samples))
    ratio, p_value = f_oneway(*samples)
    num_by_holm, num_pairs = num_distinct_pairs(samples, level=verdict.SIGNIFICANCE), math.comb(len(samples), 2)
    # The diagonal is 1, and every pair is there twice.
    num_distinct = int((tukey_hsd(*samples).pvalue < verdict.SIGNIFICANCE).sum()) // 2
    best, worst = (pick(tuned, key=lambda name: statistics.fmean(tuned[name])) for pick in (max, min))
    told = (
        "could be chance"
        if p_value > verdict.SIGNIFICANCE
        else f"are measurable: their range is {everyone[1] / deviation:.0f} standard deviations over seeds"
        if num_distinct
        else "are measurable over all of them together, but not in any single pair"
    )
    lines = [
        f"- best: {NAMES[best]}, {shown(tuned[best])}",
        f"- worst: {NAMES[worst]}, {shown(tuned[worst])}",
        f"- range: {everyone[1]:.2f} points, and {everyone[0]:.2f} points at the defaults",
        f"- standard deviation over seeds, pooled over the optimizers: {deviation:.2f} points",
        f"- F test that all have the same mean: F = {ratio:.1f}, {probability(p_value)}",
        f"- pairs that differ at {100 * verdict.SIGNIFICANCE:g} %: {num_distinct} of {num_pairs} by Tukey's test, "
        f"which takes the seeds' deviation to be the same for all, and {num_by_holm} by Welch's with Holm's correction",
    ]
    return "\n\n".join(
        [
            f"**Tuned rates.** With the rates that the search chose, the report's five optimizers end within "
            f"{reported[1]:.2f} points of each other; at the defaults the range is {reported[0]:.2f} points. The "
            f"differences that remain between all {len(samples)} optimizers {told}.",
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
        told = "Neither rate reaches the report's number, so there is nothing to explain."
    else:
        share = (best_mean - default_mean) / (best_mean - published)
        told = _verdict(share)
        lines.append(
            f"- the default explains {100 * share:.0f} % of the {best_mean - published:.1f} points between the report "
            "and the best rate"
        )
    return "\n\n".join([f"**{NAMES[name]}'s {published:g} %.** {told}", "\n".join(lines)])


def _verdict(share: float) -> str:
    """Return the conclusion from the share of a gap that the default rate explains."""
    if share >= _EXPLAINED:
        return "The default rate explains the report's number. The number says nothing about the method."
    if share > 1 - _EXPLAINED:
        return "The default rate explains the report's number in part."
    return "The default rate does not explain the report's number."


def _rectified(done: Sequence[Run], published: Mapping[str, float]) -> str:
    """Return a finding: how near to the report its five optimizers come with and without ReLU behind convolutions."""
    columns = [accuracies(done, phase) for phase in ("defaults", "rectified")]
    gaps = [{name: abs(statistics.fmean(column[name]) - published[name]) for name in REPORTED} for column in columns]
    nearer, farther = (
        [NAMES[name] for name in REPORTED if (gaps[1][name] < gaps[0][name]) == wanted] for wanted in (True, False)
    )
    adaptive = [max(gap for name, gap in by_name.items() if name != "sgd") for by_name in gaps]
    lines = [
        [NAMES[name], f"{published[name]:g} %", *(f"{shown(column[name])}" for column in columns)] for name in REPORTED
    ]
    told = [f"It takes {listed(nearer)} nearer to the report" if nearer else "It takes none nearer to the report"]
    told += [f"and {listed(farther)} away from it" if farther else "and none away from it"]
    return "\n\n".join(
        [
            f"**ReLU behind the convolutions.** The report names none, and may have had it. {' '.join(told)}. Of the "
            f"four adaptive optimizers the one that is farthest off lies {adaptive[0]:.2f} points from the report "
            f"without it and {adaptive[1]:.2f} with it. So it is possible, and these figures do not show it:",
            without_empty(["optimizer", "report", "linear", "ReLU"], lines),
        ]
    )


def _sgd(done: Sequence[Run], published: Mapping[str, PublishedResult]) -> str:
    """Return a finding: which settings give SGD's figure, alone or with the others, and which are excluded."""
    phases = {
        "linear convolutions": "defaults",
        "ReLU convolutions": "rectified",
        "linear convolutions, rate of the adaptive optimizers": "slower",
        "ReLU convolutions, one epoch": "first epoch",
    }
    figure = published["sgd"].value
    lines, words = [], {}
    for label, phase in phases.items():
        columns = accuracies(done, phase)
        words[label] = {
            name: verdict.of_number(
                columns[name], published=result.value, decimals=result.decimals, lower_is_better=False
            )
            for name, result in published.items()
            if name in columns
        }
        values = columns["sgd"]
        epochs, curves = histories(done, phase, "sgd")
        passed = [
            int(e)
            for e, value in zip(epochs, curves["test_accuracy"].mean(axis=0), strict=True)
            if 100 * value > figure
        ]
        lines.append(
            [
                label,
                f"{rates(done, phase)['sgd']:g}",
                str(epochs[-1]),
                f"{shown(values)} ({', '.join(f'{value:.1f}' for value in values)})",
                f"{passed[0]}" if passed else "never",
                words[label]["sgd"],
            ]
        )
    fits = [label for label, found in words.items() if found["sgd"] == verdict.REPRODUCED]
    together = [label for label in fits if [*words[label].values()] == [verdict.REPRODUCED] * len(published)]
    excluded = [label for label in words if label not in fits]
    told = [f"{listed(together) if together else 'No setting'} gives it together with the other four figures."]
    if fits:
        told.append(f"Of the settings that were run, {listed(fits)} {'gives' if len(fits) == 1 else 'give'} it.")
    if "ReLU convolutions, one epoch" in fits and not together:
        told.append(
            "Likely: SGD was trained for far fewer steps than the others, or its figure was read off early, since one "
            f"epoch gives {statistics.fmean(accuracies(done, 'first epoch')['sgd']):.1f} %."
        )
    told.append("Possible: another rate or network that only SGD had.")
    told.append(f"Excluded as run here: {listed(excluded) if excluded else 'none'}.")
    return "\n\n".join(
        [
            f"**SGD's {figure:g} %.** {' '.join(told)}",
            without_empty(
                ["setting", "rate", "epochs", "accuracy (each seed)", f"first above {figure:g} %", "verdict"], lines
            ),
        ]
    )


def _claims(done: Sequence[Run]) -> str:
    """Return a finding: the report's explanations, each tested where the runs can test it."""
    defaults, tuned, other = (accuracies(done, phase) for phase in ("defaults", "tuned", "other start"))

    def judged(better: list[float], worse: list[float]) -> str:
        effect, p_value = statistics.fmean(better) - statistics.fmean(worse), welch(better, worse)
        return f"{verdict.of_claim(effect, p_value=p_value)} ({effect:+.2f} points, {probability(p_value)})"

    moved = {
        name: (statistics.fmean(other[name]) - statistics.fmean(defaults[name]), welch(other[name], defaults[name]))
        for name in ("adam", "sgd")
    }
    last = {name: histories(done, "tuned", name)[1]["train_loss"][:, -1].mean() for name in ("sgd", *_ADAPTIVE)}
    generalising = "; ".join(
        f"than {NAMES[name]}: {judged(tuned['sgd'], tuned[name])}, training loss {last['sgd']:.4f} beside "
        f"{last[name]:.4f}"
        for name in _ADAPTIVE
    )
    starts = "; ".join(
        f"{NAMES[name]} {effect:+.2f} points ({probability(p_value)})" for name, (effect, p_value) in moved.items()
    )
    robust = verdict.CONTRADICTED if moved["adam"][1] < verdict.SIGNIFICANCE else verdict.UNDECIDED
    lines = [
        "- Adagrad is better than SGD, because it suits sparse gradients: at the default rates "
        f"{judged(defaults['adagrad'], defaults['sgd'])}, at the searched ones "
        f"{judged(tuned['adagrad'], tuned['sgd'])}.",
        f"- SGD is better than Adadelta, because it suits small and simple data: at the default rates "
        f"{judged(defaults['sgd'], defaults['adadelta'])}, at the searched ones "
        f"{judged(tuned['sgd'], tuned['adadelta'])}. What differs between the two columns is the rate, not the data.",
        "- RMSprop has a momentum term: wrong. The method divides a gradient by the root of a running mean of its "
        "squares, as the report's own formula does; momentum is an option of some libraries, off by default.",
        "- Adaptive methods generalise worse than SGD, as Wilson et al. say, whom the report cites and does not test: "
        f"that SGD is more accurate at the searched rates {generalising}.",
        f"- Adam is robust to the first weights: {robust}. With torch's first weights instead of Glorot's, {starts}.",
    ]
    return "\n\n".join(["**The report's explanations.** Each as a claim on the runs:", "\n".join(lines)])


def _searched(done: Sequence[Run]) -> str:
    searches = [run for run in done if run.config["phase"] == "search"]
    one = searches[0].config
    numbers = sorted({len(run.config["learning_rates"]) for run in searches})
    rungs = [f"{number} after {epochs}" for epochs, number in one["rungs"]]
    best = best_rates(done)
    ends = {run.config["optimizer"]: run.config["learning_rates"] for run in searches}
    edges = [NAMES[name] for name, rate in best.items() if rate in (min(ends[name]), max(ends[name]))]
    kept = [NAMES[name] for name, rate in best.items() if rate == rates(done, "defaults")[name]]
    defaults, tuned = (accuracies(done, phase) for phase in PHASES)
    lower = [name for name in tuned if statistics.fmean(tuned[name]) < statistics.fmean(defaults[name])]
    surely = [name for name in lower if welch(tuned[name], defaults[name]) < verdict.SIGNIFICANCE]
    told = (
        f"{listed([NAMES[name] for name in lower])} {'ends' if len(lower) == 1 else 'end'} lower at the chosen rate "
        f"than at the default, {len(surely)} of {len(lower)} of them measurably (Welch's test)."
        if lower
        else "No optimizer ends lower at the chosen rate than at the default."
    )
    edge = f" {listed(edges)} chose an end of the range; a wider one may give more." if edges else ""
    default = f" {listed(kept)} kept the default." if kept else ""
    return (
        f"**Search.** For each optimizer {' or '.join(map(str, numbers))} rates, its default among them, were trained "
        f"on the training split with one seed; by the accuracy on the validation split {' and '.join(rungs)} epochs "
        f"went on, and those to the end, {one['num_epochs']} epochs, as in the table. {told}{default}{edge}"
    )


def _network(done: Sequence[Run]) -> str:
    first = next(run for run in done if run.config["phase"] in PHASES)
    lines = [
        "- between a convolution and its pooling layer: nothing, since the report names nothing and Keras adds nothing",
        "- first weights: Glorot's rule, and biases of zero",
        "- pixels: from 0 to 1",
        f"- batches: {first.config['batch_size']} images",
        "- learning rate: constant",
        f"- Adagrad's accumulators: from {KERAS_DEFAULTS['adagrad'][1]['initial_accumulator_value']:g}, as in Keras; "
        "in the report's formula they start at zero",
    ]
    return "\n\n".join(
        [
            f"**Network.** The network has {first.result['parameters']:,} weights and biases, the report's average "
            "pooling and the report's ReLU in the dense layers. What the report leaves open is as in Keras or its "
            "example:",
            "\n".join(lines),
        ]
    )


def _reported(rows: Sequence[Row]) -> dict[str, Row]:
    """Return for each optimizer of the report its row at the default rate."""
    return {name: row for name in REPORTED for row in rows if row.variant == f"{NAMES[name]}, defaults"}


def _range(column: Mapping[str, list[float]]) -> float:
    means = [statistics.fmean(values) for values in column.values()]
    return max(means) - min(means)
