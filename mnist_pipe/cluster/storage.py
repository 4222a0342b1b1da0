"""The shared storage of a cluster: a directory that all nodes mount, or a bucket of S3, Google or Azure.

`MNIST_PIPE_STORAGE` names it; if it is unset, everything stays under `.state/`. Credentials come from the environment
alone (the usual AWS_* variables; AWS_ENDPOINT_URL for S3-compatible stores; where Google's and Azure's libraries look)
and are in no value of this module, so that they reach no log, no flow run's parameters and no pickle.

    objects/<sha256>       inputs and outputs of remote runs, each content once
    runs/<run>/            the request of a remote run, and its outputs
    ray/<run>/             Ray's checkpoints and the curves of Ray Tune
    trials/<run>/<n>.json  the finished trials of a search, from which it resumes
    optuna/journal.log     the trials of all searches, for optuna-dashboard
    studies/<run>/         the finished runs of a study, from which it resumes
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyarrow import fs

from mnist_pipe import paths
from mnist_pipe.atomic import atomic_file, sha256
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError, one_line, public_url, without_credentials
from mnist_pipe.waiting import LIMIT_SECONDS, announced

VARIABLE = "MNIST_PIPE_STORAGE"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_BUCKET, _PREFIX = r"([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])", r"((?:/[A-Za-z0-9._=-]+)*)/?"
_S3 = re.compile(rf"s3://{_BUCKET}{_PREFIX}")
_CLOUD = re.compile(rf"(?:gs://{_BUCKET}|abfss://{_BUCKET}@[a-z0-9]{{3,24}}\.dfs\.core\.windows\.net){_PREFIX}")
_GOOGLE_SECONDS = 90  # of retries, as S3's are
_S3_ATTEMPTS = 12  # about 90 s with the standard back-off, so that a run survives a storage outage of 30 s
_S3_SECONDS = 10.0  # of silence, for each attempt
_CHECK_SECONDS = 5.0
_CLOUD_CHECK = """
import sys
from pyarrow import fs
uri, key, missing = sys.argv[1:]
try:
    filesystem, root = fs.FileSystem.from_uri(uri)
    if filesystem.get_file_info(root.partition("/")[0]).type != fs.FileType.Directory:
        sys.exit(int(missing))
    if key:
        with filesystem.open_output_stream(f"{root}/{key}") as stream:
            stream.write(b"x")
        filesystem.delete_file(f"{root}/{key}")
except OSError as error:
    sys.exit(str(error))
