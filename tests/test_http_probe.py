"""Test the single HTTP GET that checks whether a server responds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mnist_pipe.local import http_probe
from mnist_pipe.local.http_probe import LOOPBACK
from tests.support.services import dead_server


class Handler(BaseHTTPRequestHandler):
    """Handler that accepts only `Bearer secret`, and redirects /elsewhere to a page that exists."""

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/")
        else:
            self.send_response(200 if self.headers["Authorization"] == "Bearer secret" else 401)
        self.end_headers()
        self.wfile.write(b'{"works": true}' if self.path == "/json" else b"page")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "authorization", "status", "reason"),
    [
        ("", "Bearer secret", 200, "200 OK"),
        ("", "", 401, "401 Unauthorized"),
        ("/elsewhere", "Bearer secret", 302, "302 Found"),
        ("", "Bearer hidden\n", 0, "an address or credentials that HTTP does not allow"),
        ("", "Bearer hîdden", 0, "an address or credentials that HTTP does not allow"),
        (":", "", 0, "an address or credentials that HTTP does not allow"),
    ],
)
def test_a_reply_has_the_servers_status_or_a_reason(
    server: str, path: str, authorization: str, status: int, reason: str
) -> None:
    reply = http_probe.get(server + path, authorization=authorization)
    assert (reply.status, reply.reason) == (status, reason)
    assert reply.is_success == (status == 200)


@pytest.mark.parametrize(
    ("silent", "reason"),
    [
        pytest.param(True, "no reply within 3 seconds", id="silent", marks=pytest.mark.services),
        pytest.param(False, "connection refused", id="closed"),
    ],
)
def test_an_unreachable_server_is_a_reason(silent: bool, reason: str) -> None:
    with dead_server(silent=silent) as port:
        reply = http_probe.get(f"http://{LOOPBACK}:{port}")
    assert (reply.status, reply.reason) == (0, reason)


def test_json_is_returned_only_for_a_successful_request(server: str) -> None:
    assert http_probe.get_json(f"{server}/json", authorization="Bearer secret") == {"works": True}
    assert http_probe.get_json(f"{server}/json") is None
    assert http_probe.get_json(server, authorization="Bearer secret") is None


def test_loopback_bypasses_the_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_server(silent=False) as port:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{port}")
        assert http_probe.get(server, authorization="Bearer secret").is_success
        proxied = server.replace(LOOPBACK, "127.0.0.2")
        assert http_probe.get(proxied).reason == "connection refused"
