"""The table of a study: what was published, what was measured here, and whether ours reaches the published number."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mnist_pipe.evaluation import markdown
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
        """Whether the mean is as good as the published number, or as near as its decimals or the seeds can resolve."""
        if self.published is None or self.difference is None:
            return "not published"
        behind = self.difference if self.is_error else -self.difference
        if behind <= 0:
            return "reached"
        if behind <= 0.5 * 10**-self.published.decimals:
            return "reached, as rounded"
        if self.deviation is not None and behind <= 2 * self.deviation:
            return "within two deviations"
        return f"missed by {self._format(behind)}"

    def shown(self) -> str:
        """Return the mean and the standard deviation as text."""
        spread = f" ± {self._format(self.deviation)}" if self.deviation is not None else ""
        return f"{self._format(self.mean)}{spread}"

    def _format(self, value: float) -> str:
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.4f}"


COLUMNS = ("system", "variant", "measured", "published", "ours", "difference", "verdict", "note")


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the README's table, in the order of `COLUMNS`."""
    setting = row.published.setting if row.published else ""
    name = row.metric.replace("_", " ")
    return (
        row.system,
        row.variant,
        f"{name}, {setting}" if setting.startswith("epoch") else name,
        "" if row.published is None else f"{row.published.value:g}{' %' if row.unit == '%' else ''}",
        row.shown(),
        "" if row.difference is None else f"{row.difference:+.2f}" if row.unit == "%" else f"{row.difference:+.4f}",
        row.verdict,
        row.note,
    )


def without_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown, without the columns in which no row has an entry."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return markdown.table([header[column] for column in used], [[row[column] for column in used] for row in rows])


def listed(parts: Sequence[str]) -> str:
    """Return the parts, of which there is at least one, as `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


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
            "note": row.note,
            "reference": row.published.reference if row.published else "",
        }
        for row in rows
    )
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n", float_format="%.6g")
    return text.getvalue().encode()
