"""The MLflow store behind the registry: SQLite under `.state/`, unless MLFLOW_TRACKING_URI names another one.

The runs of the project's own store record no path of this checkout (`paths.MLFLOW_ROOT`), so that a checkout can be
moved and a copy is on its own. Their files are beside the database, where `runs` writes them itself, because MLflow
would look for the recorded path in the current folder.
"""

from __future__ import annotations

import configparser
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mnist_pipe import paths, telemetry
from mnist_pipe.atomic import atomic_file, locked
from mnist_pipe.errors import (
    BusyError,
    CorruptDataError,
    InputError,
    PipelineError,
    UnavailableError,
    one_line,
    public_url,
)
from mnist_pipe.waiting import announced, within

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The pattern of every registered name, experiment name and file name of a model: they reach paths and queries."""
VARIABLE = "MLFLOW_TRACKING_URI"
_CREDENTIALS = Path("~/.mlflow/credentials")
_CONNECT_SECONDS = 10.0
_AWAY = f"run: mv {paths.MLFLOW_DB} {paths.MLFLOW_DB}.damaged && rm -f {paths.REGISTRATION} && dvc repro"


@contextmanager
def open_store(root: Path, *, write: bool = False) -> Iterator[MlflowClient]:
    """Yield a client of the store.

    With `write`, hold a lock against other writers, and create the project's own store if there is none. The lock of a
    SQLite store is beside its database, so that all checkouts that use the store share it. A server may have writers
    that no lock reaches; see `succession`.

    Raises:
        BusyError: another program holds the database.
        CorruptDataError: the project's own store is damaged.
        InputError: MLFLOW_REGISTRY_URI names another store than MLFLOW_TRACKING_URI.
        UnavailableError: the store does not answer or refuses the credentials.
    """
    os.environ.update(telemetry.OFF)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # errors are raised, so nothing needs to be logged
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # In seconds, for each of two attempts: MLflow's defaults are 120 s and eight attempts.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database, uri = _database(root), _tracking_uri(root)
    lock = (sqlite_file(root) or database).with_suffix(".lock")
    _check_registry_uri(uri)
    try:
        with (
            locked(lock, purpose="the registry", wait=True) if write else nullcontext(),
            announced(f"the registry, {public_uri(root)}"),
        ):
            if is_own_store(root):
                if write and not database.exists():
                    _create(database)
                _check_database(database)
            else:
                _check_connection(uri)
            yield MlflowClient(uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        # Not `from error`: the cause would show the address with its credentials in every traceback.
        raise _explained(error, root=root) from None


@contextmanager
def open_existing_store(root: Path) -> Iterator[MlflowClient | None]:
    """Yield a client for reading, or None if there is no store yet, because reading must not create one.

    Raises:
        CorruptDataError: the project's own store is damaged.
        UnavailableError: the store does not answer.
    """
    if is_own_store(root) and not _database(root).exists():
        yield None
    else:
        with open_store(root) as client:
            yield client


def prepare(root: Path) -> None:
    """Create the project's own store if there is none yet, whole or not at all.

    Raises:
        CorruptDataError: the project's own store is damaged.
        UnavailableError: the store does not answer.
    """
    with open_store(root, write=True):
        pass


def check(root: Path) -> None:
    """Check, before work starts whose result is to be recorded, that the store can be read and written.

    Raises:
        PipelineError: as `open_store` does.
    """
    if not is_own_store(root):
        with open_store(root) as client:
            client.search_experiments(max_results=1)
    elif _database(root).exists():
        _check_database(_database(root), write=True)


def credentials() -> tuple[str, str]:
    """Return the `user:password` that MLflow itself would send to a server, or an empty string, and the place of both.

    Each is in a variable or, without one, in MLflow's own file.
    """
    config = configparser.RawConfigParser()
    with suppress(configparser.Error, OSError):
        config.read(_CREDENTIALS.expanduser())
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    found = [os.environ.get(name) or config.get("mlflow", name.lower(), fallback="") for name in names]
    is_file = found[0] and not os.environ.get(names[0])
    return ":".join(found) if found[0] else "", str(_CREDENTIALS) if is_file else " and ".join(names)


def register_again(root: Path) -> str:
    """Return the remedy for a registry without the model: DVC sees a missing output, but not what a registry lost."""
    return f"run: rm {paths.REGISTRATION} && dvc repro" if (root / paths.REGISTRATION).exists() else "run: dvc repro"


def is_own_store(root: Path) -> bool:
    """Return whether the store is the project's own under `.state/`."""
    return _tracking_uri(root) == _own_uri(root)


