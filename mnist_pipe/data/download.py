"""Download of published files from mirrors, verified by size and SHA-256.

Neither the mirror nor the connection has to be trusted; two of the publishers serve plain http.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mnist_pipe.atomic import atomic_file
from mnist_pipe.errors import UnavailableError, one_line, without_credentials
from mnist_pipe.waiting import announced

_MAX_REDIRECTS = 3
_SLOWEST_BYTES_PER_SECOND = 50_000
_CHUNK_BYTES = 1 << 20
_TICK_SECONDS = 0.1
_MAX_BYTES = 1 << 30  # of a file whose size is not published


class NoMirrorError(UnavailableError):
    """Error for a file that no mirror supplied; the stage `ingest` then uses `ingest.fallback`, if it is set."""


class _MirrorError(Exception):
    """Error for one mirror that did not supply one file; its text is the cause."""


class _UnreachableError(_MirrorError):
    """Error for a mirror that is skipped for the remaining files, each of which would wait for it just as long."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """Digest, and size if it is known, that one published file must have."""

    num_bytes: int | None = None
    """Size of the file, in bytes."""
    sha256: str = ""
    """Hexadecimal SHA-256 of the file."""
    md5: str = ""
    """Hexadecimal MD5 of the file, if no SHA-256 is known."""

    @property
    def max_bytes(self) -> int:
        """Largest number of bytes to accept."""
        return _MAX_BYTES if self.num_bytes is None else self.num_bytes


def fetch_published(
    target: Path,
    published: PublishedFile,
    *,
    mirrors: Sequence[str],
    unreachable: dict[str, str],
    timeout_seconds: float,
    log: Callable[[str], None],
) -> Path:
    """Return the path of a verified copy of the file: `target`, or the file in a directory among the mirrors.

    Args:
        target: the path of a download; at every mirror the file has the same name.
        published: the size and digest that the file must have.
        mirrors: directories or http(s) base URLs, tried in order.
        unreachable: the mirrors to skip, with the cause; mirrors that do not answer are added.
        timeout_seconds: the longest silence of a server. A download may take this and, in addition, the time that the
            bytes so far take at 50 kB/s.
        log: called with one line for the place of the file and for each mirror that did not supply it.

    Raises:
        NoMirrorError: no mirror supplied the file; the message names each mirror and the cause.
        UnavailableError: a download cannot be written to the disk.
    """
    try:
        _verify_file(target, published)
    except _MirrorError:
        pass
    else:
        log(f"{target.name}: already downloaded to {target.parent}")
        return target
    causes = []
    for mirror in mirrors:
        is_url = "://" in mirror
        shown = without_credentials(mirror) if is_url else mirror
        if mirror in unreachable:
            causes.append(f"{shown} ({unreachable[mirror]})")
            continue
        path = target if is_url else Path(mirror) / target.name
        try:
            if is_url:
                url = f"{mirror.rstrip('/')}/{target.name}"
                _download_file(url, target, published, timeout_seconds=timeout_seconds)
            else:
                _verify_file(path, published)
        except _MirrorError as error:
            if isinstance(error, _UnreachableError):
                unreachable[mirror] = str(error)
            causes.append(f"{shown} ({error})")
            log(f"{target.name}: not available from {causes[-1]}")
        else:
            log(f"{target.name}: found at {shown}")
            return path
    state = f"is not available from any mirror: {', '.join(causes) or 'none is set'}"
    fix = "check the network, add a mirror to ingest.mirrors or set ingest.dataset to digits"
    raise NoMirrorError.missing(target.name, state=state, where=target.parent.name, fix=fix)


def _verify_file(path: Path, published: PublishedFile) -> None:
    try:
        if not path.parent.is_dir():
            raise _UnreachableError("no such directory")
        if not path.is_file():
            raise _MirrorError("no such file")
        if published.num_bytes not in (None, path.stat().st_size):
            raise _MirrorError(f"{path.stat().st_size} bytes, not {published.num_bytes}")
        with path.open("rb") as stream:
            for _ in _verified(iter(lambda: stream.read(_CHUNK_BYTES), b""), published):
                pass
    except OSError as error:
        raise _MirrorError(error.strerror) from error


def _verified(chunks: Iterable[bytes], published: PublishedFile) -> Iterator[bytes]:
    """Yield the chunks unchanged while checking them.

    Raises:
        _MirrorError: the chunks exceed the published size, or after the last one their size or digest differs.
    """
    kind = "sha256" if published.sha256 else "md5"
    num_bytes, digest = 0, hashlib.new(kind, usedforsecurity=False)
    for chunk in chunks:
        num_bytes += len(chunk)
        digest.update(chunk)
        if num_bytes > published.max_bytes:
            raise _MirrorError(f"more than {published.max_bytes} bytes")
        yield chunk
    if published.num_bytes not in (None, num_bytes):
        raise _MirrorError(f"{num_bytes} bytes, not {published.num_bytes}")
    expected = published.sha256 or published.md5
    if digest.hexdigest() != expected:
        raise _MirrorError(f"{kind} {digest.hexdigest()[:12]}, not {expected[:12]}")


def _download_file(url: str, target: Path, published: PublishedFile, *, timeout_seconds: float) -> None:
    """Download `url` to `target`, whole and verified or not at all."""
    import httpx

    try:
        with atomic_file(target) as temporary:
            pace = _Pace(timeout_seconds)
            stream = partial(_stream_file, url, temporary, published, timeout_seconds=timeout_seconds, pace=pace)
            try:
                with announced(f"{without_credentials(url)}, a mirror of ingest.mirrors or the publisher's"):
                    _finish_in_time(pace, stream)
            except TimeoutError as error:
                raise _UnreachableError(str(error)) from None
    except httpx.TimeoutException as error:
        raise _UnreachableError(f"no data for {timeout_seconds:g} s") from error
    except httpx.ConnectError as error:
        cause = re.sub(r"^\[Errno -?\d+\] ", "", one_line(error))
        raise _UnreachableError(f"no connection: {cause}") from error
    except httpx.TooManyRedirects as error:
        raise _MirrorError(f"more than {_MAX_REDIRECTS} redirects") from error
    except httpx.InvalidURL as error:  # the text of the exception may quote a password
        raise _MirrorError("not a valid URL") from error
    except httpx.HTTPError as error:
        raise _MirrorError(one_line(error) or type(error).__name__) from error
    except OSError as error:
        rule = f"accept a file of {published.num_bytes or 'unknown'} bytes"
        raise UnavailableError.invalid(target.parent, "the folder", rule, got=error.strerror) from error


class _Pace:
    """The time that a download may take: the silence that is allowed, and that of the bytes so far at 50 kB/s."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds, self._started = timeout_seconds, time.monotonic()
        self.num_bytes = 0
        self.is_late = False

    def check(self) -> None:
        """Raise TimeoutError if the download is too slow."""
        seconds = time.monotonic() - self._started
        self.is_late = seconds > self._timeout_seconds + self.num_bytes / _SLOWEST_BYTES_PER_SECOND
        if self.is_late:
            silent = f"no data for {self._timeout_seconds:g} s"
            raise TimeoutError(f"only {self.num_bytes} bytes in {seconds:.1f} s" if self.num_bytes else silent)


