"""Wait until the Ray head accepts the token in RAY_AUTH_TOKEN: `python await_head.py ADDRESS`.

Nodes may therefore start in any order, and a wrong token is reported at once, in one line: Ray itself retries it for
half a minute.
"""

from __future__ import annotations

import os
import sys
import time

from mnist_pipe.local import http_probe

PATIENCE_SECONDS = 60.0  # a head needs 10 s to start, 20 s on a busy machine
DASHBOARD_PORT = 8265


def main() -> int:
    """Return 0 if the head accepts the token; else print one line and return 2 (token refused) or 3 (no answer)."""
    url = f"http://{sys.argv[1]}:{DASHBOARD_PORT}"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        reply = http_probe.get(
            f"{url}/api/jobs/", authorization=http_probe.bearer(os.environ["RAY_AUTH_TOKEN"]), use_proxy=False
        )
        if reply.is_success:
            return 0
        if reply.status in (401, 403):
            print(f"{url}: RAY_AUTH_TOKEN must be the head's token, but got another one; correct it", file=sys.stderr)
            return 2
        time.sleep(0.5)
    fix = "start deploy/head there, or correct MNIST_PIPE_HEAD"
    print(f"{url}: the Ray head does not answer: no reply within {PATIENCE_SECONDS:.0f} s; {fix}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
