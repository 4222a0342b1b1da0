"""Run moto's S3 as a process that can be made to fail: `python -m tests.cluster.s3 ADDRESS PORT FLAG`.

While the file FLAG exists, every request gets a 503, as from a storage under maintenance. The objects are in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

BUSY = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>Please try again.</Message></Error>"


def failing(application: WSGIApplication, flag: Path) -> WSGIApplication:
    """Wrap `application` so that it responds with 503 while the file `flag` exists."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not flag.exists():
            return application(environ, start_response)
        # Read the body first: a client that is still sending would see a broken connection instead of the response.
        remaining = int(environ.get("CONTENT_LENGTH") or 0)
        while remaining and (block := environ["wsgi.input"].read(min(remaining, 1 << 20))):
            remaining -= len(block)
        start_response("503 Service Unavailable", [("Content-Type", "text/xml"), ("Content-Length", str(len(BUSY)))])
        return [BUSY]

    return answer


def main() -> None:
    """Serve until the process is killed."""
    from moto.server import create_backend_app
    from werkzeug.serving import run_simple

    address, port, flag = sys.argv[1:]
    application = failing(create_backend_app("s3"), Path(flag))
    run_simple(address, int(port), application, threaded=True)


if __name__ == "__main__":
    main()
