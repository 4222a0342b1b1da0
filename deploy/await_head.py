"""Wait until the Ray head answers those who have its token: `python await_head.py ADDRESS`, with RAY_AUTH_TOKEN.

So machines may start in any order, and a wrong token is one line at once: Ray tries it for half a minute.
"""

from __future__ import annotations

import os
import sys
import time

from mnist_pipe.local import http_probe

PATIENCE_SECONDS = 60.0  # a head needs 10 to start, 20 on a busy machine
DASHBOARD_PORT = 8265


def main() -> int:
    """0 when it answers, 2 when it refuses the token, 3 when it is silent; then with one line that says so."""
    url = f"http://{sys.argv[1]}:{DASHBOARD_PORT}"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        reply = http_probe.get(
            f"{url}/api/jobs/", authorization=http_probe.bearer(os.environ["RAY_AUTH_TOKEN"]), use_proxy=False
        )
        if reply.is_success:
            return 0
        if reply.status in (401, 403):
            print(f"{url}: RAY_AUTH_TOKEN must be the head's, but got another; correct it", file=sys.stderr)
            return 2
        time.sleep(0.5)
    fix = "start deploy/head there, or correct MNIST_PIPE_HEAD"
    print(f"{url}: the Ray head must answer within {PATIENCE_SECONDS:.0f} s, but got silence; {fix}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
