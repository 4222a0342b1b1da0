"""The findings of `frontier`: what did not help, what was chosen, and how near it comes to the published records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_pipe.evaluation.report import format_count as count
from studies.common import verdict
from studies.common.study import Measured
from studies.common.table import Row, listed, probability, without_empty
from studies.frontier.results import (
    RECORDS,
    SELECTED,
    accuracies,
    earlier,
    errors,
    interval,
    is_selected,
    longer,
    ours,
    selected_error,
)
from studies.frontier.runs import NEARBY_ROWS, control_of, multiply_adds, of_phase


def rows(measured: Measured) -> list[Row]:
    """Return rows for our systems, and for each record beside the system of ours that is most like it."""
    found = ours(measured)
    own = [
        Row(system=system, variant=variant, metric="test_error", values=values, unit="%", published=None)
        for system, variant, values in found.values()
    ]
    records = []
    for record in RECORDS:
        published = measured.published.find(record.system, record.variant, "test_error")
        system, variant, values = found[record.ours]
        notes = [f"theirs: {published.setting}", f"ours: {system}, {variant}"]
        if record.selected:
            error = selected_error(measured.conclusions, record.selected)
            notes.append(f"selected on the test split, ours would be {error:.2f} %")
        records.append(
            Row(
                system=record.system,
                variant=record.variant,
                metric="test_error",
                values=values,
                unit="%",
                published=published,
                note="; ".join(notes),
                not_comparable="another system",
            )
        )
    return own + records


def render_answer(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the answer in two sentences."""
    (_, _, single), (_, _, chosen) = (ours(measured)[key] for key in ("single", "chosen"))
    record = min(row.published.value for row in rows if row.published)
    honest = min(row.published.value for row in rows if row.published and not is_selected(row))
    return (
        f"One network misreads {_shown(single)} of the test images, an average of "
        f"{len(measured.conclusions['choice']['members'])} networks of different kinds {_shown(chosen)}. The lowest "
        f"published error is {record:g} %, and {honest:g} % among the records that do not say that they were chosen on "
        "the test split."
    )


def render_findings(measured: Measured, rows: Sequence[Row]) -> str:
    """Return the text: what helped and what did not, the choice, networks, averages, records, and what stays wrong."""
    return "\n\n".join(
        [
            _on_what_helped(measured),
            _on_more_epochs(measured),
            _on_copies(measured.conclusions),
            _on_the_choice(measured),
            _on_the_average(measured.conclusions["choice"]),
            _on_one_network(measured),
            _on_averages(measured),
            _on_the_records(measured, rows),
            _on_the_mistakes(measured.conclusions),
        ]
    )


def _on_what_helped(measured: Measured) -> str:
    """Return which changes were measurably better, and which were not."""
    gain, p_value = longer(earlier())
    words = {"more epochs": verdict.of_claim(gain, p_value=p_value)}
    for key, what in _CHANGES.items():
        claim = measured.conclusions["claims"][key]
        words[what] = verdict.of_claim(statistics.fmean(claim["gains"]), p_value=claim["p_value"])
    lines = [
        f"- {label}: {listed(found) if found else 'none'}"
        for label, found in (
            ("helped measurably", [what for what, word in words.items() if word == verdict.HOLDS]),
            ("did not", [what for what, word in words.items() if word != verdict.HOLDS]),
        )
    ]
    return "\n\n".join(["**What helped.** Each of these was expected to be better:", "\n".join(lines)])


def _on_more_epochs(measured: Measured) -> str:
    before, control = earlier(), control_of(measured.runs)
    gain, p_value = longer(before)
    lines = []
    for one in before:
        low, high = interval(errors([one["average_of_all"]])[0], num_rows=one["num_rows"])
        lines.append(
            [
                str(one["num_epochs"]),
                str(len(one["accuracies"])),
                _shown(errors(one["accuracies"])),
                f"{errors([one['average_of_all']])[0]:.2f} % ({low:.2f} to {high:.2f})",
                f"{one['date']}, `{one['commit']}`",
            ]
        )
    header = ["epochs", "networks", "error of one network", "error of their average", "measured"]
    return "\n\n".join(
        [
            f"**More epochs.** Earlier versions of this study trained the network {control} alone, "
            f"for {listed([str(one['num_epochs']) for one in before])} epochs. That the longest training is better "
            f"than the shortest {_word(gain, p_value)} ({gain:+.3f} points of accuracy, {probability(p_value)}, "
            "Welch's test).",
            without_empty(header, lines),
        ]
    )


