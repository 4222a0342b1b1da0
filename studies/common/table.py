"""The table of a study: what was published, what was measured here, and whether ours reproduces what was published."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mnist_pipe.evaluation import markdown
from studies.common import verdict
from studies.common.published import PublishedResult

LOWER_IS_BETTER = ("error", "loss", "rmse", "mae")
"""Last words of the metrics of which a lower value is better."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one system."""

    system: str
    variant: str
    metric: str
    """Name of the metric, as in `published.csv`; lower is better if its last word is in `LOWER_IS_BETTER`."""
    values: list[float]
    """Measured values, one per seed, in `unit`."""
    unit: str
    published: PublishedResult | None
    note: str = ""
    """What a reader must know of the row; `deterministic` if the method draws nothing and so has only one value."""
    not_comparable: str = ""
    """Why ours is knowingly another setting than the published one, or an empty string if it is not."""

    @property
    def mean(self) -> float:
        """Mean of the values over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, or None if there is one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the published number, or None if there is none."""
        return None if self.published is None else self.mean - self.published.value

    @property
    def is_error(self) -> bool:
        """Whether a lower value is better."""
        return self.metric.rpartition("_")[2] in LOWER_IS_BETTER

    @property
    def verdict(self) -> str:
        """One of the words of `verdict`, or an empty string if nothing was published to compare with."""
        if self.published is None:
            return ""
        if self.not_comparable:
            return verdict.NOT_COMPARABLE
        return verdict.of_number(
            self.values,
            published=self.published.value,
            decimals=self.published.decimals,
            lower_is_better=self.is_error,
        )

    def shown(self) -> str:
        """Return the mean and the standard deviation as text."""
        spread = f" ± {self._format(self.deviation)}" if self.deviation is not None else ""
        return f"{self._format(self.mean)}{spread}"

    def _format(self, value: float) -> str:
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.4f}"


COLUMNS = ("system", "variant", "measured", "published", "ours", "n", "difference", "verdict", "note")


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the README's table, in the order of `COLUMNS`."""
    setting = row.published.setting if row.published else ""
    name = row.metric.replace("_", " ")
    return (
        row.system,
        row.variant,
        f"{name}, {setting}" if setting.startswith("epoch") else name,
        ""
        if row.published is None
        else f"{row.published.value:.{row.published.decimals}f}{' %' if row.unit == '%' else ''}",
        row.shown(),
        str(len(row.values)),
        "" if row.difference is None else f"{row.difference:+.2f}" if row.unit == "%" else f"{row.difference:+.4f}",
        row.verdict,
        "; ".join(filter(None, (row.not_comparable, row.note))),
    )


def without_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown, without the columns in which no row has an entry."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return markdown.table([header[column] for column in used], [[row[column] for column in used] for row in rows])


def listed(parts: Sequence[str]) -> str:
    """Return the parts, of which there is at least one, as `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(words: Sequence[str]) -> str:
    """Return how often a claim got each verdict, as in `holds in 2 and is contradicted in 1 of 3`."""
    verbs = {verdict.HOLDS: "holds", verdict.CONTRADICTED: "is contradicted", verdict.UNDECIDED: "is not decided"}
    parts = [f"{verb} in {words.count(word)}" for word, verb in verbs.items() if word in words]
    return f"{listed(parts)} of {len(words)}"


def probability(p_value: float) -> str:
    """Return a p-value as text, such as `p = 0.012` or `p < 0.0001`, on the side of the significance level it is on."""
    if p_value < 0.0001:
        return "p < 0.0001"
    texts = (f"{p_value:.{digits}g}" for digits in range(2, 18))
    level = verdict.SIGNIFICANCE
    return f"p = {next(text for text in texts if (float(text) < level) == (p_value < level))}"


def csv(rows: Sequence[Row]) -> bytes:
    """Return the table as CSV, with numbers to six significant digits and the values of each seed."""
    table = pd.DataFrame(
        {
            "system": row.system,
            "variant": row.variant,
            "metric": row.metric,
            "unit": row.unit,
            "published": row.published and row.published.value,
            "mean": row.mean,
            "deviation": row.deviation,
            "num_seeds": len(row.values),
            "values": " ".join(f"{value:g}" for value in row.values),
            "difference": row.difference,
            "verdict": row.verdict,
            "not_comparable": row.not_comparable,
            "note": row.note,
            "reference": row.published.reference if row.published else "",
        }
        for row in rows
    )
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n", float_format="%.6g")
    return text.getvalue().encode()
