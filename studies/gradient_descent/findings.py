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
                for panel, figures in zip(panels[:, column], ("cost", "test_accuracy"), strict=True):
                    curves = np.array([member[figures] for member in _members(run, schedule)])
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
    wins, told = 0, []
    for batch in batches:
        by_encoding = {run.config["encoding"]: _best(run) for run in finals if run.config["batch"] == batch}
        others = {name: found for name, found in by_encoding.items() if name != "one-hot"}
        wins += all(
            _mean(by_encoding["one-hot"]) - _mean(found) > 2 * _spread(by_encoding["one-hot"], found)
            for found in others.values()
        )
        names = ", ".join(f"{name} {_shown(found)}" for name, found in by_encoding.items())
        told.append(f"{batch}: {names}")
    verdict = {
        len(batches): "holds at every batch size, by more than two standard deviations of the seeds",
        0: "does not hold at any batch size here by more than two standard deviations",
    }.get(wins, f"holds by more than two standard deviations at {wins} of {len(batches)} batch sizes")
    return (
        f"**The encoding.** The lesson says that ten outputs, one-hot, work best. That {verdict}. Test accuracy with "
        f"the schedule whose cost ends lower, an image read as the digit whose code is nearest: {'; '.join(told)}."
    )


def _batches(finals: Sequence[Run], batches: Sequence[str]) -> str:
    told = []
    for batch in batches:
        run = next(run for run in finals if run.config["batch"] == batch and run.config["encoding"] == "one-hot")
        series = np.mean([member["test_accuracy"] for member in _members(run, "constant")], axis=0)
        epochs = run.result["epochs"]
        first = next((epoch for epoch, value in zip(epochs, series, strict=True) if value >= 0.9), None)
        reached = f"reaches 90 % after {first} epoch{'s' * (first != 1)}" if first else "never reaches 90 %"
        told.append(f"{batch} {reached} of {epochs[-1]} (last {series[-1]:.2%}, {_wobble(run):.2f} points of wobble)")
    return (
        f"**The batch.** One-hot, constant rate: {'; '.join(told)}. The wobble is the standard deviation of the test "
        "accuracy over the last five looks at a run, in percentage points, as a mean over seeds: what the lesson calls "
        "oscillation."
    )


def _decay(finals: Sequence[Run]) -> str:
    gains = {
        (run.config["batch"], run.config["encoding"]): (
            100 * (_mean(_last(run, "decayed")) - _mean(_last(run, "constant"))),
            200 * _spread(_last(run, "decayed"), _last(run, "constant")),
        )
        for run in finals
    }
    better = [f"{batch}, {encoding} {gain:+.2f}" for (batch, encoding), (gain, noise) in gains.items() if gain > noise]
    worse = [f"{batch}, {encoding} {gain:+.2f}" for (batch, encoding), (gain, noise) in gains.items() if -gain > noise]
    fraction = finals[0].config["final_fraction"]
    return (
        f"**The rate.** Falling to {fraction:g} of where it started, it changes the accuracy by more than two standard "
        f"deviations of the seeds upwards in {len(better)} of {len(gains)} cases ({'; '.join(better) or 'none'}), "
        f"downwards in {len(worse)} ({'; '.join(worse) or 'none'}), in percentage points."
    )


def _searched(done: Sequence[Run]) -> str:
    searches = [run for run in done if is_search(run)]
    edges = [
        f"{run.config['batch']}, {run.config['encoding']}"
        for run in searches
        if _chosen(run, done) in (min(_tried(run)), max(_tried(run)))
    ]
    note = f" At the edge of what was tried lies that of {'; '.join(edges)}." if edges else ""
    return (
        f"Each learning rate is the best of {len(_tried(searches[0]))} on the validation split, one seed each; the "
        f"runs that are shown then train on all 60,000 rows.{note}"
    )


def _tried(search: Run) -> list[float]:
    return [rate for rate, _, _ in search.config["members"]]


def _chosen(search: Run, done: Sequence[Run]) -> float:
    same = ("batch", "encoding")
    final = next(r for r in done if not is_search(r) and all(r.config[key] == search.config[key] for key in same))
    return float(final.config["members"][0][0])


def _members(run: Run, schedule: str) -> Iterator[dict[str, list[float]]]:
    for figures, (_, kind, _) in zip(run.result["members"], run.config["members"], strict=True):
        if kind == schedule:
            yield figures


def _last(run: Run, schedule: str) -> list[float]:
    return [member["test_accuracy"][-1] for member in _members(run, schedule)]


def _best(run: Run) -> list[float]:
    """Return the last test accuracies with the schedule whose cost on the training rows ends lower."""
    return _last(run, min(_SCHEDULES, key=lambda kind: _mean([member["cost"][-1] for member in _members(run, kind)])))


def _wobble(run: Run) -> float:
    return 100 * _mean([statistics.stdev(member["test_accuracy"][-5:]) for member in _members(run, "constant")])


def _outputs(run: Run) -> int:
    return {"one-hot": 10, "binary": 4, "ordinal": 1}[run.config["encoding"]]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _spread(first: Sequence[float], second: Sequence[float]) -> float:
    return float(np.hypot(statistics.stdev(first), statistics.stdev(second)))


def _shown(values: Sequence[float]) -> str:
    return f"{_mean(values):.2%} ± {100 * statistics.stdev(values):.2f}"
