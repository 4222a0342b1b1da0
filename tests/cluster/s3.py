"""moto's S3 as a process that can be told to fail: `python -m tests.cluster.s3 ADDRESS PORT FLAG`.

While the file FLAG exists every request is answered with 503, as by a storage under repair. The objects live in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

BUSY = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>Please try again.</Message></Error>"


def failing(application: WSGIApplication, flag: Path) -> WSGIApplication:
    """`application`, which answers 503 while the file `flag` exists."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not flag.exists():
            return application(environ, start_response)
        # The body is read first: a client that is still sending would see a broken connection and not the answer.
        remaining = int(environ.get("CONTENT_LENGTH") or 0)
        while remaining and (block := environ["wsgi.input"].read(min(remaining, 1 << 20))):
            remaining -= len(block)
        start_response("503 Service Unavailable", [("Content-Type", "text/xml"), ("Content-Length", str(len(BUSY)))])
        return [BUSY]

    return answer


def main() -> None:
    """Serve until killed."""
    from moto.server import create_backend_app
    from werkzeug.serving import run_simple

    address, port, flag = sys.argv[1:]
    application = failing(create_backend_app("s3"), Path(flag))
    run_simple(address, int(port), application, threaded=True)


if __name__ == "__main__":
    main()
