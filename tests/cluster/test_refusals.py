"""Test that what cannot work is refused with one line, within seconds."""

from __future__ import annotations

import time

import pytest

from tests.cluster.bed import Bed, wait_for
from tests.cluster.project import Project, use_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 30.0
"""Maximum seconds until a refusal; the start of a stage on the cluster takes about 10 of them."""


@pytest.fixture
def ready(checkout: Project) -> Project:
    use_recipe(checkout, train__seed=2)
    return checkout


def refusal(project: Project, *, env: dict[str, str] | None = None, code: int = 3) -> str:
    """Return the last line that a refused training prints, without the output of the remote run."""
    started = time.monotonic()
    done = project.run("python", "-m", "pipelines", "train", env=env)
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < SECONDS
    line = done.stderr.strip().splitlines()[-1]
    print(line)
    return line


def test_more_workers_than_cpus_of_the_cluster_are_refused(ready: Project) -> None:
    use_recipe(ready, train__num_workers=99)
    assert "params.yaml: train.num_workers must be at most 2, the number of CPUs of the cluster, but got 99" in refusal(
        ready, code=2
    )


def test_a_cluster_without_nodes_is_reported(bed: Bed, ready: Project) -> None:
    for node in ("node1", "node2"):
        bed.crash(node)
    wait_for(lambda: list(bed.ray_nodes().values()).count("ALIVE") == 1, "the nodes to be missed")
    try:
        assert refusal(ready).startswith("the cluster: no node with CPUs has joined Ray")
    finally:
        for node in ("node1", "node2"):
            bed.deploy(node)


def test_a_work_pool_without_a_worker_is_reported(bed: Bed, ready: Project) -> None:
    line = refusal(ready, env={"MNIST_PIPE_WORK_POOL": "nobody"})
    assert line.endswith("the work pool nobody does not exist; start deploy/worker on the head")
    bed.prefect("work_pools/", body={"name": "idle", "type": "process"})
    line = refusal(ready, env={"MNIST_PIPE_WORK_POOL": "idle"})
    assert line == ("MNIST_PIPE_WORK_POOL: no worker of idle is online; start deploy/worker on the head")


def test_a_wrong_prefect_password_is_reported(ready: Project) -> None:
    line = refusal(ready, env={"PREFECT_API_AUTH_STRING": "mnist:wrong"})
    assert "the credentials were refused; set PREFECT_API_AUTH_STRING" in line


def test_an_unreachable_prefect_server_is_reported(ready: Project) -> None:
    line = refusal(ready, env={"PREFECT_API_URL": "http://10.77.0.99:4200/api"})
    assert line == (
        "PREFECT_API_URL: http://10.77.0.99:4200/api does not answer: no reply; start that server or unset the variable"
    )


def test_a_missing_bucket_is_reported(ready: Project) -> None:
    line = refusal(ready, env={"MNIST_PIPE_STORAGE": "s3://no-such-bucket/a"})
    assert line == ("MNIST_PIPE_STORAGE: the bucket s3://no-such-bucket/a does not exist; create the bucket")


def test_a_missing_storage_variable_is_reported(ready: Project) -> None:
    assert refusal(ready, env={"MNIST_PIPE_STORAGE": ""}).startswith(
        "MNIST_PIPE_STORAGE is not set, but MNIST_PIPE_WORK_POOL needs it"
    )
