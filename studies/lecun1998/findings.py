"""The findings of `lecun1998`: figure 9 of LeCun et al. 1998 beside what the same systems reach here, and their costs.

The costs are those of figures 11 and 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from mnist_pipe.evaluation import plots
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row, counted, probability
from studies.lecun1998.runs import CONVOLUTIONAL, TRADITIONAL

SYSTEMS = (  # in the order of figure 9, from the top
    "linear (1-layer), plain",
    "linear (1-layer), deslanted",
    "pairwise linear, plain",
    "K-NN Euclidean, plain",
    "K-NN Euclidean, deslanted",
    "40 PCA + quadratic, plain",
    "1000 RBF + linear, plain",
    "tangent distance, 16x16",
    "SVM poly 4, deslanted",
    "reduced-set SVM poly 5, deslanted",
    "virtual SVM poly 9, distortions",
    "MLP 300-10, plain",
    "MLP 300-10, distortions",
    "MLP 300-10, deslanted 20x20",
    "MLP 1000-10, plain",
    "MLP 1000-10, distortions",
    "MLP 300-100-10, plain",
    "MLP 300-100-10, distortions",
    "MLP 500-150-10, plain",
    "MLP 500-150-10, distortions",
    "LeNet-1, 16x16 input",
    "LeNet-4, plain",
    "LeNet-4 + local learning, plain",
    "LeNet-4 + K-NN, plain",
    "LeNet-5, plain",
    "LeNet-5, distortions",
    "boosted LeNet-4, distortions",
)


def rows(measured: Measured) -> list[Row]:
    """Return the test error of each system, one row each, in the order of figure 9."""
    errors: dict[str, list[float]] = {}
    for each in measured.runs:
        for name, error in each.result["errors"].items():
            errors.setdefault(name, []).append(error)
    found = []
    for name in SYSTEMS:
        system, _, variant = name.rpartition(", ")
        variables, products = measured.conclusions["costs"][name]
        once = "" if len(errors[name]) > 1 else "; deterministic"
        found.append(
            Row(
                system=system,
                variant=variant,
                metric="test_error",
                values=errors[name],
                unit="%",
                published=measured.published.find(system, variant, "test_error"),
                note=f"{_short(variables)} variables, {_short(products)} multiply-adds{once}",
            )
        )
    return found


def draw(folder: Path, measured: Measured) -> dict[str, str]:
    """Draw figure 9 with a second bar for each system, and the errors against the multiply-adds of figure 11."""
    table = rows(measured)
    draw_errors(folder / "figure.png", table)
    draw_costs(folder / "cost.png", table, measured.conclusions["costs"])
    return {
        "figure.png": "Test error of each system of figure 9: published errors as rings, measured ones as dots",
        "cost.png": "Test error against multiply-adds for an image: published errors as rings, measured ones as dots",
    }


def draw_errors(path: Path, table: Sequence[Row]) -> None:
    """Draw a line for each row, on a logarithmic scale: a ring is the published error, a dot ours."""
    with plots.drawing(path, height=0.24 * len(table) + 1.0) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for place, row in enumerate(table):
            assert row.published is not None
            axes.plot([row.published.value, row.mean], [place] * 2, color=plots.MUTED, linewidth=0.8, alpha=0.6)
            axes.plot(row.published.value, place, "o", color=plots.MUTED, markerfacecolor="white", markersize=5)
            low, high = verdict.prediction_interval(row.values)
            axes.plot([max(low, 0.01), high], [place] * 2, color=plots.BLUE, linewidth=1.6)
            axes.plot(row.mean, place, "o", color=plots.BLUE, markersize=5)
        axes.set_yticks(range(len(table)), [f"{row.system}{_suffix(row.variant)}" for row in table])
        axes.tick_params(axis="y", length=0, labelcolor=plots.INK, labelsize=8)
        ticks = (0.5, 1, 2, 5, 10)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(ylim=(len(table) - 0.4, -0.6), xlabel="error on the test split, % (logarithmic)")
        axes.spines["left"].set_visible(False)
        axes.plot([], [], "o", color=plots.MUTED, markerfacecolor="white", markersize=5, label="published 1998")
        axes.plot([], [], "o-", color=plots.BLUE, markersize=5, label="here, with the interval of one further run")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def draw_costs(path: Path, table: Sequence[Row], costs: Mapping[str, Sequence[int]]) -> None:
    """Draw error against multiply-adds, both on a logarithmic scale; a ring is a published error, a dot is ours."""
    with plots.drawing(path, height=4.6) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="multiply-adds for an image (logarithmic)")
        axes.set_ylabel("error on the test split, % (logarithmic)")
        axes.set_title("a ring is the published error, a dot ours")
        for row in table:
            assert row.published is not None
            products = costs[f"{row.system}, {row.variant}"][1]
            colour = plots.SERIES_COLOURS[_family(row.system)]
            axes.plot([products] * 2, [row.published.value, row.mean], color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(products, row.published.value, "o", color=colour, markerfacecolor="white", markersize=5)
            axes.plot(products, row.mean, "o", color=colour, markersize=5)
        for family, name in enumerate(_FAMILIES):
            axes.plot([], [], "o", color=plots.SERIES_COLOURS[family], label=name, markersize=5)
        ticks = (0.5, 1, 2, 5, 10)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper right", fontsize=8)


_FAMILIES = {
    "linear in fixed features": ("linear", "pairwise", "40 PCA", "1000 RBF"),
    "neighbours": ("K-NN", "tangent"),
    "support vectors": ("SVM", "reduced", "virtual"),
    "fully connected": ("MLP",),
    "convolutional": ("LeNet", "boosted"),
}


def _family(system: str) -> int:
    return next(place for place, names in enumerate(_FAMILIES.values()) if system.startswith(names))


def _suffix(variant: str) -> str:
    return "" if variant == "plain" else f", {variant.removesuffix(' input')}"


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: whether figure 9 is reached, whether its conclusions hold, and what differs here from 1998."""
    table = {f"{row.system}, {row.variant}": row for row in rows}
    return "\n\n".join(
        [
            _on_the_errors(rows),
            _on_the_order(rows),
            _on_tradition(table, measured.conclusions),
            _on_the_claims(table, measured.conclusions),
            _on_generalisation(measured.runs, table),
            _on_boosting(measured.runs),
            _on_the_machines(measured.runs),
            _SAME,
            _DIFFERENT,
            _on_attempts(measured, table),
        ]
    )


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:  # noqa: ARG001
    """Return the answer in two sentences."""
    words = [row.verdict for row in rows]
    return (
        f"{words.count(verdict.REPRODUCED)} of {len(rows)} errors are reproduced, {words.count(verdict.BETTER)} are "
        f"lower and {words.count(verdict.WORSE)} higher. The order of the systems is that of 1998: the rank "
        f"correlation of the errors is {_rank_correlation(rows):.2f}."
    )


