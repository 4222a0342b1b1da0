"""S3 on this machine, with an empty bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT

SECRET = "planted-secret-key"
"""The secret key, which no message may contain."""


@contextmanager
def s3(folder: Path) -> Iterator[Path]:
    """Run a server with the bucket `bucket`, which AWS_ENDPOINT_URL names, while the block runs.

    Args:
        folder: where it writes its log.

    Yields:
        A file; while it exists, every request fails.
    """
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.cluster.s3", "127.0.0.1", str(port), str(folder / "outage")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
                patch.delenv(name, raising=False)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield folder / "outage"
    finally:
        server.kill()
        server.wait()
