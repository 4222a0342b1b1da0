"""The three gates that decide on the validation split whether a candidate becomes the champion.

The functions have no side effects. The test split is only reported and decides nothing, so no gate uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mnist_pipe.evaluation.metrics import calibration_bins
from mnist_pipe.evaluation.predictions import Predictions
from mnist_pipe.evaluation.significance import PairedComparison, mcnemar
from mnist_pipe.params.schema import RegisterParams

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
    """Compare the candidate with the baseline on the same rows, by a one-sided exact McNemar test."""
    comparison = mcnemar(candidate.correct, candidate.baseline_correct, alternative="greater")
    return _paired_gate(
        "baseline",
        comparison,
        rule=f"better than the baseline on the validation split (one-sided exact McNemar, p < {max_p_value:g})",
        scope=f"Of {len(candidate.label)} rows",
        other="the baseline",
        max_p_value=max_p_value,
    )


def is_calibrated(candidate: Predictions, *, max_error: float) -> Gate:
    """Check that every probability is finite and that the expected calibration error is at most `max_error`."""
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
    passed = error <= max_error
    return Gate(
        name="calibration",
        rule=rule,
        passed=passed,
        figures={"rows": num_rows, "rows_not_finite": 0, "calibration_error": error},
        text=f"All {num_rows} probabilities are finite, and the expected calibration error {error:.4f} is "
        f"{'within' if passed else 'above'} {max_error:g}.",
    )


def beats_champion(
    candidate: Predictions, *, content_sha256: str, champion: Champion | None, max_p_value: float
) -> Gate:
    """Compare the candidate with the champion by a one-sided exact McNemar test on the rows that both held out.

    The gate passes if there is no champion, if the candidate is the champion, or if the champion was made from other
    source data. In the last case no fair comparison is possible: the champion may have trained on some of these rows.
    Then the other gates decide, because a user who changes the data wants a model of the new data, and the alias
    `previous` keeps the old one.
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
    return _paired_gate(
        "champion",
        comparison,
        rule=rule,
        scope=f"Of {len(ours)} rows that both held out",
        other=f"the champion, version {champion.version},",
        max_p_value=max_p_value,
    )


def reason(gates: list[Gate], *, promoted: bool, is_champion: bool) -> str:
    """Return the reason for the decision of the gates, in one or more sentences."""
    failed = [gate for gate in gates if not gate.passed]
    refusals = " ".join(f"The {gate.name} gate failed: {gate.text}" for gate in failed)
    if promoted:
        return "Every gate passed, so the candidate is the new champion."
    if is_champion:
        return "The candidate is the champion already, so nothing changes." + (f" {refusals}" if refusals else "")
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
