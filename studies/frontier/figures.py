"""The figures of `frontier`: errors beside the records, the kinds on the held-out rows, averages, and mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnist_pipe.data.splits import SIDE
from mnist_pipe.evaluation import plots
from studies.common import verdict
from studies.common.packing import unpacked
from studies.common.study import Measured
from studies.frontier.results import RECORDS, errors, interval, ours, selected_error
from studies.frontier.runs import of_phase


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw the four figures into `folder`."""
    conclusions = measured.conclusions
    _errors(folder / "figure.png", measured)
    _kinds(folder / "kinds.png", measured)
    _sizes(folder / "sizes.png", conclusions)
    _mistakes(folder / "mistakes.png", conclusions)
    return {
        "figure.png": "Test error of each of our systems and of each published record, with 95 % intervals",
        "kinds.png": "Error and Brier score of each kind of network on the held-out rows; the chosen kinds are blue",
        "sizes.png": "Test error against the number of networks averaged, for copies and for networks of several kinds",
        "mistakes.png": "Every test image that the average of all networks misreads, with label and prediction",
    }


def _errors(path: Path, measured: Measured) -> None:
    """Draw a line for each system: ours with seeds and two intervals, the records with that of the images."""
    conclusions, num_rows = measured.conclusions, measured.conclusions["num_rows"]
    labels: list[str] = []
    with plots.drawing(path, height=6.4) as figure:
        figure.set_figwidth(8.0)
        axes = figure.subplots()
        for system, variant, values in ours(measured).values():
            place, mean = len(labels), float(np.mean(values))
            labels.append(f"{system}\n{variant}")
            axes.plot(interval(mean, num_rows=num_rows), [place] * 2, color=plots.BLUE, linewidth=0.9)
            if len(values) > 1:
                low, high = verdict.prediction_interval(values)
                axes.plot([max(low, 0), high], [place] * 2, color=plots.BLUE, linewidth=4, alpha=0.35)
                axes.plot(values, [place - 0.3] * len(values), "o", color=plots.BLUE, alpha=0.5, markersize=3, mew=0)
            axes.plot(mean, place, "o", color=plots.BLUE, markersize=6)
        for record in RECORDS:
            place, value = len(labels), measured.published.find(record.system, record.variant, "test_error").value
            labels.append(f"{record.system}\n{record.variant}")
            axes.plot(interval(value, num_rows=num_rows), [place] * 2, color=plots.MUTED, linewidth=0.9)
            marker = "D" if record.selected else "o"
            axes.plot(value, place, marker, color=plots.MUTED, markerfacecolor="white", markersize=6)
            if record.selected:
                axes.plot(selected_error(conclusions, record.selected), place, "x", color=plots.RED, markersize=7)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0, labelcolor=plots.INK, labelsize=7)
        axes.set(xlim=(0, None), ylim=(len(labels) - 0.5, -0.7), xlabel=f"error on the {num_rows:,} test images, %")
        entries: tuple[tuple[dict[str, Any], str], ...] = (
            ({"marker": "o", "color": plots.BLUE}, "ours: mean over seeds, small: each seed"),
            ({"color": plots.BLUE, "linewidth": 4, "alpha": 0.35}, "interval of one further run of ours"),
            ({"color": plots.INK, "linewidth": 0.9}, "interval for the images as a sample of digits"),
            ({"marker": "o", "color": plots.MUTED, "markerfacecolor": "white"}, "record"),
            ({"marker": "D", "color": plots.MUTED, "markerfacecolor": "white"}, "record, chosen on the test split"),
            ({"marker": "x", "color": plots.RED}, "ours, if it were chosen on the test split"),
        )
        for style, label in entries:
            axes.plot([], [], label=label, **{"linestyle": "none" if "marker" in style else "-", **style})
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _kinds(path: Path, measured: Measured) -> None:
    """Draw the error, with Wilson's interval, and the Brier score of each kind on the rows that are held out."""
    chosen = measured.conclusions["choice"]
    found = {one.config["kind"]: one.result for one in of_phase(measured.runs, "choice")}
    kinds = sorted(found, key=lambda kind: float(found[kind]["brier"]))
    with plots.drawing(path, height=0.3 * len(kinds) + 1.5) as figure:
        figure.set_figwidth(7.5)
        left, right = figure.subplots(1, 2, sharey=True)
        for place, kind in enumerate(kinds):
            colour = plots.BLUE if kind in chosen["members"] else plots.MUTED
            (error,) = errors([found[kind]["accuracy"]])
            left.plot(interval(error, num_rows=chosen["num_rows"]), [place] * 2, color=colour, linewidth=0.9)
            left.plot(error, place, "o", color=colour, markersize=5)
            right.plot(found[kind]["brier"], place, "o", color=colour, markersize=5)
        left.set_yticks(range(len(kinds)), kinds)
        left.set(xlim=(0, None), ylim=(len(kinds) - 0.5, -0.5), xlabel=f"error on {chosen['num_rows']:,} rows, %")
        right.set(xlim=(0, None), xlabel="Brier score at the best temperature")
        for colour, label in ((plots.BLUE, "chosen for the ensemble"), (plots.MUTED, "not chosen")):
            right.plot([], [], "o", color=colour, markersize=5, label=label)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0, labelcolor=plots.INK)


def _sizes(path: Path, conclusions: Mapping[str, Any]) -> None:
    """Draw the mean error against the number of networks; the band is Wilson's interval of several kinds."""
    num_rows = conclusions["num_rows"]
    with plots.drawing(path, height=3.6) as figure:
        axes = figure.subplots()
        for number, (name, values) in enumerate(conclusions["by_size"].items()):
            sizes, means = np.arange(1, len(values) + 1), errors(values)
            style: dict[str, Any] = {"color": plots.SERIES_COLOURS[number], "marker": plots.SERIES_MARKERS[number]}
            if name == "one of each kind":
                low, high = zip(*(interval(mean, num_rows=num_rows) for mean in means), strict=True)
                band = f"{name}: 95 % interval for the images"
                axes.fill_between(sizes, low, high, color=style["color"], alpha=0.12, linewidth=0, label=band)
            axes.plot(sizes, means, label=name, **style)
        axes.set(xlabel="networks averaged", ylabel="test error, %")
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(1, max(len(values) for values in conclusions["by_size"].values()) + 1))
        axes.legend(fontsize=8, loc="lower left")


def _mistakes(path: Path, conclusions: Mapping[str, Any]) -> None:
    wrong = conclusions["mistakes"]
    ink = [unpacked(mistake["pixels"], np.uint8).reshape(SIDE, SIDE) for mistake in wrong]
    plots.draw_mistakes(
        path,
        np.array(ink, np.float32).reshape(-1, SIDE, SIDE),
        labels=np.array([mistake["label"] for mistake in wrong]),
        predictions=np.array([mistake["prediction"] for mistake in wrong]),
        probabilities=np.array([mistake["probability"] for mistake in wrong]),
        num_worst=len(wrong),
    )