def _on_the_errors(rows: Sequence[Row]) -> str:
    paragraphs = []
    for word in (verdict.WORSE, verdict.BETTER):
        found = sorted((row for row in rows if row.verdict == word), key=lambda row: -abs(row.difference or 0))
        lines = [f"- {row.system}{_suffix(row.variant)}: {row.difference:+.2f} points" for row in found]
        if lines:
            paragraphs += [f"{'Higher' if word == verdict.WORSE else 'Lower'} than published are:", "\n".join(lines)]
    return "\n\n".join(
        [
            "**Figure 9.** An error is reproduced if the published one could be a further run of ours. A method that "
            "draws nothing has one value, and rounding alone is allowed for: K-NN, the linear and the support vector "
            "machines differ by their images or their training, not by chance.",
            *paragraphs,
        ]
    )


def _on_the_order(rows: Sequence[Row]) -> str:
    rank = _rank_correlation(rows)
    best = min(rows, key=lambda row: row.mean)
    steepest = max(rows, key=lambda row: row.published.value / row.mean if row.published else 0.0)
    assert steepest.published is not None
    return (
        f"**Order.** The order of 1998 "
        f"{'still holds' if rank > 0.8 else 'has changed'}: the rank "
        f"correlation between the published errors and ours is {rank:.2f}. The best system here is "
        f"{best.system}{_suffix(best.variant)}, with an error of {best.shown()}. "
        f"{steepest.system}{_suffix(steepest.variant)} improves by the largest factor, from "
        f"{steepest.published.value:g} % to {steepest.shown()}."
    )


def _rank_correlation(rows: Sequence[Row]) -> float:
    """Return Spearman's rank correlation between the published errors and ours."""
    theirs, ours = zip(*((row.published.value, row.mean) for row in rows if row.published), strict=True)
    return float(spearmanr(theirs, ours).statistic)


def _on_the_claims(table: Mapping[str, Row], conclusions: Mapping[str, Any]) -> str:
    compared = {(one["better"], one["worse"]): one for one in conclusions["compared"]}
    own = {pair: one for pair, one in compared.items() if _is_variant(*pair)}
    distorted = {pair: one for pair, one in own.items() if pair[0].endswith(", distortions")}
    upright = {pair: one for pair, one in own.items() if pair not in distorted}
    features = {pair: one for pair, one in compared.items() if pair[0].startswith("LeNet-4 + ")}
    return "\n\n".join(
        [
            f"**Distortions.** That training on distorted images lowers the error {_counted(distorted.values())}:",
            _lines(distorted, table),
            f"**Deslanting.** That deslanted images lower the error {_counted(upright.values())}:",
            _lines(upright, table),
            "**Classifiers on LeNet-4's features.** In 1998 they did not lower its error. That they do "
            f"{_counted(features.values())}:",
            _lines(features, table),
        ]
    )


