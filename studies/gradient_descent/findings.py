"""The findings of `gradient_descent`: what encodings, batch sizes and a decaying rate do to the 784-15-10 network."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from mnist_pipe.evaluation import plots
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row, counted, without_empty
from studies.gradient_descent.demonstrations import NUM_STEPS
from studies.gradient_descent.runs import ENCODINGS, is_search, search_scores

_SCHEDULES = ("constant", "decayed")
_LAST = 5
"""Evaluations at the end of a run over which trend and oscillation are told apart."""


def rows(measured: Measured) -> list[Row]:
    """Return the test accuracy by batch size, encoding and schedule, one row each; the lesson publishes none."""
    return [
        Row(
            system=f"784-{run.config['num_hidden']}-{_outputs(run)}, {run.config['encoding']}",
            variant=f"{run.config['batch']}, {schedule} rate",
            metric="test_accuracy",
            values=[round(100 * member["test_accuracy"][-1], 4) for member in _members(run, schedule)],
            unit="%",
            published=None,
            note=f"η {run.config['members'][0][0]:g}, {run.config['num_epochs']} epochs",
        )
        for run in _finals(measured)
        for schedule in _SCHEDULES
    ]


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw cost and accuracy by epoch, and the cost on the straight lines between trained networks."""
    _draw_epochs(folder / "figure.png", measured)
    _draw_lines(folder / "minima.png", measured.conclusions["minima"])
    return {
        "figure.png": "Cost and test accuracy by epoch for online, mini-batch and full-batch training; one-hot is best",
        "minima.png": "Cost on straight lines between trained networks: it rises in the middle of every line",
    }


def _draw_epochs(path: Path, measured: Measured) -> None:
    """Draw a column for each batch size and a colour for each encoding; a band is the range over the seeds."""
    finals = _finals(measured)
    batches = list(dict.fromkeys(run.config["batch"] for run in finals))
    with plots.drawing(path, height=5.4) as figure:
        figure.set_figwidth(8.5)
        panels = figure.subplots(2, len(batches), squeeze=False, sharey="row")
        for run in finals:
            column, colour = (
                batches.index(run.config["batch"]),
                plots.SERIES_COLOURS[ENCODINGS.index(run.config["encoding"])],
            )
            for schedule, style in zip(_SCHEDULES, ("-", ":"), strict=True):
                for panel, metric in zip(panels[:, column], ("cost", "test_accuracy"), strict=True):
                    # The cost of ten, four and one outputs is comparable only per output.
                    scale = 1 / _outputs(run) if metric == "cost" else 1
                    curves = scale * np.array([member[metric] for member in _members(run, schedule)])
                    epochs = np.array(run.result["epochs"])
                    label = f"{run.config['encoding']}, {schedule}"
                    panel.plot(epochs, curves.mean(0), style, color=colour, label=label, linewidth=1.5)
                    if schedule == "constant":
                        panel.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        for column, batch in enumerate(batches):
            config = next(run.config for run in finals if run.config["batch"] == batch)
            size = f" of {config['batch_size']}" if (config["batch_size"] or 0) > 1 else ""
            panels[0, column].set(title=f"{batch}{size}", yscale="log")
            panels[1, column].set(xlabel="epoch", ylim=(0, 1))
            panels[1, column].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        panels[0, 0].set_ylabel("cost per output, training\n(logarithmic)")
        panels[1, 0].set_ylabel("accuracy, test")
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)