def _on_copies(conclusions: Mapping[str, Any]) -> str:
    shared = conclusions["shared"]
    return "\n\n".join(
        [
            f"**Copies.** Two networks that differ only in their seed have {100 * shared['copies']:.0f} % of their "
            f"mistakes in common, networks of two kinds {100 * shared['kinds']:.0f} %; an average corrects only what "
            "its members do not have in common.",
            "\n".join(_claim(conclusions, key) for key in ("copies of the control", "copies of the chosen kind")),
        ]
    )


def _on_the_choice(measured: Measured) -> str:
    chosen, found = measured.conclusions["choice"], of_phase(measured.runs, "choice")
    nearby = measured.conclusions["nearby"]
    lines = []
    for one in sorted(found, key=lambda one: float(one.result["brier"])):
        kind, result = one.config["kind"], one.result
        against = chosen["against_control"].get(kind)
        lines.append(
            [
                kind,
                count(result["num_parameters"]),
                f"{multiply_adds(one.config) / 1e6:.1f} M",
                f"{errors([result['train_accuracy']])[0]:.2f} %",
                f"{errors([result['accuracy']])[0]:.2f} %",
                f"{result['brier']:.5f}",
                f"{result['temperature']:.2f}",
                f"{against['gains'][0]:+.2f}" if against else "",
                probability(against["p_value"]).removeprefix("p ").removeprefix("= ") if against else "",
                _word(against["gains"][0], against["p_value"]) if against else "the control",
            ]
        )
    header = [
        "kind",
        "parameters",
        "multiply-adds",
        "training error",
        "error",
        "Brier score",
        "temperature",
        "gain",
        "p",
        "that it is better",
    ]
    config = found[0].config
    return "\n\n".join(
        [
            f"**Choice.** {len(found)} kinds of network were trained for {config['num_epochs']} epochs, one network "
            f"each, without the last {count(chosen['num_rows'])} training rows, and judged on these. The test split "
            "chose nothing. The last rows and not random ones, because the published order keeps a writer's digits "
            f"together, and the test digits are of other writers: of an image's nearest neighbours of the same digit, "
            f"{100 * nearby['found']:.1f} % are at most {NEARBY_ROWS} rows away, and by chance "
            f"{100 * nearby['chance']:.1f} % would be.",
            without_empty(header, lines),
            "*Training error* is that on the distorted images in the last epoch. The *Brier score*, at the temperature "
            "that makes the likelihood highest, decides: it tells kinds apart that have as many mistakes, and a wrong "
            "label counts no more than a mistake. *Gain* is in points of accuracy over the control, with McNemar's "
            "test on the same rows.",
            *_on_snapshots(measured),
        ]
    )


def _on_snapshots(measured: Measured) -> list[str]:
    """Return a paragraph for each kind with several snapshots."""
    return [
        f"The kind {one.config['kind']} averages {one.config['cycles']} snapshots: its error is "
        f"{errors([one.result['accuracy']])[0]:.2f} %, that of the last snapshot alone "
        f"{errors([one.result['last_accuracy']])[0]:.2f} %."
        for one in of_phase(measured.runs, "choice")
        if one.config["cycles"] > 1
    ]


def _on_the_average(chosen: Mapping[str, Any]) -> str:
    lines = [
        [how, f"{errors([chosen['accuracies'][how]])[0]:.2f} %", f"{chosen['scores'][how]:.5f}"]
        for how in chosen["scores"]
    ]
    return "\n\n".join(
        [
            f"**Ensemble.** The best single kind is {chosen['single']}. Kinds were added to it as long as the score "
            f"of the average fell: {listed(chosen['members'])}. Of four ways to average these on the held-out rows, "
            f"that of the {chosen['average']} has the lowest score; a scaled one divides each network's "
            "log-probabilities by its temperature first.",
            without_empty(["average of", "error", "Brier score"], lines),
        ]
    )


def _on_one_network(measured: Measured) -> str:
    done, conclusions = measured.runs, measured.conclusions
    control, single = control_of(done), conclusions["choice"]["single"]
    kinds = sorted(
        dict.fromkeys(one.config["kind"] for one in of_phase(done, "final")),  # of equals, the first planned
        key=lambda kind: statistics.fmean(errors(accuracies(done, kind))),
    )
    lines = [
        [
            kind,
            str(len(accuracies(done, kind))),
            _shown(errors(accuracies(done, kind))),
            f"{min(errors(accuracies(done, kind))):.2f} % to {max(errors(accuracies(done, kind))):.2f} %",
            _shown(errors(accuracies(done, kind, "one_look_accuracy"))),
        ]
        for kind in kinds
    ]
    best = conclusions["selected"]["single"]
    mean = statistics.fmean(errors(accuracies(done, single)))
    return "\n\n".join(
        [
            f"**One network.** Trained on all 60,000 rows, a network of the chosen kind misreads "
            f"{_shown(errors(accuracies(done, single)))} of the test images, the control "
            f"{_shown(errors(accuracies(done, control)))}.",
            without_empty(["kind", "n", "test error", "lowest to highest", "with one look at each image"], lines),
            _claim(conclusions, "chosen kind"),
            f"To report the best of these {best['of']} networks, {selected_error(conclusions, 'single'):.2f} %, would "
            f"understate the error by {mean - selected_error(conclusions, 'single'):.2f} points.",
        ]
    )


