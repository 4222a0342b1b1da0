"""The three gates that decide on the validation split whether a candidate becomes the champion.

The functions have no side effects. The test split is only reported and decides nothing, so no gate uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.evaluation.metrics import calibration_bins
from mnist_pipe.evaluation.predictions import Predictions
from mnist_pipe.evaluation.significance import PairedComparison, mcnemar
from mnist_pipe.params.schema import RegisterParams

_DRAWS = 200
_NUM_BINS = 15  # as in Guo et al. 2017; a gate must not depend on the number of bins of a plot


def judge(
    candidate: Predictions, *, content_sha256: str, champion: Champion | None, params: RegisterParams
) -> list[Gate]:
    """Return the results of the three gates: against the baseline, on calibration, and against the champion.

    Args:
        candidate: the candidate's predictions on the validation split.
        content_sha256: the digest of the candidate's weights and model card.
        champion: the current champion, or None.
        params: the limits of the gates.
    """
    return [
        beats_baseline(candidate, max_p_value=params.max_p_value_against_baseline),
        is_calibrated(candidate, max_error=params.max_calibration_error),
        beats_champion(
            candidate,
            content_sha256=content_sha256,
            champion=champion,
            max_p_value=params.max_p_value_against_champion,
        ),
    ]


def beats_baseline(candidate: Predictions, *, max_p_value: float) -> Gate:
    """Compare the candidate with the baseline on the same rows, by a one-sided exact McNemar test.

    If the baseline is wrong on so few rows that no candidate could pass, one that is right on all rows passes: that is
    the most that these rows can show.
    """
    comparison = mcnemar(candidate.correct, candidate.baseline_correct, alternative="greater")
    gate = _paired_gate(
        "baseline",
        comparison,
        rule=f"better than the baseline on the validation split (one-sided exact McNemar, p < {max_p_value:g})",
        scope=f"Of {len(candidate.label)} rows",
        other="the baseline",
        max_p_value=max_p_value,
    )
    num_rows, num_errors = len(candidate.label), int((~candidate.baseline_correct).sum())
    if num_errors >= errors_needed(max_p_value):
        return gate
    passed = bool(candidate.correct.all())
    doubt = too_few_errors("the baseline", num_errors, num_rows=num_rows, max_p_value=max_p_value)
    verdict = "right on all rows, the most that they can show" if passed else "not right on all rows"
    return replace(gate, passed=passed, text=f"{gate.text} But {doubt}; the candidate is {verdict}.")


def errors_needed(max_p_value: float) -> int:
    """Return on how many rows a model must be wrong for another one to be shown as better than it."""
    return math.floor(-math.log2(max_p_value)) + 1


def too_few_errors(who: str, num_errors: int, *, num_rows: int, max_p_value: float) -> str:
    """Return that no model can be shown as better than one with so few errors, and how many rows would do."""
    needed = errors_needed(max_p_value)
    enough = f", which about {math.ceil(num_rows * needed / num_errors):,} rows would have" if num_errors else ""
    return (
        f"{who} is wrong on {num_errors} of {num_rows:,} rows, and no test can decide with less than {needed}{enough}"
    )


def is_calibrated(candidate: Predictions, *, max_error: float) -> Gate:
    """Check that every probability is finite and that the expected calibration error is at most `max_error`.

    On few rows the limit is what a calibrated model exceeds by chance once in twenty times, if that is more.
    """
    rule = f"every probability finite, expected calibration error at most {max_error:g} ({_NUM_BINS} bins)"
    num_rows = len(candidate.label)
    finite = np.isfinite(candidate.probability) & np.isfinite(candidate.true_probability)
    if not finite.all():
        wrong = int((~finite).sum())
        return Gate(
            name="calibration",
            rule=rule,
            passed=False,
            figures={"rows": num_rows, "rows_not_finite": wrong},
            text=f"{wrong} of {num_rows} rows have a probability that is not finite.",
        )
    error = calibration_bins(candidate.probability, candidate.correct, num_bins=_NUM_BINS).error
    chance = _error_by_chance(candidate.probability) if error > max_error else 0.0
    passed = error <= max(max_error, chance)
    limit = f"{max_error:g}"
    if chance > max_error:
        limit = f"the {chance:.4f} that a calibrated model reaches by chance on so few rows"
    return Gate(
        name="calibration",
        rule=rule,
        passed=passed,
        figures={"rows": num_rows, "rows_not_finite": 0, "calibration_error": error},
        text=f"All {num_rows} probabilities are finite, and the expected calibration error {error:.4f} is "
        f"{'within' if passed else 'above'} {limit}.",
    )


def _error_by_chance(probability: NDArray[np.float32]) -> float:
    """Return the calibration error that a calibrated model with these probabilities exceeds once in twenty times."""
    random = np.random.default_rng(0)
    errors = [
        calibration_bins(probability, random.random(len(probability)) < probability, num_bins=_NUM_BINS).error
        for _ in range(_DRAWS)
    ]
    return float(np.quantile(errors, 0.95))


def beats_champion(
    candidate: Predictions, *, content_sha256: str, champion: Champion | None, max_p_value: float
) -> Gate:
    """Compare the candidate with the champion by a one-sided exact McNemar test on the rows that both held out.

    Both are of one data set: `registration` refuses a champion with other classes or another shape. The gate passes if
    there is no champion, if the candidate is the champion, or if the champion was made from other source data. In the
    last case no fair comparison is possible: the champion may have trained on some of these rows. Then the other gates
    decide, because a user who changes the data wants a model of the new data, and the alias `previous` keeps the old
    one.
    """
    rule = f"better than the champion on the rows that both held out (one-sided exact McNemar, p < {max_p_value:g})"

    def passes(text: str) -> Gate:
        return Gate(name="champion", rule=rule, passed=True, figures={}, text=text)

    if champion is None:
        return passes("There is no champion yet.")
    if champion.content_sha256 == content_sha256:
        return passes(f"The candidate is the champion, version {champion.version}.")
    source, other_source = (p.provenance.get("source_sha256") for p in (candidate, champion.predictions))
    if source is None or source != other_source:
        return passes(
            f"The champion, version {champion.version}, was made from other source data and cannot be compared row "
            "by row; the other gates decide."
        )
    # Both indices number the rows of the same raw split, so an equal number is the same image.
    _, ours, theirs = np.intersect1d(candidate.index, champion.predictions.index, return_indices=True)
    comparison = mcnemar(candidate.correct[ours], champion.predictions.correct[theirs], alternative="greater")
    gate = _paired_gate(
        "champion",
        comparison,
        rule=rule,
        scope=f"Of {len(ours)} rows that both held out",
        other=f"the champion, version {champion.version},",
        max_p_value=max_p_value,
    )
    num_errors = int((~champion.predictions.correct[theirs]).sum())
    if len(ours) and num_errors < errors_needed(max_p_value):
        doubt = too_few_errors("the champion", num_errors, num_rows=len(ours), max_p_value=max_p_value)
        return replace(gate, text=f"{gate.text} But {doubt}; it stays until there are more images.")
    return gate


def reason(gates: list[Gate], *, promoted: bool, is_champion: bool, experiment: str | None = None) -> str:
    """Return the reason for the decision of the gates, in one or more sentences.

    `experiment` names the DVC experiment that made the candidate, if it must not move the alias.
    """
    failed = [gate for gate in gates if not gate.passed]
    refusals = " ".join(f"The {gate.name} gate failed: {gate.text}" for gate in failed)
    if promoted:
        return "Every gate passed, so the candidate is the new champion."
    if is_champion:
        return "The candidate is the champion already, so nothing changes." + (f" {refusals}" if refusals else "")
    if experiment and not failed:
        return (
            "Every gate passed, but an experiment outside the workspace moves no alias. To make it the champion: "
            f"dvc exp apply {experiment}, then dvc repro."
        )
    return refusals


def _paired_gate(
    name: str, comparison: PairedComparison, *, rule: str, scope: str, other: str, max_p_value: float
) -> Gate:
    passed = comparison.p_value < max_p_value
    return Gate(
        name=name,
        rule=rule,
        passed=passed,
        figures={
            "rows": comparison.both_right + comparison.only_first + comparison.only_second + comparison.both_wrong,
            "only_candidate_right": comparison.only_first,
            "only_other_right": comparison.only_second,
            "p_value": comparison.p_value,
        },
        text=f"{scope}, {comparison.only_first} are right with the candidate alone and {comparison.only_second} with "
        f"{other} alone: p = {comparison.p_value:.2g} is {'below' if passed else 'not below'} {max_p_value:g}.",
    )


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The champion that the candidate is compared with."""

    version: int
    content_sha256: str
    """The digest of its weights and model card."""
    predictions: Predictions
    """The predictions on its own validation split."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The result of one gate, as it is recorded."""

    name: str
    """The name of the gate: baseline, calibration or champion."""
    rule: str
    """The condition for passing, as a phrase."""
    passed: bool
    figures: dict[str, float]
    """The numbers behind the decision, by name; empty if the gate passed without a comparison."""
    text: str
    """The outcome, as one sentence."""
