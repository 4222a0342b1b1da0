"""Test `deploy/serve`: the champion on the cluster's Ray, whatever becomes of the terminal that started it."""

from __future__ import annotations

import json

import pytest

from tests.cluster.bed import Bed, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.mark.usefixtures("rebuilt")
def test_the_champion_is_served_from_a_node_until_it_is_stopped(bed: Bed) -> None:
    url, images = f"http://{bed.addresses['head']}:8000", {"images": [[[0] * 28] * 28]}
    named = ("--model", "mnist-classifier@champion")  # other tests may have registered other data sets' champions
    started = bed.script("serve", *named, timeout=240)
    assert started.returncode == 0, started.stderr
    try:
        bearer = {"Authorization": f"Bearer {bed.secrets['MNIST_PIPE_SERVE_TOKEN']}"}
        status, text = bed.fetch(f"{url}/predict", headers=bearer, body=images)
        assert status == 200, text
        reply = json.loads(text)
        assert reply["model"]["name"] == "mnist-classifier"
        assert sum(reply["predictions"][0]["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert bed.fetch(f"{url}/predict", body=images)[0] == 401
        assert bed.secrets["MNIST_PIPE_SERVE_TOKEN"] not in started.stdout + started.stderr
        assert bed.script("serve", *named, timeout=240).returncode == 0  # with the same settings nothing is replaced
        assert bed.fetch(f"{url}/healthz")[0] == 200
    finally:
        stopped = bed.script("serve", "--stop", timeout=120)
    assert stopped.returncode == 0, stopped.stderr
    wait_for(lambda: not _answers(bed, f"{url}/healthz"), "the endpoint to stop", timeout=30)


def _answers(bed: Bed, url: str) -> bool:
    try:
        return bed.fetch(url)[0] == 200
    except OSError:
        return False
