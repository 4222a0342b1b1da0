"""Published files from mirrors, trusted for their size and SHA-256 alone.

Neither the mirror nor the connection has to be trusted, which is just as well: two of the publishers serve plain http.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mnist_pipe.atomic import atomic_file
from mnist_pipe.errors import UnavailableError, one_line, without_credentials

_MAX_REDIRECTS = 3
_SLOWEST_BYTES_PER_SECOND = 50_000
_CHUNK_BYTES = 1 << 20


class NoMirrorError(UnavailableError):
    """No mirror supplied a file; `ingest.fallback` is for this exception."""


class _MirrorError(Exception):
    """Why one mirror did not supply one file."""


class _UnreachableError(_MirrorError):
    """The next file would wait just as long for this mirror, so it is not tried again."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """What one gzip file must be."""

    num_bytes: int
    sha256: str


def fetch_published(
    target: Path,
    published: PublishedFile,
    *,
    mirrors: Sequence[str],
    unreachable: dict[str, str],
    timeout_seconds: float,
    log: Callable[[str], None],
) -> Path:
    """The path of a verified copy of the file: `target`, or where it lies in a directory.

    Args:
        target: where a download goes; the file has its name at every mirror.
        mirrors: tried in order: a directory, or an http(s) base URL.
        unreachable: mirrors that are skipped, and why. Those that do not answer are added.
        timeout_seconds: the longest silence of a server. The body may take no longer than that and its size at 50 kB/s
            together.
        log: gets a line for where the file was found and for each mirror that did not have it.

    Raises:
        NoMirrorError: no mirror supplied the file; the message names each and its cause.
        UnavailableError: the disk does not take a download.
    """
    try:
        _verify_file(target, published)
    except _MirrorError:
        pass
    else:
        log(f"{target.name}: downloaded before, in {target.parent}")
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
            log(f"{target.name}: not from {causes[-1]}")
        else:
            log(f"{target.name}: from {shown}")
            return path
    fix = "check the network, name another in ingest.mirrors or set ingest.dataset to digits"
    raise NoMirrorError.invalid(
        target.parent.name, target.name, "come from a mirror", got=", ".join(causes) or "no mirror", fix=fix
    )


def _verify_file(path: Path, published: PublishedFile) -> None:
    try:
        if not path.parent.is_dir():
            raise _UnreachableError("no such directory")
        if not path.is_file():
            raise _MirrorError("no such file")
        if path.stat().st_size != published.num_bytes:
            raise _MirrorError(f"{path.stat().st_size} bytes, not {published.num_bytes}")
        with path.open("rb") as stream:
            for _ in _verified(iter(lambda: stream.read(_CHUNK_BYTES), b""), published):
                pass
    except OSError as error:
        raise _MirrorError(error.strerror) from error


def _verified(chunks: Iterable[bytes], published: PublishedFile) -> Iterator[bytes]:
    """The chunks as they pass; raises when they are too many, and after the last one if they are not the file."""
    num_bytes, sha256 = 0, hashlib.sha256()
    for chunk in chunks:
        num_bytes += len(chunk)
        sha256.update(chunk)
        if num_bytes > published.num_bytes:
            raise _MirrorError(f"more than {published.num_bytes} bytes")
        yield chunk
    if num_bytes != published.num_bytes:
        raise _MirrorError(f"{num_bytes} bytes, not {published.num_bytes}")
    if sha256.hexdigest() != published.sha256:
        raise _MirrorError(f"sha256 {sha256.hexdigest()[:12]}, not {published.sha256[:12]}")


def _download_file(url: str, target: Path, published: PublishedFile, *, timeout_seconds: float) -> None:
    """Download `url` to `target`, whole and verified or not at all."""
    import httpx

    try:
        with atomic_file(target) as temporary:
            is_late = threading.Event()
            stream = partial(_stream_file, url, temporary, published, timeout_seconds=timeout_seconds, is_late=is_late)
            limit_seconds = timeout_seconds + published.num_bytes / _SLOWEST_BYTES_PER_SECOND
            try:
                _finish_within(limit_seconds, stream)
            except TimeoutError:
                is_late.set()
                raise _UnreachableError(f"not done in {limit_seconds:.1f} s") from None
    except httpx.TimeoutException as error:
        raise _UnreachableError(f"silent for {timeout_seconds:g} s") from error
    except httpx.ConnectError as error:
        cause = re.sub(r"^\[Errno -?\d+\] ", "", one_line(error))
        raise _UnreachableError(f"no connection: {cause}") from error
    except httpx.TooManyRedirects as error:
        raise _MirrorError(f"more than {_MAX_REDIRECTS} redirects") from error
    except httpx.InvalidURL as error:  # its text may quote a password
        raise _MirrorError("not a valid URL") from error
    except httpx.HTTPError as error:
        raise _MirrorError(one_line(error) or type(error).__name__) from error
    except OSError as error:
        rule = f"take {published.num_bytes} bytes"
        raise UnavailableError.invalid(target.parent, "the folder", rule, got=error.strerror) from error


def _finish_within(seconds: float, work: Callable[[], None]) -> None:
    """Do `work` in a thread: httpx bounds each silence of a server, but not the whole, however slowly it drips.

    Raises:
        TimeoutError: it is not done; the thread then ends with its server or with the process.
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
    thread.join(seconds)
    if not ended:
        raise TimeoutError
    if ended[0] is not None:
        raise ended[0]


def _stream_file(
    url: str, temporary: Path, published: PublishedFile, *, timeout_seconds: float, is_late: threading.Event
) -> None:
    import httpx
    from tqdm import tqdm

    def refuse_downgrade(request: httpx.Request) -> None:
        if url.startswith("https:") and request.url.scheme != "https":
            raise _MirrorError("a redirect from https to http")

    client = httpx.Client(
        # A server that unpacks or packs on the way would change the bytes that the digest is of.
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
        if announced != str(published.num_bytes):
            page = ", a web page" if response.headers.get("Content-Type", "").startswith("text/html") else ""
            raise _MirrorError(f"{announced[:20]} bytes{page}, not {published.num_bytes}")
        progress = tqdm(
            total=published.num_bytes, desc=url.rpartition("/")[2], unit="B", unit_scale=True, leave=False, disable=None
        )
        with temporary.open("wb") as stream, progress:
            for chunk in _verified(response.iter_raw(), published):
                if is_late.is_set():
                    return
                stream.write(chunk)
                progress.update(len(chunk))
