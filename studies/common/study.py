"""The definition of a study: the parts that every study has, and those that a study may leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mnist_pipe.params.schema import Section
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run
from studies.common.published import Published
from studies.common.table import Row

Params = TypeVar("Params", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that a study is shown from: its runs, its conclusions and the published numbers."""

    runs: Sequence[Run]
    conclusions: Mapping[str, Any]
    """What `Study.conclude` returned."""
    published: Published


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Params]):
    """One study: the fields from `params` to `conclude` compute it, `question` and the following ones show it."""

    params: type[Params]
    """Type of the study's section of `studies/params.yaml`."""
    plan: Callable[[Params], list[Config]] | None = None
    """Function that returns the configurations that depend on no result, or None."""
    plan_from_results: Callable[[Params, Sequence[Run]], list[Config]] | None = None
    """Function that returns the configurations that depend on the runs of `plan`, or None."""
    run: Callable[[Config, Splits], Result]
    """Function that computes one configuration; it must be a function of a module, since Ray's workers import it."""
    on_gpu: Callable[[Config], bool] = lambda _: False
    """Function that returns whether `run` computes a configuration on a GPU if there is one."""
    conclude: Callable[[Sequence[Run], Splits], dict[str, Any]] | None = None
    """Function that computes what only the runs together show, as JSON values that `runs.json` keeps, or None."""
    question: str
    """The question that the study answers, as a sentence."""
    answer: Callable[[Measured, Sequence[Row]], str]
    """Function that returns the answer in two sentences, given what `rows` returned."""
    rows: Callable[[Measured], list[Row]]
    """Function that returns the rows of the study's table."""
    draw: Callable[[Path, Measured], Mapping[str, str]]
    """Function that draws the figures into a folder and returns an alternative text for each file name."""
    render_findings: Callable[[Measured, Sequence[Row]], str]
    """Function that returns the text of the study's section of `studies/README.md`, given what `rows` returned."""
