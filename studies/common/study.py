"""What a study is: the parts that all of them have, and those that a study may leave out."""

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
    """What a study is shown from."""

    runs: Sequence[Run]
    conclusions: Mapping[str, Any]
    """What `Study.conclude` returned."""
    published: Published


class Tune(Protocol[SearchedParams]):
    """A hyper-parameter search before the runs; returns its trials as runs.

    `storage` and `name` are those of the study's run, so that an interrupted search goes on; `say` logs a line.
    """

    def __call__(
        self,
        params: SearchedParams,
        splits: Splits,
        *,
        available: Cluster,
        storage: Storage,
        name: str,
        say: Callable[[str], None],
    ) -> list[Run]: ...


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Params]):
    """One study: `params` to `conclude` compute it, `title` and what follows show it."""

    params: type[Params]
    """Its section of `studies/params.yaml`."""
    tune: Tune[Params] | None = None
    plan: Callable[[Params], list[Config]] | None = None
    """The configurations that depend on no result."""
    plan_from_results: Callable[[Params, Sequence[Run]], list[Config]] | None = None
    """The configurations that depend on the runs of `tune` and `plan`."""
    run: Callable[[Config, Splits], Result]
    """Computes one configuration; a function of a module, since Ray's workers import it."""
    conclude: Callable[[Sequence[Run], Splits], dict[str, Any]] | None = None
    """What the runs say together and not one by one: JSON values that `runs.json` keeps."""
    title: str
    rows: Callable[[Measured], list[Row]]
    """The table."""
    draw: Callable[[Path, Measured], list[str]]
    """Draws the figures into a folder and returns their names."""
    render_findings: Callable[[Measured, Sequence[Row]], str]
    """The text of the study's section of `studies/README.md`, given its `rows`."""
