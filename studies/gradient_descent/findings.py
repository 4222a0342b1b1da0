"""The findings of `gradient_descent`: what encodings, batch sizes and a decaying rate do to the 784-15-10 network."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mnist_pipe.evaluation import plots
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row
from studies.gradient_descent.runs import ENCODINGS, is_search

_SCHEDULES = ("constant", "decayed")


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


def draw(folder: Path, measured: Measured) -> list[str]:
    """Draw cost and accuracy by epoch: a column for each batch size, a colour for each encoding."""
    finals = _finals(measured)
    batches = list(dict.fromkeys(run.config["batch"] for run in finals))
    with plots.drawing(folder / "figure.png", height=4.6) as figure:
        figure.set_figwidth(8.5)
        panels = figure.subplots(2, len(batches), squeeze=False, sharey="row")
        for run in finals:
            column, colour = (
                batches.index(run.config["batch"]),
                plots.SERIES_COLOURS[ENCODINGS.index(run.config["encoding"])],
            )
            for schedule, style in zip(_SCHEDULES, ("-", ":"), strict=True):
                for panel, metric in zip(panels[:, column], ("cost", "test_accuracy"), strict=True):
                    curves = np.array([member[metric] for member in _members(run, schedule)])
                    epochs = np.array(run.result["epochs"])
                    label = f"{run.config['encoding']}, {schedule}"
                    panel.plot(epochs, curves.mean(0), style, color=colour, label=label, linewidth=1.5)
        for column, batch in enumerate(batches):
            config = next(run.config for run in finals if run.config["batch"] == batch)
            size = f" of {config['batch_size']}" if (config["batch_size"] or 0) > 1 else ""
            panels[0, column].set(title=f"{batch}{size}", yscale="log")
            panels[1, column].set(xlabel="epoch", ylim=(0, 1))
            panels[1, column].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        panels[0, 0].set_ylabel("quadratic cost, training")
        panels[1, 0].set_ylabel("accuracy, test")
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return ["figure.png"]


def render_findings(measured: Measured, _: Sequence[Row]) -> str:
    """Return the text: whether to encode one-hot, how often to step, and whether the rate should fall."""
    finals = _finals(measured)
    batches = list(dict.fromkeys(run.config["batch"] for run in finals))
    return "\n\n".join(
        [_encodings(finals, batches), _batches(finals, batches), _decay(finals), _searched(measured.runs)]
    )


def _finals(measured: Measured) -> list[Run]:
    return [run for run in measured.runs if not is_search(run)]


def _encodings(finals: Sequence[Run], batches: Sequence[str]) -> str:
    wins, lines = 0, []
    for batch in batches:
        by_encoding = {run.config["encoding"]: _best(run) for run in finals if run.config["batch"] == batch}
        others = {name: found for name, found in by_encoding.items() if name != "one-hot"}
        wins += all(
            _mean(by_encoding["one-hot"]) - _mean(found) > 2 * _spread(by_encoding["one-hot"], found)
            for found in others.values()
        )
        lines.append(f"- {batch}: {', '.join(f'{name} {_shown(found)}' for name, found in by_encoding.items())}")
    verdict = {
        len(batches): "One-hot is the best encoding at every batch size, as the lesson says.",
        0: "One-hot is not the best encoding at any batch size, contrary to the lesson.",
    }.get(wins, f"One-hot is the best encoding, as the lesson says, at {wins} of {len(batches)} batch sizes.")
    return "\n\n".join(
        [
            f"**Encoding.** {verdict} Best means by more than two standard deviations over seeds. The numbers are test "
            "accuracies with the schedule whose cost ends lower; the prediction is the digit with the nearest code:",
            "\n".join(lines),
        ]
    )


def _batches(finals: Sequence[Run], batches: Sequence[str]) -> str:
    last, lines = {}, []
    for batch in batches:
        run = next(run for run in finals if run.config["batch"] == batch and run.config["encoding"] == "one-hot")
        series = np.mean([member["test_accuracy"] for member in _members(run, "constant")], axis=0)
        epochs, last[batch] = run.result["epochs"], series[-1]
        first = next((epoch for epoch, value in zip(epochs, series, strict=True) if value >= 0.9), None)
        reached = f"reaches 90 % after epoch {first}" if first else "never reaches 90 %"
        lines.append(
            f"- {batch}: {reached} and ends at {series[-1]:.2%} after epoch {epochs[-1]}, with a standard deviation of "
            f"{_oscillation(run):.2f} points"
        )
    best = max(last, key=lambda batch: last[batch])
    return "\n\n".join(
        [
            f"**Batch size.** The one-hot network with a constant rate ends most accurate with {best} training.",
            "\n".join(lines),
            "The standard deviation is that of the test accuracy over the last five evaluations of a run, as a mean "
            "over seeds. The lesson calls it oscillation.",
        ]
    )


def _decay(finals: Sequence[Run]) -> str:
    gains = {
        f"{run.config['batch']}, {run.config['encoding']}": (
            100 * (_mean(_last(run, "decayed")) - _mean(_last(run, "constant"))),
            200 * _spread(_last(run, "decayed"), _last(run, "constant")),
        )
        for run in finals
    }
    better = [name for name, (gain, noise) in gains.items() if gain > noise]
    worse = [name for name, (gain, noise) in gains.items() if -gain > noise]
    text = (
        f"**Learning rate.** A rate that falls to {finals[0].config['final_fraction']:g} of its first value raises the "
        f"test accuracy in {len(better)} of {len(gains)} cases and lowers it in {len(worse)}, by more than two "
        "standard deviations over seeds"
    )
    if not better + worse:
        return f"{text}."
    return "\n\n".join([f"{text}:", "\n".join(f"- {name}: {gains[name][0]:+.2f} points" for name in better + worse)])


def _searched(done: Sequence[Run]) -> str:
    searches = [run for run in done if is_search(run)]
    edges = [
        f"{run.config['batch']}, {run.config['encoding']}"
        for run in searches
        if _chosen(run, done) in (min(_tried(run)), max(_tried(run)))
    ]
    note = f" The chosen rate is the lowest or the highest that was tried for {'; '.join(edges)}." if edges else ""
    return (
        f"**Search.** The validation split chose each learning rate from {len(_tried(searches[0]))}, with one seed "
        f"each. The runs of the table then trained on all 60,000 rows.{note}"
    )


def _tried(search: Run) -> list[float]:
    return [rate for rate, _, _ in search.config["members"]]


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


def _oscillation(run: Run) -> float:
    """Return the standard deviation of the test accuracy over the last five evaluations, in percentage points."""
    return 100 * _mean([statistics.stdev(member["test_accuracy"][-5:]) for member in _members(run, "constant")])


def _outputs(run: Run) -> int:
    return {"one-hot": 10, "binary": 4, "ordinal": 1}[run.config["encoding"]]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _spread(first: Sequence[float], second: Sequence[float]) -> float:
    return float(np.hypot(statistics.stdev(first), statistics.stdev(second)))


def _shown(values: Sequence[float]) -> str:
    return f"{_mean(values):.2%} ± {100 * statistics.stdev(values):.2f}"