"""
_MISSING = 4  # its exit code if there is no such bucket
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A folder of a file system; every `key` is a path below it, separated by slashes."""

    uri: str
    """The address as the user wrote it."""
    filesystem: fs.FileSystem
    root: str
    """The path of the folder in `filesystem`."""

    def path(self, key: str) -> str:
        """Return the path of `key` in `filesystem`."""
        return f"{self.root}/{key}"

    def local(self, key: str) -> Path | None:
        """Return the file of `key`, or None if the storage is a bucket."""
        return None if "://" in self.uri else Path(self.path(key))

    def check(self, *, write: bool = True) -> None:
        """Check within seconds, with few retries, that the storage is reachable and, with `write`, writable.

        Raises:
            UnavailableError: the bucket, directory or host does not exist, or permission is denied.
        """
        if _CLOUD.fullmatch(self.uri):
            with announced(f"{self.uri}, the storage of {VARIABLE}"):
                _check_cloud(self.uri, write=write)
            return
        place = self.root.split("/")[0] if _is_s3(self.uri) else self.root
        filesystem = _S3FileSystem(attempts=1, seconds=_CHECK_SECONDS) if _is_s3(self.uri) else self.filesystem
        kind = "bucket" if _is_s3(self.uri) else "directory"
        with announced(f"{self.uri}{_at_endpoint(self.uri)}, the storage of {VARIABLE}"):
            with _reporting(self.uri):
                found = filesystem.get_file_info(place)
            if found.type != fs.FileType.Directory:
                raise UnavailableError.missing(f"the {kind} {self.uri}", where=VARIABLE, fix=f"create the {kind}")
            if write:
                key = f"check-{uuid.uuid4().hex}"
                replace(self, filesystem=filesystem).write(key, b"x")
                with _reporting(self.uri):
                    filesystem.delete_file(self.path(key))

    def write(self, key: str, content: bytes) -> None:
        """Write `content` to `key`, whole or not at all."""
        with _reporting(self.uri), self._writing(key) as stream:
            stream.write(content)

    def read(self, key: str) -> bytes | None:
        """Return the content of `key`, or None if there is none."""
        try:
            with _reporting(self.uri), self.filesystem.open_input_stream(self.path(key)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_json(self, key: str, value: Any) -> None:
        """Write `value` to `key` as JSON, whole or not at all."""
        self.write(key, json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode())

    def read_json(self, key: str) -> Any:
        """Return the JSON value of `key`, or None if there is none."""
        content = self.read(key)
        return None if content is None else json.loads(content)

    def names(self, key: str) -> list[str]:
        """Return the sorted names of the files and folders in the folder `key`, none if it does not exist.

        What a writer has not finished, or had not when it was killed, has no name.
        """
        with _reporting(self.uri):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path(key), allow_not_found=True))
        return sorted(info.base_name for info in found if not _is_temporary(info.base_name))

    def put(self, path: Path) -> str:
        """Store the file under its SHA-256, unless it is stored already, and return the SHA-256."""
        digest = sha256(path)
        key = f"objects/{digest}"
        with _reporting(self.uri):
            if self.filesystem.get_file_info(self.path(key)).size != path.stat().st_size:
                with self._writing(key) as target, path.open("rb") as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
        return digest

    def get(self, digest: str, path: Path) -> None:
        """Write the object with the SHA-256 `digest` to `path`, whole or not at all.

        Raises:
            CorruptDataError: the object does not exist, or had other bytes and was deleted, so that it is stored anew.
            UnavailableError: the storage does not answer.
        """
        key, found = f"objects/{digest}", hashlib.sha256()
        with atomic_file(path) as temporary:
            try:
                with (
                    _reporting(self.uri),
                    self.filesystem.open_input_stream(self.path(key)) as source,
                    temporary.open("wb") as target,
                ):
                    while chunk := source.read(_CHUNK_BYTES):
                        found.update(chunk)
                        target.write(chunk)
            except FileNotFoundError:
                raise CorruptDataError.missing("the object", where=f"{self.uri}/{key}") from None
            if found.hexdigest() != digest:
                with _reporting(self.uri), suppress(FileNotFoundError):
                    self.filesystem.delete_file(self.path(key))
                got, fix = found.hexdigest()[:12], "run: dvc repro; the damaged object was deleted and is stored again"
                raise CorruptDataError.invalid(f"{self.uri}/{key}", "sha256", f"be {digest[:12]}", got=got, fix=fix)

    def fetch(self, key: str, folder: Path) -> None:
        """Copy the files of the folder `key`, which must not contain folders, into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.names(key):
            (folder / name).write_bytes(self.read(f"{key}/{name}") or b"")

    def remove(self, key: str) -> None:
        """Delete the folder `key` and its content, if it exists."""
        with _reporting(self.uri):
            if self.filesystem.get_file_info(fs.FileSelector(self.path(key), allow_not_found=True)):
                self.filesystem.delete_dir(self.path(key))

    @contextmanager
    def _writing(self, key: str) -> Iterator[Any]:
        """Yield a stream whose content becomes `key` when complete: a bucket does so, a folder needs a rename."""
        path = self.path(key)
        if self.local(key) is None:
            with self.filesystem.open_output_stream(path) as stream:
                yield stream
            return
        folder, _, name = path.rpartition("/")
        self.filesystem.create_dir(folder)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"  # what a kill leaves, `atomic.remove_leftovers` finds
        try:
            with self.filesystem.open_output_stream(temporary) as stream:
                yield stream
            self.filesystem.move(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def project_storage(root: Path) -> Storage:
    """Return the storage that MNIST_PIPE_STORAGE names; if it is unset, `.state/` under the project's root.

    Raises:
        InputError: the variable holds neither the address of a bucket nor an absolute directory.
    """
    uri = os.environ.get(VARIABLE) or str((root / paths.STATE).resolve())
    return open_uri(uri)


def open_uri(uri: str) -> Storage:
    """Return the storage at the address of a bucket or an absolute directory, without connecting to it.

    A bucket is `s3://bucket[/prefix]`, `gs://bucket[/prefix]` or
    `abfss://container@account.dfs.core.windows.net[/prefix]`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage = open_uri(folder)
    ...     storage.write_json("runs/train-abc/request.json", {"stage": "train"})
    ...     storage.read_json("runs/train-abc/request.json"), storage.names("runs"), storage.read("runs/none")
    ({'stage': 'train'}, ['train-abc'], None)

    Raises:
        InputError: `uri` has none of these forms.
    """
    if match := _S3.fullmatch(uri):
        bucket, prefix = match.groups()
        return Storage(uri=uri.rstrip("/"), filesystem=_connect(_S3_ATTEMPTS), root=bucket + prefix)
    if _CLOUD.fullmatch(uri):
        filesystem, root = fs.FileSystem.from_uri(_bounded(uri, seconds=_GOOGLE_SECONDS))
        return Storage(uri=uri.rstrip("/"), filesystem=filesystem, root=root.rstrip("/"))
    if not Path(uri).is_absolute():
        rule = (
            "be s3://bucket/prefix, gs://bucket/prefix or abfss://container@account.dfs.core.windows.net/prefix, "
            "without credentials, or an absolute directory"
        )
        fix = "put credentials into the environment, as AWS_ACCESS_KEY_ID"
        raise InputError.invalid(VARIABLE, "the address", rule, got=repr(without_credentials(uri)), fix=fix)
    folder = str(Path(uri))
    return Storage(uri=folder, filesystem=fs.LocalFileSystem(), root=folder)


@contextmanager
def hidden_credentials() -> Iterator[None]:
    """Remove the S3 credentials from the environment for the duration of the block; an open `Storage` keeps its own."""
    hidden = {name: os.environ.pop(name) for name in CREDENTIALS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class _S3FileSystem(fs.S3FileSystem):  # type: ignore[misc]
    """Arrow's S3 file system, which reconnects when it is unpickled.

    Arrow's own pickle loses the number of attempts, and does not read the credentials of the machine that unpickles it.
    """

    def __init__(self, *, attempts: int, seconds: float = _S3_SECONDS) -> None:
        self._attempts = attempts
        # Arrow would read the credentials from the environment at each request, and does not read the endpoint at all.
        super().__init__(
            **_credentials(),
            endpoint_override=_endpoint()[0] or None,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            connect_timeout=5,
            request_timeout=seconds,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _connect, (self._attempts,)


def _credentials() -> dict[str, str | None]:
    """Return the environment's credentials as arguments for Arrow; if empty, Arrow looks for others itself."""
    key, secret, token = (os.environ.get(name) for name in CREDENTIALS[:3])
    return {"access_key": key, "secret_key": secret, "session_token": token} if key and secret else {}