def _is_variant(better: str, worse: str) -> bool:
    """Return whether both are the same system with other images."""
    return better.rpartition(", ")[0] == worse.rpartition(", ")[0]


def _lines(compared: Mapping[tuple[str, str], Mapping[str, float]], table: Mapping[str, Row]) -> str:
    return "\n".join(
        f"- {table[better].system}: {table[worse].mean:.2f} → {table[better].mean:.2f} %, {_word(one)} "
        f"({probability(one['p_value'])})"
        for (better, worse), one in compared.items()
    )


def _on_tradition(table: Mapping[str, Row], conclusions: Mapping[str, Any]) -> str:
    """Return whether the convolutional networks are better than every system that is no network."""
    found = [
        one
        for one in conclusions["compared"]
        if one["better"].startswith(CONVOLUTIONAL) and one["worse"].startswith(TRADITIONAL) and one["worse"] in table
    ]
    exceptions: dict[str, list[str]] = {}
    for one in found:
        if _word(one) != verdict.HOLDS:
            row = table[one["worse"]]
            exceptions.setdefault(one["better"], []).append(
                f"{row.system}{_suffix(row.variant)} ({row.mean:.2f} %, {_word(one)}, {probability(one['p_value'])})"
            )
    lines = [
        f"- {table[name].system}{_suffix(table[name].variant)}, {table[name].mean:.2f} %, beside {', '.join(others)}"
        for name, others in exceptions.items()
    ]
    text = (
        "**Better than traditional methods.** That a convolutional network has a lower error than a system that is no "
        f"network {_counted(found)} pairs (McNemar's tests of all pairs of seeds, combined; two-sided, "
        f"{100 * verdict.SIGNIFICANCE:g} %)."
    )
    return "\n\n".join([f"{text} The exceptions are:", "\n".join(lines)]) if lines else text


def _on_generalisation(done: Sequence[Run], table: Mapping[str, Row]) -> str:
    """Return how much higher the error on the test split is than on the images that a network learned from."""
    found: dict[str, list[float]] = {}
    for each in done:
        if "train_error" in each.result:
            found.setdefault(each.config["name"], []).append(each.result["train_error"])
    errors = {name: (fmean(values), table[name].mean) for name, values in found.items()}
    lines = [
        f"- {table[name].system}{_suffix(table[name].variant)}: {train:.2f} → {test:.2f} %, {test - train:+.2f} points"
        for name, (train, test) in sorted(errors.items(), key=lambda one: one[1][1] - one[1][0])
    ]
    return "\n\n".join(
        [
            "**Generalisation.** The error on the 60,000 training images, without distortions, and on the test split, "
            "from the smallest difference to the largest:",
            "\n".join(lines),
        ]
    )


def _word(one: Mapping[str, float]) -> str:
    return verdict.of_claim(one["effect"], p_value=one["p_value"])


def _counted(found: Iterable[Mapping[str, float]]) -> str:
    return counted([_word(one) for one in found])


def _on_boosting(done: Sequence[Run]) -> str:
    boosted = [each for each in done if each.config["method"] == "boosted"]
    three = [fmean(each.result["single_errors"][place] for each in boosted) for place in range(3)]
    patterns = [fmean(each.result["num_patterns"][place] for each in boosted) for place in range(2)]
    together = fmean(error for each in boosted for error in each.result["errors"].values())
    lines = [
        f"- first network: {three[0]:.2f} %",
        f"- second, trained on {patterns[0]:,.0f} images of which the first misreads half: {three[1]:.2f} %",
        f"- third, trained on {patterns[1]:,.0f} images on which the first two disagree: {three[2]:.2f} %",
        f"- sum of the three: {together:.2f} %",
    ]
    return "\n\n".join(
        [
            "**Boosting.** The sum of the three boosted networks has "
            f"{'a lower error than any' if together < min(three) else 'no lower error than the best'} of them:",
            "\n".join(lines),
        ]
    )


