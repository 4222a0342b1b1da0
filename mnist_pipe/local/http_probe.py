"""One HTTP GET that asks whether a server is there. It never raises, and it ends within 3 seconds."""

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


def get(url: str, *, authorization: str = "", use_proxy: bool = True) -> Reply:
    """What the server replies. A redirect is not followed, because another server must not get the credentials.

    The user's proxy is used unless the server is on loopback or `use_proxy` is false.
    """
    import httpx  # 0.1 s, as much as a whole `mnist-pipe status` that has nothing to ask

    def ask() -> Reply:
        try:
            reply = httpx.get(
                url,
                headers={"Authorization": authorization} if authorization else {},
                timeout=SECONDS,
                trust_env=use_proxy and urlsplit(url).hostname != LOOPBACK,
                verify=url.startswith("https:"),  # else the certificates are loaded for nothing: 60 ms
            )
            return Reply(reply.status_code, f"{reply.status_code} {reply.reason_phrase}".strip(), reply.content)
        except httpx.TimeoutException:
            return _SILENCE
        except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError):  # whose text would show the header
            return Reply(0, "an address or credentials that HTTP does not allow")
        except (httpx.HTTPError, OSError) as error:
            cause = _root_cause(error)
            text = one_line(getattr(cause, "strerror", None) or cause).lower()
            return Reply(0, text or type(cause).__name__)

    return within_seconds(ask) or _SILENCE


def get_json(url: str, *, authorization: str = "") -> Any:
    """The JSON that the server replies; None where it refuses or replies something else."""
    reply = get(url, authorization=authorization)
    try:
        return json.loads(reply.body) if reply.is_success else None
    except ValueError:
        return None


def within_seconds(ask: Callable[[], T]) -> T | None:
    """What `ask` returns within 3 seconds, or None. In a thread: looking up a name has no time-out of its own."""
    replies: list[T] = []
    asking = threading.Thread(target=lambda: replies.append(ask()), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return replies[0] if replies else None


def basic(credentials: str) -> str:
    """The Authorization header of `user:password`."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def bearer(token: str) -> str:
    """The Authorization header of a token."""
    return f"Bearer {token}"


def _root_cause(error: BaseException) -> BaseException:
    """The operating system's own error, below those of httpx and httpcore."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


@dataclass(frozen=True)
class Reply:
    """A server's reply, or why there was none."""

    status: int
    """The HTTP status; 0 where the server did not reply."""
    reason: str
    """The status line, for instance `401 Unauthorized`, or why there was no reply."""
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


_SILENCE = Reply(0, f"no reply within {SECONDS:.0f} seconds")