def public_uri(root: Path) -> str:
    """Return the store's address for printing: the project's own relative to `root`, others without credentials."""
    return f"sqlite:///{paths.MLFLOW_DB}" if is_own_store(root) else public_url(_tracking_uri(root))


def sqlite_file(root: Path) -> Path | None:
    """Return the database of a SQLite store, or None if the store is a server."""
    if is_own_store(root):
        return _database(root)
    scheme, _, path = _tracking_uri(root).partition(":///")
    return Path(unquote(path.partition("?")[0])).resolve() if scheme.startswith("sqlite") and path else None


def check_name(name: str) -> None:
    """Check that `name` matches `NAME`, so that it is safe in a path or a query.

    Raises:
        InputError: it does not match.
    """
    if NAME.fullmatch(name) is None:
        raise InputError.invalid("registry", "the name", f"match {NAME.pattern}", got=repr(name))


def _database(root: Path) -> Path:
    return (root / paths.MLFLOW_DB).resolve()


def _own_uri(root: Path) -> str:
    return paths.sqlite_uri(_database(root))


def _tracking_uri(root: Path) -> str:
    return os.environ.get(VARIABLE) or _own_uri(root)


def _create(database: Path) -> None:
    """Create an empty store, whole or not at all: MLflow cannot complete a schema whose creation was interrupted."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_file(database) as temporary:
        SqlAlchemyStore(paths.sqlite_uri(temporary), paths.MLFLOW_ROOT)


def _check_registry_uri(uri: str) -> None:
    """Check that the versions are not kept apart from their runs; MLflow would take the other address silently."""
    registry = os.environ.get("MLFLOW_REGISTRY_URI", uri)
    if registry != uri:
        rule, got = f"be that of {VARIABLE}, because a version needs its run", public_url(registry)
        raise InputError.invalid("MLFLOW_REGISTRY_URI", "the address", rule, got=got, fix="unset it")


def _check_database(database: Path, *, write: bool = False) -> None:
    """Raise an error unless the file is a store; MLflow would retry for minutes, or take an empty file for a store.

    With `write`, it must be writable too.
    """
    mode = "rw" if write else "ro"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode={mode}", uri=True)) as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            if write:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise _locked(database) from error
        rule = "be readable and writable" if write else "be readable"
        fix = "give yourself access to that file and its folder"
        raise UnavailableError.invalid(database, "the registry", rule, got=str(error), fix=fix) from error
    except sqlite3.DatabaseError as error:
        raise CorruptDataError.invalid(database, "the registry", "be SQLite", got=str(error), fix=_AWAY) from error
    if tables != (1,):
        got = "another database" if database.stat().st_size else "an empty file"
        raise CorruptDataError.invalid(database, "the registry", "be a database of MLflow", got=got, fix=_AWAY)


def _check_connection(uri: str) -> None:
    """Connect once to a database that is not behind an MLflow server; MLflow itself would retry for 100 s."""
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import create_engine, make_url

    if urlsplit(uri).scheme.partition("+")[0] not in DATABASE_ENGINES:
        return
    url = make_url(uri)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").parent.is_dir():
        return  # MLflow creates the folder
    engine = create_engine(url)
    try:
        within(_CONNECT_SECONDS, lambda: engine.connect().close())
    finally:
        engine.dispose()


def _explained(error: Exception, *, root: Path) -> PipelineError:
    """Return the error for the user: who is locked, refused or unreachable, and the setting that names it."""
    got = one_line(str(error).replace(_tracking_uri(root), public_uri(root)))
    if "database is locked" in got:
        return _locked(public_uri(root))
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        fix = f"correct {_place_of_credentials(root)}"
        return UnavailableError.missing("the credentials", state="were refused", where=public_uri(root), fix=fix)
    if is_own_store(root):
        return UnavailableError.unreachable("the registry", where=public_uri(root), cause=got)
    fix = "start that server or unset the variable"
    return UnavailableError.unreachable(f"the registry {public_uri(root)}", where=VARIABLE, cause=got, fix=fix)


def _locked(where: object) -> BusyError:
    fix = "end that program or wait for it"
    return BusyError.missing("the registry", state="is locked by another program", where=where, fix=fix)


def _place_of_credentials(root: Path) -> str:
    """Return the place from which MLflow takes a server's credentials, in MLflow's order."""
    if urlsplit(_tracking_uri(root)).username:
        return f"the user and password in {VARIABLE}"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "MLFLOW_TRACKING_TOKEN"
    given, place = credentials()
    return place if given else f"{place}, which are not set"
