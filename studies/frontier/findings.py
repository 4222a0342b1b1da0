"""The findings of `frontier`: how near an hour of training comes to the published records, and what stays wrong."""

from __future__ import annotations

import base64
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_pipe.data.splits import SIDE
from mnist_pipe.evaluation import plots
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
        figure = measured.published.find(name, variant, "test_error")
        note = f"theirs: {figure.setting}; ours: {names[kind]}"
        records.append(
            Row(
                system=name,
                variant=variant,
                metric="test_error",
                values=ours[kind],
                unit="%",
                published=figure,
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
    config, mistakes = done[0].config, conclusions["mistakes"]
    single = [run.result["test_accuracy"] for run in done]
    low, high = conclusions["interval"]
    pairs = Counter((mistake["label"], mistake["prediction"]) for mistake in mistakes)
    frequent = ", ".join(f"{label} for {prediction} ({count})" for (label, prediction), count in pairs.most_common(3))
    records = [row for row in rows if row.published is not None]
    beaten = [f"{row.system}, {row.variant}" for row in records if row.verdict.startswith("reached")]
    inside = [
        f"{row.system}, {row.variant}"
        for row in records
        if row.published and low <= 1 - row.published.value / 100 <= high
    ]
    return "\n\n".join(
        [
            f"**What was trained.** {len(done)} networks, one a seed, each for {config['num_epochs']} epochs on all "
            f"60,000 rows by the recipe `best`, which was chosen on the validation split of the main pipeline. The "
            f"number of epochs was fixed before, the last weights count, and no network was left out: the test split "
            f"chose nothing. One network: {statistics.fmean(single):.3%} ± {100 * statistics.stdev(single):.3f}, the "
            f"worst {min(single):.2%}, the best {max(single):.2%}. To report the best of {len(single)} seeds would "
            f"look {100 * (max(single) - statistics.fmean(single)):.2f} points better than the method is.",
            f"**The ensembles.** {len(conclusions['ensembles'])} of {config['ensemble_size']} networks each: "
            f"{_shown(conclusions['ensembles'])}; all {len(done)}: {conclusions['whole_ensemble']:.2%} (95 % interval "
            f"{low:.2%} to {high:.2%} over {conclusions['num_rows']:,} images).",
            f"**The records.** As good or better: {'; '.join(beaten) or 'none'}. Inside the interval of our whole "
            f"ensemble, so that {conclusions['num_rows']:,} images cannot tell them from it: "
            f"{'; '.join(inside) or 'none'}. Two of the records say of themselves that they are the best that was seen "
            "on the test set; ours is what one attempt gives.",
            f"**What stays wrong.** {len(mistakes)} images, {conclusions['wrong_of_all']} of which no network reads "
            f"right; the most frequent are {frequent or 'none'}. They are below, label → prediction with its "
            "probability.",
        ]
    )


def _errors(accuracies: Sequence[float]) -> list[float]:
    return [round(100 * (1 - accuracy), 4) for accuracy in accuracies]


def _shown(accuracies: Sequence[float]) -> str:
    return f"{statistics.fmean(accuracies):.3%} ± {100 * statistics.stdev(accuracies):.3f}"
