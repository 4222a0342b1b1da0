"""The findings of `frontier`: how near an hour of training comes to the published records, and what stays wrong."""

from __future__ import annotations

import base64
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_pipe.data.splits import SIDE
from mnist_pipe.evaluation import plots
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row

_RECORDS = (  # system, variant, and which of our systems is of the same kind
    ("branching CNN with homogeneous vector capsules", "single network", "single"),
    ("MCDNN", "35 networks averaged", "whole"),
    ("DropConnect", "networks aggregated", "small"),
    ("branching CNN with homogeneous vector capsules", "ensemble", "whole"),
    ("simple CNNs of three kernel sizes", "majority vote of three", "small"),
    ("simple CNNs of three kernel sizes", "two-layer ensemble", "whole"),
)


def rows(measured: Measured) -> list[Row]:
    """Return rows for our systems, and for each record beside the system of ours that is most like it."""
    done, conclusions = measured.runs, measured.conclusions
    ours = {
        "single": _errors([run.result["test_accuracy"] for run in done]),
        "small": _errors(conclusions["ensembles"]),
        "whole": _errors([conclusions["whole_ensemble"]]),
    }
    size = done[0].config["ensemble_size"]
    names = {
        "single": "one network, five looks at each image",
        "small": f"ensemble of {size}",
        "whole": f"ensemble of all {len(done)}",
    }
    system = f"convnet, {done[0].result['num_parameters']:,} parameters"
    own = [
        Row(
            system=system,
            variant="one network, one look",
            metric="test_error",
            values=_errors([run.result["one_look_accuracy"] for run in done]),
            unit="%",
            published=None,
        ),
        *(
            Row(system=system, variant=names[kind], metric="test_error", values=values, unit="%", published=None)
            for kind, values in ours.items()
        ),
    ]
    records = []
    for name, variant, kind in _RECORDS:
        published = measured.published.find(name, variant, "test_error")
        note = f"theirs: {published.setting}; ours: {names[kind]}"
        records.append(
            Row(
                system=name,
                variant=variant,
                metric="test_error",
                values=ours[kind],
                unit="%",
                published=published,
                note=note,
            )
        )
    return own + records


