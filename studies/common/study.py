"""The definition of a study: the parts that every study has, and those that a study may leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mnist_pipe.params.schema import Section
from studies.common.fitting import Splits
from studies.common.ledger import Config, Result, Run
from studies.common.published import Published
from studies.common.table import Row

if TYPE_CHECKING:
    from mnist_pipe.cluster.ray_session import Cluster
    from mnist_pipe.cluster.storage import Storage

Params = TypeVar("Params", bound=Section)
SearchedParams = TypeVar("SearchedParams", bound=Section, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that a study is shown from: its runs, its conclusions and the published numbers."""

    runs: Sequence[Run]
    conclusions: Mapping[str, Any]
    """What `Study.conclude` returned."""
    published: Published


class Tune(Protocol[SearchedParams]):
    """A hyper-parameter search that precedes the runs."""

    def __call__(
        self,
        params: SearchedParams,
        splits: Splits,
        *,
        available: Cluster,
        storage: Storage,
        name: str,
        log: Callable[[str], None],
    ) -> list[Run]:
        """Search and return the trials as runs.

        `storage` and `name` are those of the study's run, so that an interrupted search resumes; `log` logs a line.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Params]):
    """One study: the fields from `params` to `conclude` compute it, `title` and the following ones show it."""

    params: type[Params]
    """Type of the study's section of `studies/params.yaml`."""
    tune: Tune[Params] | None = None
    """Search that precedes the runs, or None."""
    plan: Callable[[Params], list[Config]] | None = None
    """Function that returns the configurations that depend on no result, or None."""
    plan_from_results: Callable[[Params, Sequence[Run]], list[Config]] | None = None
    """Function that returns the configurations that depend on the runs of `tune` and `plan`, or None."""
    run: Callable[[Config, Splits], Result]
    """Function that computes one configuration; it must be a function of a module, since Ray's workers import it."""
    conclude: Callable[[Sequence[Run], Splits], dict[str, Any]] | None = None
    """Function that computes what only the runs together show, as JSON values that `runs.json` keeps, or None."""
    title: str
    rows: Callable[[Measured], list[Row]]
    """Function that returns the rows of the study's table."""
    draw: Callable[[Path, Measured], list[str]]
    """Function that draws the figures into a folder and returns their file names."""
    render_findings: Callable[[Measured, Sequence[Row]], str]
    """Function that returns the text of the study's section of `studies/README.md`, given what `rows` returned."""
