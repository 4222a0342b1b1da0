"""The findings of `cnn`: the report's numbers beside ours, and the effects of augmentation and of each improvement."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES
from mnist_pipe.evaluation import plots
from studies.cnn.runs import BILINEAR, CONTROL, EXAMPLE, IMPROVEMENTS, LONGER, OTHER_BATCHES, UNMOVED, of
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.published import Published, PublishedResult
from studies.common.study import Measured
from studies.common.table import Row, probability, without_empty

_SYSTEM = "CNN 32-64 + max-pool + 128"
_VARIANTS = {CONTROL: "rotation 10 + translation 0.1; Adam 1e-3; NLL", UNMOVED: "no augmentation"}
_REPORTED = (  # training, metric, epoch, and the setting in published.csv
    *((CONTROL, "test_accuracy", epoch, f"epoch {epoch}") for epoch in range(1, 6)),
    *((CONTROL, metric, epoch, f"epoch {epoch}") for metric in ("train_loss", "test_loss") for epoch in range(1, 6)),
    (UNMOVED, "train_loss", 5, "epoch 5"),
    (UNMOVED, "test_loss", 5, "epoch 5"),
    (UNMOVED, "test_accuracy", 5, "98.7 to 98.9 %"),
)


def rows(measured: Measured) -> list[Row]:
    """Return rows for every number of the report, for pytorch/examples, and for the improvements.

    Nothing was published on the improvements.
    """
    done, published = measured.runs, measured.published
    found = [
        Row(
            system=_SYSTEM,
            variant=_VARIANTS[training],
            metric=metric,
            values=_values(of(done, training), metric, epoch),
            unit=published_result.unit,
            published=published_result,
        )
        for training, metric, epoch, published_result in _reported(done, published)
    ]
    if example := of(done, EXAMPLE):
        published_result = published.find("CNN 32-64 + dropout", "Adadelta lr 1.0, gamma 0.7", "test_accuracy")
        found.append(
            Row(
                system="CNN 32-64 + dropout",
                variant="Adadelta lr 1.0, gamma 0.7",
                metric="test_accuracy",
                values=_values(example, "test_accuracy"),
                unit="%",
                published=published_result,
                note=f"{example[0].config['num_epochs']} epochs",
            )
        )
    return found + [
        Row(
            system=_system(of(done, name)[0]),
            variant=_variant(of(done, name)[0]),
            metric="test_accuracy",
            values=_values(of(done, name), "test_accuracy"),
            unit="%",
            published=None,
            note=f"{_gain(measured.conclusions['against_control'][name])} over the report's training",
        )
        for name in IMPROVEMENTS
    ]


def _reported(done: Sequence[Run], published: Published) -> Iterator[tuple[str, str, int, PublishedResult]]:
    """Yield the report's numbers for the epochs that were trained here."""
    for training, metric, epoch, setting in _REPORTED:
        if epoch <= of(done, training)[0].config["num_epochs"]:
            yield training, metric, epoch, published.find(_SYSTEM, _VARIANTS[training], metric, setting=setting)


def _values(found: Sequence[Run], metric: str, epoch: int = 0) -> list[float]:
    """Return a metric of each seed, accuracies in %; epoch 0 is the last."""
    scale = 100 if metric.endswith("accuracy") else 1
    return [round(scale * run.result["epochs"][epoch - 1][metric], 6) for run in found]


def _system(run: Run) -> str:
    return "ResNet 32-64" if run.config["model"] == "resnet" else _SYSTEM


def _variant(run: Run) -> str:
    """Return what distinguishes a training from the report's."""
    config = run.config
    arguments = config["model_params"]
    parts = [f"dropout {arguments['dropout']:g}"] if "dropout" in arguments else []
    parts += ["batch norm"] if arguments.get("batch_norm") else []
    if config["schedule"] != "constant":
        parts.append(f"rate falling to zero over {config['num_epochs']} epochs")
    return ", ".join(parts) or "trained as the report's"


def _gain(against: Mapping[str, Any]) -> str:
    gains = against["gains"]
    return f"{statistics.fmean(gains):+.2f} ± {statistics.stdev(gains):.2f} points"


