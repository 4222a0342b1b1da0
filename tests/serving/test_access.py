"""Test who may call the endpoint, and how often."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from mnist_pipe.serving.access import VARIABLE, RateLimit, digest, is_authorized


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer  secret ", True),
        ("Bearer Secret", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer ", False),
        ("", False),
    ],
)
def test_only_the_bearer_of_the_token_is_admitted(header: str, allowed: bool) -> None:
    assert is_authorized(header, token_sha256=digest("secret")) == allowed


def test_without_a_token_everyone_is_admitted() -> None:
    assert is_authorized("", token_sha256="")


def test_the_rate_over_any_ten_seconds_is_the_limit() -> None:
    now = 0.0
    limit = RateLimit(5, clock=lambda: now)
    admitted = []
    for step in range(1000):
        now = step / 100
        if limit.admits():
            admitted.append(now)
    assert len(admitted) == pytest.approx(5 * 10 + 5, abs=1)  # and those of one idle second
    steady = [at for at in admitted if at > 2]
    assert max(late - early for early, late in itertools.pairwise(steady)) == pytest.approx(0.2, abs=0.011)


def test_an_idle_minute_admits_no_more_than_an_idle_second() -> None:
    now = 0.0
    limit = RateLimit(5, clock=lambda: now)
    now = 60.0
    assert [limit.admits() for _ in range(7)] == [True] * 5 + [False] * 2


@pytest.mark.ray
def test_a_ray_service_without_a_token_is_refused() -> None:
    code = "from mnist_pipe.serving import deployment; deployment.build({})"
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert f"{VARIABLE} is not set; set it to a secret, which requests then carry" in done.stderr
