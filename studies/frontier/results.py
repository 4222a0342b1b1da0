"""The runs of the study arranged for its report: errors by kind of network, averages, records and earlier runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import ttest_ind

from mnist_pipe.evaluation.metrics import wilson_interval
from studies.common import verdict
from studies.common.ledger import Run
from studies.common.study import Measured
from studies.common.table import Row
from studies.frontier.runs import control_of, of_phase

_EARLIER = Path(__file__).with_name("earlier.json")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A published record, and which of our results it stands beside."""

    system: str
    variant: str
    ours: str
    """Key of `ours`."""
    selected: str = ""
    """Key of the conclusion `selected` if the record is, by its own account, the best that was seen on the test split.

    It names what was selected there, as far as ours can be selected in the same way.
    """


RECORDS = (
    Record(system="MCDNN", variant="35 networks averaged", ours="all"),
    Record(system="DropConnect", variant="networks aggregated", ours="chosen", selected="average"),
    Record(system="branching CNN with homogeneous vector capsules", variant="single network", ours="single"),
    Record(system="branching CNN with homogeneous vector capsules", variant="ensemble", ours="all"),
    Record(
        system="simple CNNs of three kernel sizes", variant="majority vote of three", ours="chosen", selected="vote"
    ),
    Record(system="simple CNNs of three kernel sizes", variant="two-layer ensemble", ours="all", selected="average"),
)
SELECTED = {
    "single": "one network",
    "vote": "a vote of three networks of different kinds",
    "average": "an average of one network of each kind of the ensemble",
}
"""What a choice on the test split chooses, by key of the conclusion `selected`."""


def ours(measured: Measured) -> dict[str, tuple[str, str, list[float]]]:
    """Return (system, variant, test errors in %) of each of our results, by key, from the simplest to the largest.

    If the chosen kind is the control, its rows are those of the control.
    """
    done, conclusions = measured.runs, measured.conclusions
    averages, control, single = conclusions["averages"], control_of(done), conclusions["choice"]["single"]
    members, size = conclusions["choice"]["members"], len(of_phase(done, "final", kind=control))

    def of_kind(kind: str, metric: str = "accuracy") -> list[float]:
        return errors(accuracies(done, kind, metric))

    found = {
        "one look": (f"one network, {control}", "one look at each image", of_kind(control, "one_look_accuracy")),
        "control": (f"one network, {control}", "five looks at each image", of_kind(control)),
        "control copies": (f"average of {size} networks", control, errors([averages["copies"][control]])),
        "single": (f"one network, {single}", "five looks at each image", of_kind(single)),
        "single copies": (f"average of {size} networks", single, errors([averages["copies"][single]])),
        "chosen": (f"average of {len(members)} networks", "one of each chosen kind", errors(averages["chosen"])),
        "all": (f"average of {size * len(members)} networks", "all of the chosen kinds", errors([averages["all"]])),
    }
    return {key: row for key, row in found.items() if single != control or not key.startswith("control")}


def accuracies(done: Sequence[Run], kind: str, metric: str = "accuracy") -> list[float]:
    """Return a metric of the final networks of a kind, by seed."""
    return [one.result[metric] for one in of_phase(done, "final", kind=kind)]


def errors(values: Sequence[float]) -> list[float]:
    """Return the error in % of each accuracy."""
    return [round(100 * (1 - value), 4) for value in values]


def interval(error: float, *, num_rows: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an error in %, for the images as a sample of digits, in %."""
    low, high = wilson_interval(round((1 - error / 100) * num_rows), num_rows=num_rows, confidence=verdict.CONFIDENCE)
    return 100 * (1 - high), 100 * (1 - low)


def selected_error(conclusions: Mapping[str, Any], key: str) -> float:
    """Return the test error in % that a choice on the test split would show."""
    return errors([conclusions["selected"][key]["accuracy"]])[0]


def earlier() -> list[dict[str, Any]]:
    """Return what the control measured with other numbers of epochs, in earlier versions of this study.

    Each entry has `commit`, `date`, `hardware`, `num_epochs`, and the test `accuracies` of twelve networks with five
    looks, and `average_of_all` on `num_rows` images; they are those of the `runs.json` of that commit.
    """
    found: list[dict[str, Any]] = json.loads(_EARLIER.read_text(encoding="utf-8"))
    return found


def longer(measurements: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return what the most epochs gain over the fewest, in points, and the p-value of Welch's test."""
    fewest, most = (pick(measurements, key=lambda one: one["num_epochs"])["accuracies"] for pick in (min, max))
    return 100 * (fmean(most) - fmean(fewest)), float(ttest_ind(most, fewest, equal_var=False).pvalue)


def is_selected(row: Row) -> bool:
    """Return whether the row's published number was, by its own account, chosen on the test split."""
    return any(record.selected for record in RECORDS if (record.system, record.variant) == (row.system, row.variant))
