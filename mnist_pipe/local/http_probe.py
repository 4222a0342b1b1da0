"""An HTTP GET that checks whether a server answers. It never raises, and it ends within 3 seconds."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mnist_pipe.errors import one_line

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
SECONDS = 3.0
"""Time-out of a probe, in seconds."""


def get(url: str, *, authorization: str = "", use_proxy: bool = True) -> Reply:
    """Send a GET request and return the reply, or the reason why there was none.

    A redirect is not followed, because another server must not get the credentials. The user's proxy is used unless the
    server is on loopback or `use_proxy` is false.
    """
    import httpx  # takes 0.1 s, as long as a whole `mnist-pipe status` without services to probe

    def request() -> Reply:
        try:
            reply = httpx.get(
                url,
                headers={"Authorization": authorization} if authorization else {},
                timeout=SECONDS,
                trust_env=use_proxy and urlsplit(url).hostname != LOOPBACK,
                verify=url.startswith("https:"),  # loading unneeded certificates would take 60 ms
            )
            return Reply(reply.status_code, f"{reply.status_code} {reply.reason_phrase}".strip(), reply.content)
        except httpx.TimeoutException:
            return _SILENCE
        except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError):  # their text would show the header
            return Reply(0, "an address or credentials that HTTP does not allow")
        except (httpx.HTTPError, OSError) as error:
            cause = _root_cause(error)
            text = one_line(getattr(cause, "strerror", None) or cause).lower()
            return Reply(0, text or type(cause).__name__)

    return within_seconds(request) or _SILENCE


def get_json(url: str, *, authorization: str = "") -> Any:
    """Return the JSON that the server replies, or None if the request fails or the reply is not JSON."""
    reply = get(url, authorization=authorization)
    try:
        return json.loads(reply.body) if reply.is_success else None
    except ValueError:
        return None


def within_seconds(probe: Callable[[], T]) -> T | None:
    """Return the result of `probe`, or None if it takes more than 3 seconds.

    `probe` runs in a thread, because a DNS lookup has no time-out of its own.
    """
    replies: list[T] = []
    thread = threading.Thread(target=lambda: replies.append(probe()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return replies[0] if replies else None


def basic(credentials: str) -> str:
    """Return the HTTP Authorization header for the credentials `user:password`."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def bearer(token: str) -> str:
    """Return the HTTP Authorization header for a token."""
    return f"Bearer {token}"


def _root_cause(error: BaseException) -> BaseException:
    """Return the innermost cause: the operating system's error that httpx and httpcore wrap."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


@dataclass(frozen=True)
class Reply:
    """A server's reply, or why there was none."""

    status: int
    """HTTP status code; 0 if the server did not reply."""
    reason: str
    """Status line, for instance `401 Unauthorized`, or why there was no reply."""
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


_SILENCE = Reply(0, f"no reply within {SECONDS:.0f} seconds")