def _on_averages(measured: Measured) -> str:
    conclusions = measured.conclusions
    results = [
        f"- {system}, {variant}: {_shown(values)}{_images(values, conclusions['num_rows'])}"
        for key, (system, variant, values) in ours(measured).items()
        if key in ("control copies", "single copies", "chosen", "all")
    ]
    return "\n\n".join(
        [
            "**Averages.** On the test images, with the 95 % interval for the images as a sample of digits:",
            "\n".join(results),
            "\n".join(_claim(conclusions, key) for key in ("chosen ensemble", "diversity")),
        ]
    )


def _images(values: Sequence[float], num_rows: int) -> str:
    low, high = interval(statistics.fmean(values), num_rows=num_rows)
    return f" ({low:.2f} to {high:.2f})"


def _on_the_records(measured: Measured, rows: Sequence[Row]) -> str:
    conclusions = measured.conclusions
    records = [(row, row.published) for row in rows if row.published is not None]
    _, _, whole = ours(measured)["all"]
    low, high = interval(whole[0], num_rows=conclusions["num_rows"])
    inside = [f"- {row.system}, {row.variant}" for row, record in records if low <= record.value <= high]
    chosen = [f"- {row.system}, {row.variant}: {record.setting}" for row, record in records if is_selected(row)]
    corrected = [
        f"- {what}: {selected_error(conclusions, key):.2f} %, the best of {count(conclusions['selected'][key]['of'])}"
        for key, what in SELECTED.items()
        if conclusions["selected"][key]["of"]
    ]
    return "\n\n".join(
        [
            "**Records.** They are other systems and so not comparable one to one. These were, by their own account, "
            "chosen on the test split:",
            "\n".join(chosen),
            "What is chosen so looks better than it is. Selected on the test split, ours would be:",
            "\n".join(corrected),
            f"{count(conclusions['num_rows'])} images cannot distinguish the average of all our networks from the "
            f"records in its interval, {low:.2f} to {high:.2f} %{':' if inside else '; there is none.'}",
            *(["\n".join(inside)] if inside else []),
        ]
    )


def _on_the_mistakes(conclusions: Mapping[str, Any]) -> str:
    mistakes = conclusions["mistakes"]
    pairs = Counter((mistake["label"], mistake["prediction"]) for mistake in mistakes).most_common(3)
    text = (
        f"**Mistakes.** The average of all misreads {len(mistakes)} images. On {conclusions['wrong_of_all']} test "
        "images no network is right."
    )
    if not pairs:
        return text
    return "\n\n".join(
        [
            f"{text} The most frequent mistakes, label → prediction:",
            "\n".join(f"- {label} → {prediction}: {count}" for (label, prediction), count in pairs),
            "The last figure shows all of them, with label, prediction and its probability.",
        ]
    )


_CHANGES = {
    "copies of the control": "averaging copies of the control",
    "chosen kind": "the chosen kind",
    "copies of the chosen kind": "averaging copies of the chosen kind",
    "chosen ensemble": "averaging several kinds",
    "diversity": "several kinds instead of copies",
}
_CLAIMS = {
    "copies of the control": "the average of all copies of the control is better than one of them",
    "copies of the chosen kind": "the average of all copies of the chosen kind is better than one of them",
    "chosen kind": "one network of the chosen kind is better than one of the control",
    "chosen ensemble": "the chosen ensemble is better than one network of the chosen kind",
    "diversity": "an average of networks of the first chosen kinds is better than one of as many copies of the best",
}


def _claim(conclusions: Mapping[str, Any], key: str) -> str:
    """Return a claim with its verdict, as an item of a list."""
    found = conclusions["claims"][key]
    gain = statistics.fmean(found["gains"])
    return (
        f"- That {_CLAIMS[key]} {_word(gain, found['p_value'])}: {gain:+.3f} points of accuracy, "
        f"{probability(found['p_value'])}."
    )


def _word(gain: float, p_value: float) -> str:
    word = verdict.of_claim(gain, p_value=p_value)
    return word if word == verdict.HOLDS else f"is {word}"


def _shown(values: Sequence[float]) -> str:
    """Return the mean of errors in %, with their sample standard deviation if there are several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread} %" if spread else f"{values[0]:.2f} %"