def draw(folder: Path, measured: Measured) -> list[str]:
    """Draw the error against the number of networks, with the records, and every remaining mistake."""
    done, conclusions = measured.runs, measured.conclusions
    with plots.drawing(folder / "figure.png", height=3.4) as figure:
        axes = figure.subplots()
        sizes = np.arange(1, len(done) + 1)
        axes.plot(
            sizes, _errors(conclusions["by_size"]), "o-", color=plots.BLUE, label="mean over subsets of this size"
        )
        size = done[0].config["ensemble_size"]
        small = _errors(conclusions["ensembles"])
        axes.plot([size] * len(small), small, "x", color=plots.RED, label="ensembles without a common member")
        axes.set(xlabel="networks averaged", ylabel="test error, %", title="Averages of networks, and the records")
        axes.set_xticks(sizes)
        axes.set_ylim(0, 1.1 * max(_errors(conclusions["by_size"]) + small))
        records = dict[float, list[str]]()
        for name, variant, _ in _RECORDS:
            value = measured.published.find(name, variant, "test_error").value
            records.setdefault(value, []).append(f"{name}, {variant}")
        for value, names in records.items():
            axes.axhline(value, color=plots.MUTED, linewidth=0.7, linestyle=":")
            label = "\n".join(names)
            axes.annotate(label, (len(done), value), ha="right", va="bottom", fontsize=6, color=plots.MUTED)
        axes.legend(fontsize=8)
    wrong = conclusions["mistakes"]
    raw = b"".join(base64.b64decode(mistake["pixels"]) for mistake in wrong)
    plots.draw_mistakes(
        folder / "mistakes.png",
        np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE).astype(np.float32),
        labels=np.array([mistake["label"] for mistake in wrong]),
        predictions=np.array([mistake["prediction"] for mistake in wrong]),
        probabilities=np.array([mistake["probability"] for mistake in wrong]),
        num_worst=len(wrong),
    )
    return ["figure.png", "mistakes.png"]


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: what an hour of training reaches, how it and the records were chosen, and what stays wrong."""
    done, conclusions = measured.runs, measured.conclusions
    return "\n\n".join(
        [
            _on_one_network(done),
            _on_the_ensembles(done, conclusions),
            _on_the_records(rows, conclusions),
            _on_the_mistakes(conclusions),
        ]
    )


def _on_one_network(done: Sequence[Run]) -> str:
    single = [run.result["test_accuracy"] for run in done]
    results = [
        f"- worst network: {min(single):.2%}",
        f"- best network: {max(single):.2%}; to report only this one would overstate the method by "
        f"{100 * (max(single) - statistics.fmean(single)):.2f} points",
    ]
    choices = [
        "- recipe: `best`, which was chosen on the validation split of the main pipeline",
        f"- epochs: {done[0].config['num_epochs']} on all 60,000 rows, fixed in advance; the last weights count",
        f"- networks: all {len(done)}, one for each seed",
    ]
    return "\n\n".join(
        [
            f"**One network.** One network has an accuracy of {_shown(single)}, over {len(single)} seeds.",
            "\n".join(results),
            "**Choices.** The test split chose nothing:",
            "\n".join(choices),
        ]
    )


def _on_the_ensembles(done: Sequence[Run], conclusions: Mapping[str, Any]) -> str:
    single = statistics.fmean(run.result["test_accuracy"] for run in done)
    small, whole = conclusions["ensembles"], conclusions["whole_ensemble"]
    size = done[0].config["ensemble_size"]
    low, high = conclusions["interval"]
    lines = [
        f"- {len(small)} ensembles of {size} networks each, without a common network: {_shown(small)}",
        f"- ensemble of all {len(done)}: {whole:.2%}, with a 95 % interval from {low:.2%} to {high:.2%} over "
        f"{conclusions['num_rows']:,} images",
    ]
    return "\n\n".join(
        [
            f"**Ensembles.** The average of {size} networks differs from one network by "
            f"{100 * (statistics.fmean(small) - single):+.3f} points of accuracy, the average of all {len(done)} by "
            f"{100 * (whole - single):+.3f}.",
            "\n".join(lines),
        ]
    )


def _on_the_records(rows: Sequence[Row], conclusions: Mapping[str, Any]) -> str:
    records = [(f"{row.system}, {row.variant}", row) for row in rows if row.published is not None]
    reached = [name for name, row in records if row.verdict.startswith("reached")]
    low, high = conclusions["interval"]
    inside = [name for name, row in records if row.published and low <= 1 - row.published.value / 100 <= high]
    verdict = f"{len(reached) or 'None'} of the {len(records)} records {'is' if len(reached) < 2 else 'are'} reached"
    paragraphs = [f"**Records.** {verdict}{': ' if reached else ''}{'; '.join(reached)}."]
    if inside:
        paragraphs[0] += (
            f" {conclusions['num_rows']:,} images cannot distinguish our ensemble of all from those in its interval:"
        )
        paragraphs.append("\n".join(f"- {name}" for name in inside))
    else:
        paragraphs[0] += " None is inside the interval of our ensemble of all."
    paragraphs.append(
        "Two of the records are, by their own account, the best accuracy that was seen on the test set. Ours is the "
        "result of one attempt."
    )
    return "\n\n".join(paragraphs)


def _on_the_mistakes(conclusions: Mapping[str, Any]) -> str:
    mistakes = conclusions["mistakes"]
    pairs = Counter((mistake["label"], mistake["prediction"]) for mistake in mistakes).most_common(3)
    verdict = (
        f"**Mistakes.** The ensemble of all misreads {len(mistakes)} images. On {conclusions['wrong_of_all']} test "
        "images no network is right."
    )
    if not pairs:
        return verdict
    return "\n\n".join(
        [
            f"{verdict} The most frequent mistakes, label → prediction:",
            "\n".join(f"- {label} → {prediction}: {count}" for (label, prediction), count in pairs),
            "The last figure shows all of them, with label, prediction and its probability.",
        ]
    )


def _errors(accuracies: Sequence[float]) -> list[float]:
    return [round(100 * (1 - accuracy), 4) for accuracy in accuracies]


def _shown(accuracies: Sequence[float]) -> str:
    return f"{statistics.fmean(accuracies):.3%} ± {100 * statistics.stdev(accuracies):.3f}"