def _on_the_machines(done: Sequence[Run]) -> str:
    plain, upright = (
        next(each.result for each in done if name in each.result["errors"])
        for name in ("virtual SVM poly 9, distortions", "reduced-set SVM poly 5, deslanted")
    )
    (virtual,) = plain["num_vectors"].values()
    first, smaller = upright["num_vectors"].values()
    reduced_error = upright["errors"]["reduced-set SVM poly 5, deslanted"]
    lines = [
        f"- SVM poly 9 on regular images: {plain['first_error']:.2f} % error, {plain['num_first']:,} support vectors "
        "of 60,000 rows",
        f"- virtual SVM poly 9: {virtual:,} vectors of those and their {4 * plain['num_first']:,} shifts",
        f"- SVM poly 4 on deslanted images: {first:,} support vectors",
        f"- machine of degree 5 on these and their shifts: {upright['virtual_error']:.2f} % error, "
        f"{upright['num_virtual']:,} vectors",
        f"- its reduced set: {reduced_error:.2f} % error, {smaller:,} vectors",
    ]
    return "\n\n".join(
        [
            "**Support vectors.** The reduced set approximates a machine that has "
            f"{upright['num_virtual'] / smaller:.0f} times its vectors; its error differs by "
            f"{reduced_error - upright['virtual_error']:+.2f} points. Figure 9 does not mention that SVM poly 4 and "
            "the reduced set use deslanted images; the table on the authors' page does, and this study follows it.",
            "\n".join(lines),
        ]
    )


_SAME = """\
**As in 1998.** The images and the architectures are those of the paper:

- images: regular, deslanted by moments and cut to 20x20, reduced to 16x16
- networks: the layers, the tables of connections, trainable subsampling, the scaled tanh, the fixed bitmaps of \
LeNet-5's output and its MAP criterion (equation 9), not the softmax output that summaries of the paper give it
- size: the numbers of parameters and connections are exactly those that the text gives, and within 4 % of figures \
11 and 12

The exceptions are:

- LeNet-5's layers add up to the 340,908 connections of section II.B, not to the 401,000 of figure 11.
- All three networks of the boosted LeNet-4 process every image here.
- The size of some systems depends on training, for example the number of support vectors.
- LeNet-4's tables of connections are ours, because the paper gives only its sizes. 120 hidden units that read \
everything before them would have three times its 17,000 parameters."""
_DIFFERENT = """\
**Unlike 1998.** The systems learn differently here:

- optimizer: AdamW or Muon with one cycle of the learning rate, in batches, instead of the stochastic diagonal \
Levenberg-Marquardt method
- loss: softmax and cross-entropy instead of squared error for LeNet-1, LeNet-4, the linear and quadratic classifiers \
and the fully connected networks, which keep their tanh
- distortions: rotations and shifts, drawn anew for each image and epoch; the paper uses shifts, scaling, squeezing \
and shearing
- tangent distance: computed only to the nearest images in Euclidean distance
- choices: made on the validation split, never on the test split"""


def _on_attempts(measured: Measured, table: Mapping[str, Row]) -> str:
    """Return what other settings of tangent distance and of the virtual machine give, and what they reproduce."""
    lines, compared = [], iter(measured.conclusions["controls"])
    for each in measured.runs:
        if each.config["method"] == "virtual":
            images, (first, second) = each.config["images"], each.config["degrees"]
            row, label = table[_VIRTUAL], f"virtual SVM, {images} images, degrees {first} and {second}"
        elif each.config["method"] == "tangent":
            row, config = table[_TANGENT], each.config
            label = (
                f"tangent distance, centre of {config['centre']}, images blurred by {config['blur']:g} pixels and "
                f"derivatives by {config['smoothing']:g}, {config['num_candidates']} candidates, "
                f"{config['num_neighbours']} that vote"
            )
        else:
            continue
        (error,) = each.result["errors"].values()
        assert row.published is not None
        word = _AGAIN[replace(row, values=[error]).verdict]
        beside = f" ({probability(next(compared)['p_value'])} beside the first)" if each.config["is_control"] else ""
        lines.append(f"- {label}: {error:.2f} %{beside}, {row.published.value:g} % is {word}")
    return "\n\n".join(
        [
            "**Other settings.** Errors on the test split of tangent distance and the virtual SVM; the first of each "
            "is that of the table, which the validation split or the authors chose. Where p is 5 % or more, chance "
            "alone may have made two settings differ. An image of tangent distance has the digit's centre of mass in "
            "its middle, and a few digits lose an end of a stroke; or the centre of its box, and none does:",
            "\n".join(lines),
        ]
    )


_VIRTUAL, _TANGENT = "virtual SVM poly 9, distortions", "tangent distance, 16x16"
_AGAIN = {verdict.REPRODUCED: "reproduced", verdict.WORSE: "not reached", verdict.BETTER: "surpassed"}


def _short(number: int) -> str:
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1000:,.0f} k" if number < 10_000_000 else f"{number / 1e6:,.0f} M"
