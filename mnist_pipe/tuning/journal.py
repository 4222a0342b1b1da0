"""The journal: a view of all searches for optuna-dashboard, a study for each search and a trial for each of its trials.

The ledger of a running search is the truth. The journal gets each trial after the ledger, and what it lacks when the
search starts again. A study that has a trial which the ledger does not know, as of an earlier run of the same search,
is written anew. A damaged journal is put aside, and with it the studies of earlier searches, which are still in MLflow.

The journal is one file, because optuna-dashboard opens one. In a bucket it cannot be appended to: it is copied there
at most every `_UPLOAD_SECONDS`. Of two searches that write to one bucket at the same time, the last copy stays.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from mnist_pipe import paths
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.errors import PipelineError
from mnist_pipe.params.schema import Space
from mnist_pipe.tuning.ledger import TrialRecord
from mnist_pipe.tuning.space import columns, known_to_optuna, row
from mnist_pipe.tuning.trial import METRIC

_UPLOAD_SECONDS = 30.0
_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}  # any other: FAIL
_DAMAGES = (ValueError, LookupError, TypeError, AttributeError)  # what Optuna raises on a line that is not its own


class Journal:
    """Writer of the study of one search.

    It is a view and raises nothing: if it cannot be written, the search goes on without it.
    """

    def __init__(
        self, name: str, *, storage: Storage, space: Space, recipe: Mapping[str, Any], known: Sequence[TrialRecord]
    ) -> None:
        """Prepare the study `name`; `known` are the trials that the ledger has already."""
        self._name, self._storage, self._space, self._recipe, self._known = name, storage, space, recipe, known
        self._distributions = _distributions(space, recipe)
        self._study: optuna.Study | None = None
        self._written: set[int] = set()
        self._copied = 0.0

    def __enter__(self) -> Journal:
        """Open the journal, and bring the study in line with the ledger."""
        self._folder = Path(tempfile.mkdtemp(prefix="mnist-pipe-journal-"))
        self._path = self._storage.local(paths.JOURNAL) or self._folder / "journal.log"
        try:
            if self._storage.local(paths.JOURNAL) is None:
                self._path.write_bytes(self._storage.read(paths.JOURNAL) or b"")
            self._study = self._open()
        except (OSError, PipelineError, RuntimeError, *_DAMAGES):
            return self
        for record in self._known:
            self.add(record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Copy what was written last to a bucket."""
        self._copy()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, record: TrialRecord) -> None:
        """Add a trial that has ended, unless the study has it."""
        if self._study is None or record.trial in self._written:
            return
        try:
            self._study.add_trial(self._trial(record))
        except ValueError:
            return  # a value outside the space, which only a caller's own point can have
        except (OSError, RuntimeError):
            self._study = None
            return
        self._written.add(record.trial)
        if time.monotonic() > self._copied + _UPLOAD_SECONDS:
            self._copy()

    def _open(self) -> optuna.Study:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _cut(self._path)
        try:
            storage = JournalStorage(JournalFileBackend(str(self._path)))
        except _DAMAGES:
            self._path.replace(self._path.with_suffix(".damaged"))
            storage = JournalStorage(JournalFileBackend(str(self._path)))
        known = {(record.trial, record.ended_at) for record in self._known}
        study = optuna.create_study(study_name=self._name, storage=storage, direction="maximize", load_if_exists=True)
        found = [(trial.user_attrs.get("trial"), trial.user_attrs.get("ended_at")) for trial in study.trials]
        if len(set(found)) == len(found) and known.issuperset(found):
            self._written = {int(number) for number, _ in found}
            return study
        optuna.delete_study(study_name=self._name, storage=storage)
        return optuna.create_study(study_name=self._name, storage=storage, direction="maximize")

    def _trial(self, record: TrialRecord) -> FrozenTrial:
        cells = row(record.config, space=self._space, recipe=self._recipe)
        params = {name: known_to_optuna(cells[name]) for name in self._distributions if cells[name] is not None}
        state = _STATES.get(record.status, TrialState.FAIL)
        trial = optuna.trial.create_trial(
            state=state,
            value=record.score if state is TrialState.COMPLETE else None,
            params=params,
            distributions={name: self._distributions[name] for name in params},
            intermediate_values={int(epoch["epoch"]): epoch[METRIC] for epoch in record.history},
            user_attrs={key: getattr(record, key) for key in ("trial", "status", "address", "ended_at")},
        )
        trial.datetime_start = datetime.fromtimestamp(record.ended_at - record.seconds)
        trial.datetime_complete = datetime.fromtimestamp(record.ended_at)
        return trial

    def _copy(self) -> None:
        """Copy the journal to the storage, if that is a bucket."""
        self._copied = time.monotonic()
        if self._study is not None and self._storage.local(paths.JOURNAL) is None:
            try:
                self._storage.write(paths.JOURNAL, self._path.read_bytes())
            except PipelineError:
                self._study = None


def _distributions(space: Space, recipe: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return the distribution of each column: of the learning rate one for all optimizers, as pages compare them."""
    return {
        name: CategoricalDistribution(list(map(known_to_optuna, one.domain)))
        if one.by == "choice"
        else FloatDistribution(*one.domain, log=one.by == "log")
        for name, one in columns(space, recipe=recipe).items()
    }


def _cut(path: Path) -> None:
    """Remove the incomplete line with which a kill or a full disk may have ended the file; the next would join it."""
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("r+b") as stream:
            content = stream.read()
            stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