def _endpoint() -> tuple[str, str]:
    """Return the address of an S3-compatible store and the place that names it, or two empty strings.

    The places are those of AWS's own programs, in their order, so that `dvc push` and a stage use the same store.

    Raises:
        InputError: AWS_PROFILE names a profile that is in none of AWS's files.
    """
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(variable):
            return url, variable
    file = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    credentials = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    config, secrets = configparser.RawConfigParser(), configparser.RawConfigParser()
    try:
        config.read(file)
        secrets.read(credentials)
    except (configparser.Error, ValueError) as error:
        raise InputError.invalid(file, "AWS's files", "be INI files", got=one_line(error)) from None
    section = profile if profile == "default" else f"profile {profile}"
    if profile != "default" and not (config.has_section(section) or secrets.has_section(profile)):
        rule, fix = f"be a profile of {file} or {credentials}", "unset it or name another"
        raise InputError.invalid("AWS_PROFILE", "the profile", rule, got=repr(profile), fix=fix)
    url = config.get(section, "endpoint_url", fallback="")
    return (url, f"{file}: endpoint_url of the profile {profile!r}") if url else ("", "")


def _at_endpoint(uri: str) -> str:
    """Return ` at <endpoint> (<place>)` for a message about S3, if a setting names an endpoint."""
    url, place = _endpoint() if _is_s3(uri) else ("", "")
    return f" at {public_url(url)} ({place})" if url else ""


def _connect(attempts: int) -> fs.FileSystem:
    return _S3FileSystem(attempts=attempts)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _bounded(uri: str, *, seconds: float) -> str:
    """Return the address with a bound of Google's retries, a quarter of an hour by default; Azure's are few."""
    return f"{uri}?retry_limit_seconds={seconds:g}" if uri.startswith("gs://") else uri


def _check_cloud(uri: str, *, write: bool) -> None:
    """Check a bucket of Google or Azure in a process of its own.

    Arrow catches some exceptions of Azure's library and not those of its credentials, which end the process; and
    neither library bounds the time that the search for credentials takes.
    """
    key = f"check-{uuid.uuid4().hex}" if write else ""
    program = [sys.executable, "-I", "-c", _CLOUD_CHECK, _bounded(uri, seconds=_CHECK_SECONDS), key, str(_MISSING)]
    try:
        done = subprocess.run(program, capture_output=True, timeout=LIMIT_SECONDS - _CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError.unreachable(uri, where=VARIABLE, cause=f"no reply in {error.timeout:g} s") from None
    if done.returncode == _MISSING:
        raise UnavailableError.missing(f"the bucket {uri}", where=VARIABLE, fix="create the bucket")
    if done.returncode:
        printed = done.stderr.decode(errors="replace")
        cause = re.sub(r"(?s)^.*(?:what\(\):|with a last message of)| error_info=.*|See Azure::Core.*", "", printed)
        raise UnavailableError.unreachable(uri, where=VARIABLE, cause=one_line(cause))


@contextmanager
def _reporting(uri: str) -> Iterator[None]:
    """Raise Arrow's exceptions as an UnavailableError of one line; a missing file stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        got = re.sub(r" \(Request ID.*", "", one_line(error))
        raise UnavailableError.unreachable(f"{uri}{_at_endpoint(uri)}", where=VARIABLE, cause=got) from error