def _draw_lines(path: Path, minima: Mapping[str, Any]) -> None:
    """Draw the cost on the line between each pair of networks, one line a pair."""
    with plots.drawing(path, height=2.8) as figure:
        axes = figure.subplots()
        for pair in minima["pairs"]:
            axes.plot(np.linspace(0, 1, len(pair["line"])), pair["line"], color=plots.BLUE, alpha=0.6, linewidth=1)
        axes.set(xlabel="way from one trained network to another", ylabel="cost, training", ylim=(0, None))
        axes.set_title("cost on the straight line between networks from different starts")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the answer in two sentences."""
    best = max(rows, key=lambda row: row.mean)
    steadier = [case["steadier"] for case in _decay_cases(_finals(measured)) if case["is_stochastic"]]
    return (
        f"Written out by the lesson's equations, {best.system} reads {best.shown()} of the test digits "
        f"({best.variant}). "
        f"That a decaying rate steadies the last epochs of online and mini-batch training {counted(steadier)} cases."
    )


def render_findings(measured: Measured, _: Sequence[Row]) -> str:
    """Return the text: whether to encode one-hot, how often to step, whether the rate should fall, and the lesson."""
    finals = _finals(measured)
    batches = list(dict.fromkeys(run.config["batch"] for run in finals))
    conclusions = measured.conclusions
    return "\n\n".join(
        [
            _encodings(finals, batches),
            _batches(finals, batches, conclusions),
            _decay(finals),
            _descent(conclusions),
            _minima(conclusions["minima"]),
            _flatness(conclusions["flatness"]),
            _searched(measured.runs),
        ]
    )


def _finals(measured: Measured) -> list[Run]:
    return [run for run in measured.runs if not is_search(run)]


def _encodings(finals: Sequence[Run], batches: Sequence[str]) -> str:
    lines, words = [], []
    for batch in batches:
        by_encoding = {run.config["encoding"]: _best(run) for run in finals if run.config["batch"] == batch}
        own = by_encoding["one-hot"]
        for name, found in by_encoding.items():
            if name != "one-hot":
                words.append(verdict.of_claim(_mean(own) - _mean(found), p_value=_paired(own, found)))
        lines.append(f"- {batch}: {', '.join(f'{name} {_shown(found)}' for name, found in by_encoding.items())}")
    return "\n\n".join(
        [
            "**Encoding.** The lesson prefers one-hot. That it is more accurate than another encoding "
            f"{counted(words)} comparisons (paired t-test over the seeds, 5 %). The numbers are test "
            "accuracies with the schedule whose cost ends lower; the prediction is the digit with the nearest code:",
            "\n".join(lines),
        ]
    )


def _batches(finals: Sequence[Run], batches: Sequence[str], conclusions: Mapping[str, Any]) -> str:
    last, lines = {}, []
    num_rows = conclusions["num_training_rows"]
    for batch in batches:
        run = next(run for run in finals if run.config["batch"] == batch and run.config["encoding"] == "one-hot")
        members = list(_members(run, "constant"))
        epochs, last[batch] = run.result["epochs"], _mean([member["test_accuracy"][-1] for member in members])
        firsts = [
            next((epoch for epoch, value in zip(epochs, member["test_accuracy"], strict=True) if value >= 0.9), None)
            for member in members
        ]
        reached = [epoch for epoch in firsts if epoch is not None]
        when = f", first after epoch {min(reached)}" if reached else ""
        trend, wobble = (_mean([part(member, epochs) for member in members]) for part in (_trend, _wobble))
        steps = num_rows // (run.config["batch_size"] or num_rows)
        lines.append(
            [
                batch,
                f"{steps:,}",
                f"{steps * epochs[-1]:,}",
                f"{len(reached)} of {len(members)} seeds{when}",
                _shown([member["test_accuracy"][-1] for member in members]),
                f"{100 * trend:+.3f}",
                f"{100 * wobble:.2f}",
            ]
        )
    best = max(last, key=lambda batch: last[batch])
    header = [
        "batch",
        "steps an epoch",
        "steps in all",
        "reaches 90 %",
        "ends at",
        "trend, points an epoch",
        "wobble, points",
    ]
    return "\n\n".join(
        [
            f"**Batch size.** The one-hot network with a constant rate ends most accurate with {best} training. In the "
            "lesson's example, batches of 100, an epoch of 60,000 images is 600 steps, and ten epochs are 6,000.",
            without_empty(header, lines),
            f"Trend and wobble are those of the test accuracy over the last {_LAST} evaluations of a run: the slope of "
            "a straight line, and the standard deviation around it. The lesson calls the latter oscillation; a full "
            "batch has nearly none, and what it changes is trend.",
        ]
    )


def _decay_cases(finals: Sequence[Run]) -> list[dict[str, Any]]:
    """Return for each batch size and encoding what a decaying rate changes: wobble, cost and accuracy at the end."""
    cases = []
    for run in finals:
        epochs = run.result["epochs"]
        constant, decayed = (list(_members(run, schedule)) for schedule in _SCHEDULES)
        pair = (constant, decayed)
        wobbles = [[100 * _wobble(member, epochs) for member in members] for members in pair]
        costs = [[member["cost"][-1] for member in members] for members in pair]
        ends = [[100 * member["test_accuracy"][-1] for member in members] for members in pair]
        cases.append(
            {
                "name": f"{run.config['batch']}, {run.config['encoding']}",
                "is_stochastic": run.config["batch_size"] is not None,
                "wobbles": wobbles,
                "costs": costs,
                "ends": ends,
                "steadier": verdict.of_claim(_mean(wobbles[0]) - _mean(wobbles[1]), p_value=_paired(*wobbles)),
                "lower": verdict.of_claim(_mean(costs[0]) - _mean(costs[1]), p_value=_paired(*costs)),
            }
        )
    return cases


def _decay(finals: Sequence[Run]) -> str:
    cases = _decay_cases(finals)
    stochastic = [case for case in cases if case["is_stochastic"]]
    full = [case for case in cases if not case["is_stochastic"]]
    fell = sum(_mean(case["wobbles"][1]) < _mean(case["wobbles"][0]) for case in stochastic)
    header = ["case", "wobble", "steadier", "cost at the end", "lower cost", "test accuracy"]
    lines = [
        [
            case["name"],
            " → ".join(f"{_mean(values):.2f}" for values in case["wobbles"]),
            case["steadier"],
            " → ".join(f"{_mean(values):.4f}" for values in case["costs"]),
            case["lower"],
            " → ".join(f"{_mean(values):.2f} %" for values in case["ends"]),
        ]
        for case in cases
    ]
    text = (
        "**Learning rate.** The lesson claims that a decaying rate stabilises and accelerates the end of training. The "
        f"wobble is smaller in {fell} of {len(stochastic)} online and mini-batch cases, and that it is measurably "
        f"smaller {counted([case['steadier'] for case in stochastic])}. That the cost ends lower "
        f"{counted([case['lower'] for case in stochastic])}."
    )
    if full:
        text += (
            f" With a full batch, which makes {finals[-1].config['num_epochs']} steps in all, it "
            f"{counted([case['lower'] for case in full])}."
        )
    return "\n\n".join(
        [
            text,
            without_empty(header, lines),
            f"The rate falls to {finals[0].config['final_fraction']:g} of its first value; each cell is constant → "
            "decayed, a mean over the seeds, and each verdict a paired t-test over them at 5 %.",
        ]
    )


def _descent(conclusions: Mapping[str, Any]) -> str:
    found = conclusions["direction"]
    lines = [
        f"- η {entry['rate']:g}: {entry['rises']} steps raise it, and it ends at {entry['cost']:.4f}"
        for entry in conclusions["rising_steps"]
    ]
    return "\n\n".join(
        [
            f"**Direction and step.** Along the negative gradient the cost of an untrained network changes by "
            f"{found['along_descent']:.4f} per unit of length, and the gradient's length is "
            f"{found['gradient_length']:.4f} (equation 6). The steepest of {found['num_random']:,} random directions "
            f"has {100 * found['steepest_random'] / found['along_descent']:.1f} % of that slope. Equation 4 promises a "
            f"lower cost only for a small enough step. Of {NUM_STEPS} steps by the whole batch, here the first "
            f"{conclusions['num_descent_rows']:,} rows, a rate too large makes some raise the cost; with one larger "
            "still, the first step saturates the sigmoids and the cost hardly moves:",
            "\n".join(lines),
        ]
    )


def _minima(minima: Mapping[str, Any]) -> str:
    costs, pairs = minima["costs"], minima["pairs"]
    cosines = [pair["cosine"] for pair in pairs]
    peaks = [max(pair["line"]) for pair in pairs]
    return (
        f"**Several minima.** {len(costs)} starts end at costs from {min(costs):.4f} to {max(costs):.4f}, but at "
        f"different weights: after the hidden units are matched, the cosine of two networks' weights is "
        f"{min(cosines):.2f} to {max(cosines):.2f}. On the straight line between them the cost rises to "
        f"{min(peaks):.3f} to {max(peaks):.3f}: they lie in different valleys, none of which is the one minimum."
    )


def _flatness(flatness: Sequence[Mapping[str, float]]) -> str:
    lines = [
        f"- by {entry['nudge']:g}: the cost changes for {100 * entry['cost']:.0f} %, the number of correct images for "
        f"{100 * entry['accuracy']:.0f} % of the weights"
        for entry in flatness
    ]
    return "\n\n".join(
        [
            "**Why not the share of correct images.** Its gradient is zero almost everywhere: a small change of a "
            "weight changes no prediction, and gives no direction to go. Changing one weight of a trained network:",
            "\n".join(lines),
        ]
    )


def _searched(done: Sequence[Run]) -> str:
    searches = [run for run in done if is_search(run)]
    edges, lines = [], []
    for run in searches:
        scores, name = search_scores(run), f"{run.config['batch']}, {run.config['encoding']}"
        chosen = _chosen(run, done)
        if chosen in (min(scores), max(scores)):
            edges.append(name)
        tried = ", ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in scores.items())
        lines.append(f"- {name}, {run.config['num_epochs']} epochs: {tried}")
    note = f" The chosen rate is the lowest or the highest that was tried for {'; '.join(edges)}." if edges else ""
    num_seeds = len({seed for _, _, seed in searches[0].config["members"]})
    return "\n\n".join(
        [
            f"**Search.** The validation split chose each learning rate by the mean of {num_seeds} seeds. The runs of "
            f"the table then trained on all 60,000 rows.{note}",
            "\n".join(lines),
        ]
    )


def _chosen(search: Run, done: Sequence[Run]) -> float:
    same = ("batch", "encoding")
    final = next(r for r in done if not is_search(r) and all(r.config[key] == search.config[key] for key in same))
    return float(final.config["members"][0][0])


def _members(run: Run, schedule: str) -> Iterator[dict[str, list[float]]]:
    for metrics, (_, kind, _) in zip(run.result["members"], run.config["members"], strict=True):
        if kind == schedule:
            yield metrics


def _last(run: Run, schedule: str) -> list[float]:
    return [member["test_accuracy"][-1] for member in _members(run, schedule)]


def _best(run: Run) -> list[float]:
    """Return the last test accuracies with the schedule whose cost on the training rows ends lower."""
    return _last(run, min(_SCHEDULES, key=lambda kind: _mean([member["cost"][-1] for member in _members(run, kind)])))


def _line(member: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    """Return what is left of the last test accuracies beside a straight line, float64 `(_LAST,)`, and its slope."""
    x, y = np.array(epochs[-_LAST:], np.float64), np.array(member["test_accuracy"][-_LAST:])
    slope, start = np.polyfit(x, y, 1)
    return y - slope * x - start, float(slope)


def _trend(member: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> float:
    """Return the change of the test accuracy by epoch at the end of a run."""
    return _line(member, epochs)[1]


def _wobble(member: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> float:
    """Return the standard deviation of the test accuracy around its trend at the end of a run."""
    rest, _ = _line(member, epochs)
    return float(np.sqrt(np.square(rest).sum() / max(1, len(rest) - 2)))  # the line takes two degrees of freedom


def _paired(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test over the seeds."""
    return float(ttest_rel(first, second).pvalue)


def _outputs(run: Run) -> int:
    return {"one-hot": 10, "binary": 4, "ordinal": 1}[run.config["encoding"]]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _shown(values: Sequence[float]) -> str:
    return f"{_mean(values):.2%} ± {100 * statistics.stdev(values):.2f}"