def _finish_in_time(pace: _Pace, work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait for it as long as `pace` allows; re-raise its exception.

    httpx limits each silence of a server, but not the whole download, however slowly the server sends.

    Raises:
        TimeoutError: `work` is too slow; its thread is left to end with the server's answer or the process.
    """
    ended: list[Exception | None] = []

    def attempt() -> None:
        try:
            work()
        except Exception as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=attempt, daemon=True, name="download")
    thread.start()
    while thread.is_alive():
        thread.join(_TICK_SECONDS)
        if not ended:
            pace.check()
    if ended[0] is not None:
        raise ended[0]


def _stream_file(url: str, temporary: Path, published: PublishedFile, *, timeout_seconds: float, pace: _Pace) -> None:
    import httpx
    from tqdm import tqdm

    def refuse_downgrade(request: httpx.Request) -> None:
        if url.startswith("https:") and request.url.scheme != "https":
            raise _MirrorError("a redirect from https to http")

    client = httpx.Client(
        # A content encoding applied in transit would change the bytes, and with them the digest.
        headers={"Accept-Encoding": "identity"},
        timeout=timeout_seconds,
        follow_redirects=True,
        max_redirects=_MAX_REDIRECTS,
        event_hooks={"request": [refuse_downgrade]},
    )
    with client, client.stream("GET", url) as response:
        if response.status_code != httpx.codes.OK:
            raise _MirrorError(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
        announced = response.headers.get("Content-Length", str(published.num_bytes))
        if published.num_bytes is not None and announced != str(published.num_bytes):
            page = ", a web page" if response.headers.get("Content-Type", "").startswith("text/html") else ""
            raise _MirrorError(f"{announced[:20]} bytes{page}, not {published.num_bytes}")
        progress = tqdm(
            total=published.num_bytes, desc=url.rpartition("/")[2], unit="B", unit_scale=True, leave=False, disable=None
        )
        # Not "wb": a file that was removed, because the download is late, must not appear again.
        with temporary.open("r+b") as stream, progress:
            for chunk in _verified(response.iter_raw(), published):
                if pace.is_late:
                    return
                stream.write(chunk)
                pace.num_bytes += len(chunk)
                progress.update(len(chunk))