def _p_values(against: Mapping[str, Any]) -> str:
    """Return the p-value of all seeds together, and that of each seed."""
    return f"McNemar's {probability(against['p_value'])}; by seed {', '.join(map(probability, against['p_values']))}"


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw losses and accuracies by epoch, the confusion matrix, and the accuracy of each improvement."""
    _draw_epochs(folder / "figure.png", measured)
    plots.draw_confusion(folder / "confusion.png", _confusion(measured.conclusions))
    _draw_improvements(folder / "improvements.png", measured)
    return {
        "figure.png": "Loss and accuracy by epoch with and without augmentation, with the report's figures as diamonds",
        "confusion.png": "Confusion matrix of the augmented networks, summed over the seeds",
        "improvements.png": "Test accuracy of each proposed improvement beside the report's training, with every seed",
    }


def _draw_epochs(path: Path, measured: Measured) -> None:
    """Draw a column with augmentation and one without; thin lines are seeds, diamonds the report's numbers."""
    done = measured.runs
    published = list(_reported(done, measured.published))
    with plots.drawing(path, height=5.2) as figure:
        figure.set_figwidth(7.5)
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, training in enumerate((CONTROL, UNMOVED)):
            found = of(done, training)
            for axes, measure in zip(panels[:, column], ("loss", "accuracy"), strict=True):
                for split, colour in (("train", plots.MUTED), ("test", plots.BLUE)):
                    metric = f"{split}_{measure}"
                    curves = np.array([[epoch[metric] for epoch in run.result["epochs"]] for run in found])
                    _curve(axes, curves, split, colour)
                    for reported, its_metric, epoch, entry in published:
                        if (reported, its_metric) == (training, metric):
                            value = entry.value / 100 if measure == "accuracy" else entry.value
                            axes.plot(epoch, value, "D", color=colour, markerfacecolor="white", markersize=5, zorder=3)
            panels[0, column].set_title("with augmentation" if training == CONTROL else "without augmentation")
            panels[1, column].set_xlabel("epoch")
        panels[0, 0].plot([], [], "D", color=plots.INK, markerfacecolor="white", markersize=5, label="the report")
        panels[0, 0].set(yscale="log", ylabel="loss, nats (logarithmic)")
        panels[1, 0].set_ylabel("accuracy")
        panels[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
        panels[1, 0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        panels[0, 0].xaxis.set_major_locator(FixedLocator(range(1, of(done, CONTROL)[0].config["num_epochs"] + 1)))
        panels[0, 0].legend(fontsize=8)


def _curve(axes: Axes, curves: NDArray[np.float64], label: str, colour: str) -> None:
    """Draw the mean of the curves, float64 `(seeds, epochs)`, and each seed behind it."""
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.plot(epochs, curves.T, color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(epochs, curves.mean(0), color=colour, label=label)


def _draw_improvements(path: Path, measured: Measured) -> None:
    """Draw the mean and standard deviation of the test accuracy, and each seed; the band is the report's training.

    The diamond is the report's number for it.
    """
    done = measured.runs
    names = [name for name in (UNMOVED, CONTROL, LONGER, *IMPROVEMENTS, EXAMPLE) if of(done, name)]
    control = np.array(_values(of(done, CONTROL), "test_accuracy"))
    last = of(done, CONTROL)[0].config["num_epochs"]
    reported = [
        entry
        for name, metric, at, entry in _reported(done, measured.published)
        if (name, metric, at) == (CONTROL, "test_accuracy", last)
    ]
    with plots.drawing(path, height=1.4 + 0.36 * len(names)) as figure:
        figure.set_figwidth(7.5)
        axes = figure.subplots()
        band = (control.mean() - control.std(ddof=1), control.mean() + control.std(ddof=1))
        axes.axvspan(*band, color=plots.FAINT, label="the report's training, mean ± s")
        for entry in reported:
            place, label = names.index(CONTROL), "the report's number"
            axes.plot(
                entry.value, place, "D", color=plots.INK, markerfacecolor="white", markersize=5, zorder=3, label=label
            )
        axes.errorbar([], [], xerr=[], color=plots.BLUE, marker="o", markersize=5.5, label="mean ± s over the seeds")
        axes.plot([], [], "o", color=plots.BLUE, alpha=0.5, markersize=3.5, mew=0, label="a seed")
        for place, name in enumerate(names):
            values = np.array(_values(of(done, name), "test_accuracy"))
            colour = plots.BLUE if name in IMPROVEMENTS else plots.MUTED
            axes.plot(values, [place + 0.25] * len(values), "o", color=colour, alpha=0.5, markersize=3.5, mew=0)
            axes.errorbar(values.mean(), place, xerr=values.std(ddof=1), color=colour, marker="o", markersize=5.5)
        axes.set_yticks(range(len(names)), [_label(of(done, name)[0]) for name in names])
        axes.invert_yaxis()
        axes.set_title("test accuracy of the last epoch")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g} %")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)


def _label(run: Run) -> str:
    name, epochs = run.config["training"], run.config["num_epochs"]
    text = {
        CONTROL: "the report's training",
        UNMOVED: "without augmentation",
        "decay": "falling learning rate",
        "resnet": "ResNet",
        "together": "all four together",
        LONGER: "constant learning rate",
    }.get(name, name)
    return f"{text}, {epochs} epochs"


def _confusion(conclusions: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the confusion matrix, int64 `(10, 10)`, summed over the seeds."""
    matrix: NDArray[np.int64] = np.sum(np.array(conclusions["confusion"], dtype=np.int64), axis=0)
    return matrix


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: whether the report's numbers, overfitting and 9 as 4 are found, and what its proposals give."""
    done, conclusions = measured.runs, measured.conclusions
    return "\n\n".join(
        [
            _on_numbers(rows),
            _on_the_setup(measured),
            _on_overfitting(done, conclusions),
            _on_confusions(conclusions),
            _on_improvements(done, conclusions),
        ]
    )


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the answer in two sentences."""
    reported = [row for row in rows if row.published and row.variant in _VARIANTS.values()]
    reproduced = sum(row.verdict == verdict.REPRODUCED for row in reported)
    words = {name: _effect(measured.conclusions["against_control"][name]) for name in IMPROVEMENTS}
    better = [_label(of(measured.runs, name)[0]) for name, word in words.items() if word == verdict.HOLDS]
    helped = f"{len(better)} are measurably better: {'; '.join(better)}" if better else "none is measurably better"
    return (
        f"{reproduced} of the report's {len(reported)} figures are reproduced. Of the {len(IMPROVEMENTS)} proposed "
        f"trainings, {helped}."
    )


def _on_numbers(rows: Sequence[Row]) -> str:
    reported = [row for row in rows if row.published and row.variant in _VARIANTS.values()]
    differing = [row for row in reported if row.verdict != verdict.REPRODUCED]
    text = f"**The report's figures.** {len(reported) - len(differing)} of {len(reported)} are reproduced."
    if not differing:
        return text
    lines = [
        f"- {_named(row)}: {row.shown()} instead of {row.published.value:g}, {row.verdict}"
        for row in differing
        if row.published
    ]
    return "\n\n".join([f"{text} The others are:", "\n".join(lines)])


def _named(row: Row) -> str:
    assert row.published is not None
    epoch = row.published.setting if row.published.setting.startswith("epoch") else "epoch 5"
    where = f"{epoch} without augmentation" if row.variant == _VARIANTS[UNMOVED] else epoch
    return f"{row.metric.replace('_', ' ')} of {where}"


def _on_the_setup(measured: Measured) -> str:
    control = of(measured.runs, CONTROL)[0]
    lines = [
        f"- parameters: {control.result['num_parameters']:,}",
        f"- batch size: the report gives none, and it is {control.config['batch_size']} here, as in pytorch/examples.",
        "- augmentation: as torchvision does it, whose transforms the report names: rotated to the nearest pixel and "
        "shifted by whole pixels. The rest of this project moves images by one bilinear resampling.",
        "- train loss: the mean over an epoch of augmented images, while the weights still change.",
        "- test split: evaluated after every epoch. It chooses nothing.",
    ]
    return "\n\n".join(
        [
            "**Setup.** The network and its training are the report's, as far as it describes them:",
            "\n".join(lines),
            "What other choices change, as means over the seeds:",
            _choices(measured),
        ]
    )


def _choices(measured: Measured) -> str:
    """Return a table of train and test losses by epoch: the report's, and those of every choice that it leaves open."""
    published = list(_reported(measured.runs, measured.published))
    names = (CONTROL, BILINEAR, *OTHER_BATCHES)
    metrics = ("train_loss", "test_loss")
    lines = []
    for epoch in range(1, of(measured.runs, CONTROL)[0].config["num_epochs"] + 1):
        cells = [str(epoch)]
        for metric in metrics:
            found = [e.value for name, m, at, e in published if (name, m, at) == (CONTROL, metric, epoch)]
            cells.append(f"{found[0]:g}" if found else "–")
            cells += [f"{statistics.fmean(_values(of(measured.runs, name), metric, epoch)):.4f}" for name in names]
        lines.append(cells)
    labels = ["report", "ours", *names[1:]]
    header = ["epoch", *(f"{metric.replace('_', ' ')}, {label}" for metric in metrics for label in labels)]
    return without_empty(header, lines)


def _on_overfitting(done: Sequence[Run], conclusions: Mapping[str, Any]) -> str:
    ratios, lines = {}, []
    for name, label in ((UNMOVED, "without"), (CONTROL, "with")):
        known = statistics.fmean(run.result["known_loss"] for run in of(done, name))
        unknown = statistics.fmean(_values(of(done, name), "test_loss"))
        ratios[name] = [run.result["epochs"][-1]["test_loss"] / run.result["known_loss"] for run in of(done, name)]
        lines.append(f"- {label} augmentation: {known:.4f} and {unknown:.4f}, a ratio of {unknown / known:.1f}")
    verdict = (
        "Augmentation reduces overfitting in every seed."
        if min(ratios[UNMOVED]) > max(ratios[CONTROL])
        else "Augmentation does not reduce overfitting in every seed."
    )
    losses = np.mean([[epoch["test_loss"] for epoch in run.result["epochs"]] for run in of(done, UNMOVED)], axis=0)
    best = int(losses.argmin()) + 1
    course = (
        f"is lowest after epoch {best}, at {losses.min():.4f}, and {losses[-1]:.4f} after epoch {len(losses)}"
        if best < len(losses)
        else f"still falls in its last epoch, to {losses[-1]:.4f}"
    )
    against = conclusions["against_control"][UNMOVED]
    return "\n\n".join(
        [
            f"**Overfitting.** {verdict} The loss with the last weights, on the training images without augmentation "
            "and on the test images:",
            "\n".join(lines),
            f"Without augmentation the test loss {course}, and the test accuracy changes by "
            f"{_gain(against)}: {_told(against)}.",
        ]
    )


def _effect(against: Mapping[str, Any]) -> str:
    """Return the verdict on the claim that a training is better than the report's."""
    return verdict.of_claim(statistics.fmean(against["gains"]), p_value=against["p_value"])


def _told(against: Mapping[str, Any]) -> str:
    """Return what a comparison with the report's training shows, and the p-values behind that."""
    gains = against["gains"]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    words = {verdict.HOLDS: "measurably better", verdict.CONTRADICTED: "measurably worse"}
    seeds = f"better in {better} and worse in {worse} of {len(gains)} seeds"
    return f"{words.get(_effect(against), 'not decided')}, {seeds} ({_p_values(against)})"


def _on_confusions(conclusions: Mapping[str, Any]) -> str:
    seeds, matrix = np.array(conclusions["confusion"]), _confusion(conclusions)
    pairs = {pair: int(matrix[pair] + matrix[pair[::-1]]) for pair in combinations(range(NUM_CLASSES), 2)}
    ranked = sorted(pairs, key=lambda pair: -pairs[pair])
    by_seed = [int(one[9, 4]) for one in seeds]
    occurs = "in every seed" if min(by_seed) else f"in {sum(map(bool, by_seed))} of {len(by_seed)} seeds"
    rank = 1 + sum(count > pairs[4, 9] for count in pairs.values())
    place = "the most confused pair" if rank == 1 else f"number {rank} of the confused pairs"
    return "\n\n".join(
        [
            "**9 as 4.** The report says that the network occasionally misclassifies a 9 as a 4 and sometimes confuses "
            f"digits like 4 and 9. That {verdict.HOLDS if min(by_seed) else f'is {verdict.UNDECIDED}'}: a 9 is "
            f"read as a 4 {occurs} ({', '.join(map(str, by_seed))}), and 4 and 9 are {place} of the "
            f"{len(seeds)} augmented networks, with {pairs[4, 9]} of {sum(pairs.values())} mistakes. The five most "
            "confused pairs are:",
            "\n".join(f"- {first} and {second}: {pairs[first, second]}" for first, second in ranked[:5]),
        ]
    )


def _on_improvements(done: Sequence[Run], conclusions: Mapping[str, Any]) -> str:
    against = {name: conclusions["against_control"][name] for name in IMPROVEMENTS}
    lines = [
        f"- {_label(of(done, name)[0])}: {statistics.fmean(_values(of(done, name), 'test_accuracy')):.2f} %, "
        f"{_gain(entry)}, {_told(entry)}"
        for name, entry in against.items()
    ]
    beside_longer = [
        f"- {_label(of(done, name)[0])}: {_gain(entry)}, {_told(entry)}"
        for name, entry in conclusions["against_longer"].items()
    ]
    longer = conclusions["against_control"][LONGER]
    better = sum(_effect(entry) == verdict.HOLDS for entry in against.values())
    control, resnet = of(done, CONTROL), of(done, "resnet")[0]
    best = max(against, key=lambda name: statistics.fmean(against[name]["gains"]))
    return "\n\n".join(
        [
            f"**Proposed improvements.** {better} of {len(against)} trainings are measurably better than the report's, "
            f"which ends at {statistics.fmean(_values(control, 'test_accuracy')):.2f} % after "
            f"{control[0].config['num_epochs']} epochs. The largest gain is that of {_label(of(done, best)[0])}.",
            "\n".join(lines),
            f"The report's training for {of(done, LONGER)[0].config['num_epochs']} epochs at a constant rate ends at "
            f"{statistics.fmean(_values(of(done, LONGER), 'test_accuracy')):.2f} %, {_gain(longer)}, {_told(longer)}. "
            "Over that control, the other trainings of its length gain:",
            "\n".join(beside_longer),
            "A difference is measurable if McNemar's p-values of the seeds, combined (Rüger 1978), are below "
            f"{verdict.SIGNIFICANCE:g}. The ResNet has {resnet.result['num_parameters']:,} "
            "parameters and batch norm in every block. None of these trainings was tuned.",
        ]
    )
