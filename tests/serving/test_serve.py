"""Test `mnist-pipe serve` on a real Ray: what it answers, whom it follows, what it survives and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest

from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.local import services
from mnist_pipe.local.services.process import free_port
from tests.support import ROOT
from tests.support.registry import NAME
from tests.support.services import clean_variables, taken, wait_until
from tests.support.serving import Endpoint, Load, damage, new_project, promote, serving

__all__ = ["clean_variables"]  # fixture

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.long]
IMAGES = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
FOLLOW_SECONDS = 10.0
"""Maximum seconds from a promotion until only the new champion answers."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Endpoint]:
    """Endpoint of a champion; tests that promote others leave it with a later version."""
    root = new_project(tmp_path_factory.mktemp("served") / "project", empty_database)
    promote(root, 1, errors=errors_of(1))
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RAY_", "MLFLOW_", "MNIST_PIPE_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        with serving(root) as found:
            yield found


def errors_of(version: int) -> int:
    """Return so few errors of a version that the gates promote it over the one before."""
    return 100 - 10 * version


def serve(root: Path, *options: str) -> tuple[int, str]:
    """Run `mnist-pipe serve` to its end, and return the exit code and what it printed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    program = [sys.executable, "-m", "pipelines.cli", "serve", *options]
    done = subprocess.run(program, cwd=root, env=env, text=True, capture_output=True, check=False, timeout=120)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_it_answers_as_the_model_does(endpoint: Endpoint) -> None:
    classifier = Classifier.load(endpoint.root / f"candidates/model-{endpoint.model()['version']}")
    np.testing.assert_allclose(endpoint.probabilities(IMAGES), classifier.probabilities(IMAGES), atol=1e-5)


def test_a_page_a_document_and_health_are_there(endpoint: Endpoint) -> None:
    assert "<canvas" in endpoint.get("/").text
    assert "POST /predict" in endpoint.get("/docs").text
    assert httpx.get(endpoint.url + "/healthz", trust_env=False).json()["status"] == "ok"
    assert httpx.post(endpoint.url + "/predict", content=bytes(784), trust_env=False).status_code == 401


def test_concurrent_requests_get_each_their_own_answer(endpoint: Endpoint) -> None:
    expected = endpoint.probabilities(IMAGES[:40])
    found: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        found[number] = endpoint.probabilities(IMAGES[number : number + 1])[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[number] for number in range(40)], expected, atol=1e-5)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb_is_refused_at_once_and_never_held_as_a_whole(endpoint: Endpoint, announced: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    [replica] = endpoint.replicas()
    before, started = replica.memory_info().rss, time.monotonic()
    try:
        reply = endpoint.predict(bytes(100_000_000) if announced else chunks())
    except httpx.WriteError:  # the server has answered and closed the connection while the client still sends
        return
    assert reply.status_code == 413
    assert re.fullmatch(r"the body: its length must be at most 8000000 bytes, but got \d+ bytes", reply.json()["error"])
    assert time.monotonic() - started < 10
    assert replica.memory_info().rss - before < 75e6  # Ray has fetched parts before the refusal


def test_what_listens_on_other_interfaces_requires_rays_token(endpoint: Endpoint) -> None:
    # Ray Serve binds the gRPC port of a replica on every interface, and no option changes that.
    open_ports = {
        connection.laddr.port
        for process in psutil.Process(endpoint.process.pid).children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    }
    assert len(open_ports) <= len(endpoint.replicas())
    for port in open_ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_metrics_are_where_ray_exposes_its_own(endpoint: Endpoint) -> None:
    before = time.monotonic()
    for _ in range(5):
        endpoint.probabilities(IMAGES[:10])
    endpoint.predict(b"x")
    found = re.search(r"^metrics +(\S+)$", endpoint.lines, re.MULTILINE)
    assert found

    def exposed() -> dict[str, float]:
        text = httpx.get(found[1], trust_env=False).text
        lines = re.findall(r"^ray_(mnist_pipe_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
        totals: dict[str, float] = {}
        for name, tags, value in lines:
            for key in {name, *(f"{name} {tag}" for tag in tags.split(","))}:
                totals[key] = totals.get(key, 0) + float(value)
        return totals

    wait_until(lambda: exposed().get('mnist_pipe_requests_total status="400"', 0) >= 1, seconds=60)
    metrics = exposed()
    assert metrics['mnist_pipe_requests_total status="200"'] >= 5
    assert metrics["mnist_pipe_predictions_total"] >= 50
    assert metrics['mnist_pipe_images_total stage="serve"'] == metrics["mnist_pipe_predictions_total"]
    assert metrics["mnist_pipe_confidence_count"] == metrics["mnist_pipe_predictions_total"]
    assert metrics["mnist_pipe_batch_images_count"] >= 5
    assert 0 < metrics["mnist_pipe_request_seconds_sum"] < 64 * (time.monotonic() - before)
    assert metrics["mnist_pipe_model_version"] >= 1
    assert [key for key in metrics if re.search(r'predictions_total name="\d"', key)]


def test_a_promotion_under_load_loses_no_request(endpoint: Endpoint) -> None:
    old = endpoint.model()["version"]
    with Load(endpoint) as load:
        time.sleep(1)
        promote(endpoint.root, old + 1, errors=errors_of(old + 1))
        promoted = time.monotonic()
        wait_until(lambda: endpoint.model()["version"] == old + 1, seconds=FOLLOW_SECONDS)
        print(f"the new champion answers {time.monotonic() - promoted:.1f} s after its promotion")
        time.sleep(1)
    assert set(load.statuses) == {200}
    assert set(load.versions) == {old, old + 1}
    wait_until(lambda: f"{NAME}/{old + 1} serves now" in endpoint.lines, seconds=20)


def test_a_damaged_champion_does_not_serve_and_the_log_says_why(endpoint: Endpoint) -> None:
    old = endpoint.model()["version"]
    promote(endpoint.root, old + 1, errors=errors_of(old + 1))
    damage(endpoint.root, version=old + 1)
    if endpoint.model()["version"] != old:
        pytest.skip("the endpoint loaded the new version before it was damaged")
    wait_until(lambda: bool(endpoint.model()["problem"]), seconds=FOLLOW_SECONDS)
    assert endpoint.model()["version"] == old
    assert re.fullmatch(rf"{NAME}/{old + 1} does not serve: .*model.safetensors.*", endpoint.model()["problem"])
    wait_until(lambda: endpoint.model()["problem"] in endpoint.lines, seconds=20)
    assert endpoint.probabilities(IMAGES[:1]).shape == (1, 10)
    promote(endpoint.root, old + 2, errors=errors_of(old + 2))
    wait_until(lambda: endpoint.model()["version"] == old + 2, seconds=FOLLOW_SECONDS)


@pytest.mark.long
def test_a_killed_replica_costs_only_its_requests_in_flight(endpoint: Endpoint) -> None:
    [replica] = endpoint.replicas()
    with Load(endpoint) as load:
        time.sleep(1)
        replica.kill()
        time.sleep(1)
        killed = sum(load.statuses.values())
        wait_until(lambda: sum(load.statuses.values()) > killed + 100, seconds=60)
    failed = {status: number for status, number in load.statuses.items() if status != 200}
    print(f"{sum(failed.values())} of {sum(load.statuses.values())} requests failed: {failed}")
    assert sum(failed.values()) <= load.clients
    [successor] = endpoint.replicas()
    assert successor.pid != replica.pid


def test_a_second_endpoint_on_its_port_is_refused(endpoint: Endpoint) -> None:
    port = endpoint.url.rpartition(":")[2]
    expected = f"127.0.0.1:{port}: the port must be free, but got address already in use; name another with --port"
    assert serve(endpoint.root, "--port", port) == (3, expected)


def test_sigterm_finishes_the_requests_in_flight_and_leaves_nothing(tmp_path: Path, empty_database: Path) -> None:
    root = new_project(tmp_path / "project", empty_database)
    promote(root, 1, errors=60)
    replies: list[int] = []
    with serving(root, "--model", f"{NAME}/1") as endpoint:
        family = psutil.Process(endpoint.process.pid).children(recursive=True)
        big = np.zeros((1000, 28, 28), np.uint8).tobytes()  # takes a while

        def ask() -> None:
            reply = endpoint.predict(big, query="?saliency=true")
            replies.append(len(reply.json()["predictions"]) if reply.status_code == 200 else reply.status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        endpoint.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert replies == [1000] * 3
        assert endpoint.process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_detached_endpoint_lives_as_long_as_its_ray(tmp_path: Path, empty_database: Path) -> None:
    root = new_project(tmp_path / "project", empty_database)
    promote(root, 1, errors=60)
    port = free_port(8300)
    url = f"http://127.0.0.1:{port}"
    services.up(root, names=["ray"])
    try:
        for _ in range(2):  # the second call updates the endpoint in place
            code, printed = serve(root, "--detach", "--port", str(port))
            assert code == 0, printed
            assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok", "model": f"{NAME}/1"}
        fix = "stop it with: mnist-pipe serve --stop"
        assert serve(root, "--port", str(port)) == (75, f"this Ray: the endpoint runs already; {fix}")
        assert serve(root, "--stop") == (0, "stopped")
        assert serve(root, "--stop") == (0, "nothing was running")
        assert serve(root, "--detach", "--port", str(port))[0] == 0
    finally:
        services.down(root)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", trust_env=False)


def test_what_cannot_be_served_is_one_line(tmp_path: Path, empty_database: Path) -> None:
    root = new_project(tmp_path / "project", empty_database)
    assert serve(root) == (3, "no champion is registered yet; run: dvc repro")
    promote(root, 1, errors=60)
    code, line = serve(root, "--model", f"{NAME}/9")
    assert (code, line.startswith("--model: the version must be registered, but got ")) == (2, True)
    assert serve(root, "--port", "70000") == (2, "--port: the port must be from 1 to 65535, but got 70000")
    assert serve(root, "--detach") == (
        3,
        "--detach: no Ray runs that outlives this command; run: mnist-pipe up",
    )
    with taken(8399):
        expected = "127.0.0.1:8399: the port must be free, but got address already in use; name another with --port"
        assert serve(root, "--port", "8399") == (3, expected)
    damage(root, version=1)
    code, line = serve(root)
    assert (code, "model.safetensors" in line, len(line.splitlines())) == (4, True, 1)
