"""The results that the literature reports, from `studies/published.csv`: one row each, with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnist_pipe import paths
from mnist_pipe.errors import InputError, closest

_COLUMNS = ["source", "system", "variant", "metric", "value", "unit", "setting", "reference"]


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A published number, with its unit and its source."""

    value: float
    unit: str
    setting: str
    """Further details of the number, such as the epoch after which it was measured."""
    reference: str
    """Where the number was published."""
    decimals: int
    """Number of decimals with which the number was published."""


class Published:
    """The published numbers of all studies."""

    def __init__(self, path: Path = paths.PUBLISHED) -> None:
        """Read the published numbers from `path`.

        Raises:
            InputError: the file is missing or has other columns.
        """
        self._path = path
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise InputError.invalid(path, "the file", "be a readable table", got=str(error).splitlines()[0]) from None
        if list(table.columns) != _COLUMNS:
            rule, got = f"have the columns {', '.join(_COLUMNS)}", ", ".join(table.columns)
            raise InputError.invalid(path, "the table", rule, got=got)
        self._rows = table

    def find(self, system: str, variant: str, metric: str, *, setting: str | None = None) -> PublishedResult:
        """Return the published number of a system, variant and metric; `setting` distinguishes rows that share these.

        Raises:
            InputError: no row matches, several do, or the value is not a number.
        """
        rows = self._rows
        wanted = {"system": system, "variant": variant, "metric": metric}
        if setting is not None:
            wanted["setting"] = setting
        for column, name in wanted.items():
            known = set(rows[column])
            rows = rows[rows[column] == name]
            if rows.empty:
                rule = f"have a row for {', '.join(wanted.values())}"
                fix = closest(name, known) or "add the row with its source"
                raise InputError.invalid(self._path, column, rule, got=f"none with {column} {name!r}", fix=fix)
        if len(rows) > 1:
            rule = f"distinguish the rows of {', '.join(wanted.values())}"
            raise InputError.invalid(self._path, "setting", rule, got=f"{len(rows)} rows")
        row = rows.iloc[0]
        try:
            value = float(row["value"])
        except ValueError:
            where = f"{self._path}:{rows.index[0] + 2}"
            raise InputError.invalid(where, "value", "be a number", got=repr(row["value"])) from None
        decimals = len(row["value"].partition(".")[2])
        details = {column: row[column] for column in ("unit", "setting", "reference")}
        return PublishedResult(value=value, decimals=decimals, **details)
