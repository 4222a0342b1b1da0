"""Test the gates against counts made by hand."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest

from mnist_pipe.evaluation.predictions import Predictions
from mnist_pipe.params.schema import RegisterParams
from mnist_pipe.registry import gates

PARAMS = RegisterParams(max_p_value_against_baseline=0.01, max_p_value_against_champion=0.05, max_calibration_error=0.1)


def predictions(
    correct: list[int],
    *,
    baseline: list[int] | None = None,
    index: list[int] | None = None,
    probability: float = 0.9,
    source: str | None = "raw",
) -> Predictions:
    """Return predictions with one row per entry of `correct`: 1 is right, 0 is wrong."""
    rows = len(correct)
    label = (np.arange(rows) % 10).astype(np.uint8)

    def answers(right: list[int]) -> Any:
        return np.where(np.array(right, dtype=bool), label, (label + 1) % 10).astype(np.uint8)

    return Predictions(
        index=np.array(range(rows) if index is None else index, dtype=np.uint32),
        label=label,
        baseline_prediction=answers([0] * rows if baseline is None else baseline),
        prediction=answers(correct),
        probability=np.full(rows, probability, dtype=np.float32),
        true_probability=np.full(rows, probability, dtype=np.float32),
        provenance={"dataset": "toy", "source_sha256": source},
    )


def approx(value: float) -> Any:
    """Return a value that equals every number close to `value`."""
    return pytest.approx(value)


def champion(of: Predictions, *, content: str = "old") -> gates.Champion:
    return gates.Champion(version=3, content_sha256=content, predictions=of)


def against_champion(candidate: Predictions, opponent: gates.Champion | None, *, content: str = "new") -> gates.Gate:
    return gates.beats_champion(candidate, content_sha256=content, champion=opponent, max_p_value=0.05)


def test_the_baseline_gate_counts_the_rows_that_only_one_model_gets_right() -> None:
    # Only the candidate is right on 8 rows, only the baseline on 1, both on 1: 10 of 512 outcomes are at least as good.
    gate = gates.beats_baseline(predictions([1] * 9 + [0], baseline=[0] * 8 + [1, 1]), max_p_value=0.02)
    assert gate == gates.Gate(
        name="baseline",
        rule="better than the baseline on the validation split (one-sided exact McNemar, p < 0.02)",
        passed=True,
        figures={"rows": 10, "only_candidate_right": 8, "only_other_right": 1, "p_value": approx(10 / 512)},
        text="Of 10 rows, 8 are right with the candidate alone and 1 with the baseline alone: p = 0.02 is below 0.02.",
    )


def test_a_p_value_at_the_limit_does_not_pass() -> None:
    candidate = predictions([1, 1, 0], baseline=[0, 0, 0])  # p = 1/4
    assert not gates.beats_baseline(candidate, max_p_value=0.25).passed
    assert gates.beats_baseline(candidate, max_p_value=0.2501).passed


def test_a_candidate_as_accurate_as_the_baseline_does_not_pass() -> None:
    gate = gates.beats_baseline(predictions([1, 0, 1], baseline=[1, 0, 1]), max_p_value=0.9)
    assert not gate.passed
    assert gate.figures["p_value"] == 1


def test_a_candidate_worse_than_the_baseline_does_not_pass() -> None:
    gate = gates.beats_baseline(predictions([0] * 50, baseline=[1] * 50), max_p_value=0.01)
    assert not gate.passed
    assert gate.figures["p_value"] == 1


def test_the_calibration_gate_compares_confidence_with_accuracy() -> None:
    # Confidence 0.9 in one bin, right in 8 of 10 rows: the error is 0.1 (float32 0.9 is slightly less).
    candidate = predictions([1] * 8 + [0] * 2, probability=0.9)
    gate = gates.is_calibrated(candidate, max_error=0.1)
    assert gate == gates.Gate(
        name="calibration",
        rule="every probability finite, expected calibration error at most 0.1 (15 bins)",
        passed=True,
        figures={"rows": 10, "rows_not_finite": 0, "calibration_error": approx(0.1)},
        text="All 10 probabilities are finite, and the expected calibration error 0.1000 is within 0.1.",
    )
    gate = gates.is_calibrated(predictions([1] * 800 + [0] * 200, probability=0.9), max_error=0.05)
    assert not gate.passed
    assert gate.text == "All 1000 probabilities are finite, and the expected calibration error 0.1000 is above 0.05."


@pytest.mark.parametrize(("limit", "needed"), [(0.01, 7), (0.05, 5), (0.25, 3), (0.2501, 2), (2**-7, 8), (0.9, 1)])
def test_so_many_errors_are_needed_that_a_perfect_model_passes(limit: float, needed: int) -> None:
    assert gates.errors_needed(limit) == needed
    assert 0.5**needed < limit <= 0.5 ** (needed - 1)


def test_on_too_few_rows_a_perfect_candidate_passes_and_no_other() -> None:
    baseline = [1] * 54 + [0] * 3  # today's 57 rows, of which the baseline is wrong on 3
    doubt = (
        "But the baseline is wrong on 3 of 57 rows, and no test can decide with less than 7, which about 133 rows "
        "would "
        "have; the candidate is "
    )
    perfect = gates.beats_baseline(predictions([1] * 57, baseline=baseline), max_p_value=0.01)
    assert perfect.passed
    assert perfect.text == (
        "Of 57 rows, 3 are right with the candidate alone and 0 with the baseline alone: p = 0.12 is not below 0.01. "
        f"{doubt}right on all rows, the most that they can show."
    )
    other = gates.beats_baseline(predictions([1] * 56 + [0], baseline=baseline), max_p_value=0.01)
    assert not other.passed
    assert other.text.endswith(f"{doubt}not right on all rows.")
    assert gates.too_few_errors("the baseline", 0, num_rows=10, max_p_value=0.01) == (
        "the baseline is wrong on 0 of 10 rows, and no test can decide with less than 7"
    )


def test_a_champion_that_is_wrong_on_few_rows_stays_and_says_so() -> None:
    gate = against_champion(predictions([1] * 100), champion(predictions([1] * 98 + [0] * 2)))
    assert not gate.passed
    assert gate.text == (
        "Of 100 rows that both held out, 2 are right with the candidate alone and 0 with the champion, version 3, "
        "alone: p = 0.25 is not below 0.05. But the champion is wrong on 2 of 100 rows, and no test can decide with "
        "less than 5, which about 250 rows would have; it stays until there are more images."
    )


def test_on_few_rows_a_calibration_error_that_chance_explains_passes() -> None:
    """A calibrated model of 0.8 on 30 rows: right on 20 to 28 of them in nine cases of ten, an error of up to 0.13."""
    few = gates.is_calibrated(predictions([1] * 26 + [0] * 4, probability=0.8), max_error=0.05)
    assert few.passed
    assert few.text.startswith(
        "All 30 probabilities are finite, and the expected calibration error 0.0667 is within the "
    )
    assert few.text.endswith(" that a calibrated model reaches by chance on so few rows.")
    assert not gates.is_calibrated(predictions([1] * 15 + [0] * 15, probability=0.8), max_error=0.05).passed
    many = gates.is_calibrated(predictions([1] * 2600 + [0] * 400, probability=0.8), max_error=0.05)
    assert not many.passed
    assert many.text.endswith("0.0667 is above 0.05.")


@pytest.mark.parametrize("column", ["probability", "true_probability"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_calibration_gate_refuses_non_finite_values(column: str, value: float) -> None:
    candidate = predictions([1] * 10, probability=1.0)
    getattr(candidate, column)[[2, 5]] = value
    gate = gates.is_calibrated(candidate, max_error=1)
    assert not gate.passed
    assert gate.figures == {"rows": 10, "rows_not_finite": 2}
    assert gate.text == "2 of 10 rows have a probability that is not finite."


def test_the_first_candidate_needs_no_champion_to_beat() -> None:
    gate = against_champion(predictions([0]), None)
    assert (gate.passed, gate.figures, gate.text) == (True, {}, "There is no champion yet.")


def test_the_champion_itself_is_recognised_by_its_content() -> None:
    same = predictions([1, 1])
    gate = against_champion(same, champion(same, content="same"), content="same")
    assert (gate.passed, gate.figures, gate.text) == (True, {}, "The candidate is the champion, version 3.")


def test_the_champion_gate_joins_by_the_raw_row() -> None:
    # Rows 10..17; the champion's file has them in reverse order. Only the candidate is right on 5 rows, only the
    # champion on 1.
    right = [1, 1, 1, 1, 1, 0, 1, 1]
    theirs = [0, 0, 0, 0, 0, 1, 1, 1]
    rows = list(range(10, 18))
    reverse = predictions(theirs[::-1], index=rows[::-1])
    gate = against_champion(predictions(right, index=rows), champion(reverse))
    p_value = (comb(6, 5) + comb(6, 6)) / 2**6
    assert gate == gates.Gate(
        name="champion",
        rule="better than the champion on the rows that both held out (one-sided exact McNemar, p < 0.05)",
        passed=False,
        figures={"rows": 8, "only_candidate_right": 5, "only_other_right": 1, "p_value": approx(p_value)},
        text="Of 8 rows that both held out, 5 are right with the candidate alone and 1 with the champion, version 3, "
        "alone: p = 0.11 is not below 0.05.",
    )


def test_only_rows_that_both_models_held_out_count() -> None:
    # The candidate wins on 100 rows that the champion was trained on; of the 10 common rows the champion wins on 1.
    ours = predictions([1] * 100 + [1] * 9 + [0], index=list(range(110)))
    theirs = predictions([1] * 10 + [0] * 40, index=list(range(100, 150)))
    gate = against_champion(ours, champion(theirs))
    assert not gate.passed
    assert gate.figures == {"rows": 10, "only_candidate_right": 0, "only_other_right": 1, "p_value": 1}


def test_without_a_common_row_the_candidate_does_not_pass() -> None:
    gate = against_champion(predictions([1] * 9), champion(predictions([0] * 9, index=list(range(50, 59)))))
    assert not gate.passed
    assert gate.figures["rows"] == 0


@pytest.mark.parametrize("sources", [("raw", "other"), (None, None), ("raw", None)])
def test_a_champion_of_other_data_is_reported_and_not_compared(sources: tuple[str, str]) -> None:
    ours, theirs = (predictions([1] * 9, source=source) for source in sources)
    gate = against_champion(ours, champion(theirs))
    assert (gate.passed, gate.figures) == (True, {})
    assert gate.text == (
        "The champion, version 3, was made from other source data and cannot be compared row by row; the other gates "
        "decide."
    )


def test_judge_applies_each_gates_own_limit() -> None:
    verdicts = gates.judge(predictions([1] * 7, probability=1.0), content_sha256="new", champion=None, params=PARAMS)
    assert [(gate.name, gate.passed) for gate in verdicts] == [
        ("baseline", True),  # p = 1/128
        ("calibration", True),
        ("champion", True),
    ]
    limits = ("p < 0.01", "at most 0.1 ", "p < 0.05")
    assert all(limit in gate.rule for gate, limit in zip(verdicts, limits, strict=True))


def test_the_reason_is_one_sentence_for_each_outcome() -> None:
    good = gates.is_calibrated(predictions([1], probability=1.0), max_error=0.1)
    bad = gates.is_calibrated(predictions([0], probability=1.0), max_error=0.1)
    promoted = gates.reason([good], promoted=True, is_champion=False)
    assert promoted == "Every gate passed, so the candidate is the new champion."
    same = gates.reason([good], promoted=False, is_champion=True)
    assert same == "The candidate is the champion already, so nothing changes."
    refused = gates.reason([good, bad], promoted=False, is_champion=False)
    assert refused == (
        "The calibration gate failed: All 1 probabilities are finite, and the expected calibration error 1.0000 is "
        "above 0.1."
    )
    assert gates.reason([bad], promoted=False, is_champion=True) == f"{same} {refused}"
