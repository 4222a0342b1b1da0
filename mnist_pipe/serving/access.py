"""Who may call the endpoint, and how often."""

from __future__ import annotations

import hashlib
import hmac
import socket
import time
from collections.abc import Callable

from mnist_pipe.errors import InputError
from mnist_pipe.params.loader import LOOPBACK
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.waiting import within

VARIABLE = "MNIST_PIPE_SERVE_TOKEN"
"""Environment variable with the token; without it the token is in `.state/secrets/serve`."""
_LOOKUP_SECONDS = 3.0


def check_options(params: ServeParams) -> None:
    """Check what `--host` and `--port` may have changed, before Ray is imported, which takes seconds.

    Raises:
        InputError: the port is no port, the host has no address, or one that other machines reach needs no token.
    """
    if not 1 <= params.port <= 65_535:
        raise InputError.invalid("--port", "the port", "be from 1 to 65535", got=params.port)
    if not params.require_token and params.host not in LOOPBACK:
        rule = f"be {' or '.join(LOOPBACK)} while serve.require_token is false"
        raise InputError.invalid("--host", "the address", rule, got=params.host)
    try:
        within(_LOOKUP_SECONDS, lambda: socket.getaddrinfo(params.host, params.port))
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        raise InputError.invalid("--host", "the host", "have an address", got=params.host) from error


def digest(token: str) -> str:
    """Return the SHA-256 of a token, which a replica compares with, so that Ray never stores the token itself."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_authorized(header: str, *, token_sha256: str) -> bool:
    """Return whether an HTTP Authorization header carries the token with this digest, in constant time.

    Args:
        header: the value of the header, `Bearer TOKEN`.
        token_sha256: the digest; an empty one admits every request.
    """
    scheme, _, token = header.partition(" ")
    is_equal = hmac.compare_digest(digest(token.strip()), token_sha256)
    return not token_sha256 or (is_equal and scheme.lower() == "bearer")


class RateLimit:
    """A token bucket: it admits `per_second` requests a second, and as many at once after a second without any."""

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_second, clock
        self._room, self._at = per_second, clock()

    def admits(self) -> bool:
        """Return whether a request that arrives now is admitted, and count it if so."""
        now = self._clock()
        self._room = min(self._rate, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True
