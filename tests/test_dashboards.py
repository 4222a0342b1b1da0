"""Test every page of `mnist-pipe dashboards`: its start, its access control, its checks, and its view in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest

from mnist_pipe import paths
from mnist_pipe.cluster import storage
from mnist_pipe.errors import PipelineError
from mnist_pipe.local import dashboards, http_probe, services
from mnist_pipe.local.dashboards import Page
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import State, mlflow_server, optuna_dashboard, prometheus, tensorboard
from mnist_pipe.local.services.process import is_free
from tests.support.checkout import copy_tree
from tests.support.checkout import run as run_in
from tests.support.services import (
    clean_variables,
    command,
    dead_server,
    family,
    recorded,
    request,
    run,
    run_twice_at_once,
    taken,
    wait_until,
    without_notices,
)

__all__ = ["clean_variables"]  # fixture

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(600)]
NAMES = ("prefect", "ray", "tensorboard", "optuna", "mlflow", *(["prometheus"] if prometheus.program() else []))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Project in which two users requested the dashboards at once, on a machine whose default ports are occupied."""
    root = copy_tree(tmp_path_factory.mktemp("project") / "main")
    with taken(tensorboard.PORT, optuna_dashboard.PORT, mlflow_server.PORT, prometheus.PORT):
        try:
            run(root, "up")
            assert set(recorded(root)) == {"prefect", "ray"}  # and no other, which would take extra time
            run_twice_at_once(root, "dashboards")
            yield root
        finally:
            run(root, "down")


@pytest.fixture
def root(started: Path) -> Path:
    """The started project, with all services of `dashboards` running again, whatever the last test did."""
    services.up(started, names=NAMES)
    return started


def error(found: dict[str, Page | PipelineError], name: str) -> str:
    page = found[name]
    assert isinstance(page, PipelineError), page
    return str(page)


def secret(root: Path, name: str) -> str:
    return Path(recorded(root)[name].secret).read_text()


def test_each_page_is_a_line_with_its_address_and_the_file_of_its_secret(root: Path) -> None:
    found = recorded(root)
    line = "ok    {:13}  {}   {}".format
    assert run(root, "dashboards").splitlines() == [
        line("prefect", found["prefect"].url, "password: the line in .state/secrets/prefect"),
        line("ray", found["ray"].url, "token: the line in .state/secrets/ray"),
        line("tensorboard", found["tensorboard"].url, "no password: it listens on loopback only"),
        line("optuna", found["optuna"].url, "no password: it listens on loopback only"),
        line("mlflow", found["mlflow"].url, "user mnist, password: the line in .state/secrets/mlflow"),
        *(
            line(name, found[name].url, "no password: it listens on loopback only")
            for name in NAMES
            if name == "prometheus"
        ),
    ]


def test_a_second_check_changes_nothing(root: Path) -> None:
    before = (root / paths.SERVICES).read_bytes()
    run(root, "dashboards")
    assert (root / paths.SERVICES).read_bytes() == before


@pytest.mark.timing
def test_a_second_check_takes_a_second(root: Path) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        run(root, "dashboards")
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 2


def test_what_dashboards_starts_listens_on_free_loopback_ports(root: Path) -> None:
    shown = [recorded(root)[name] for name in NAMES if name not in services.JOINED]
    first = {
        "tensorboard": tensorboard.PORT,
        "optuna": optuna_dashboard.PORT,
        "mlflow": mlflow_server.PORT,
        "prometheus": prometheus.PORT,
    }
    assert [service.name for service in shown if service.port <= first[service.name]] == []
    listeners = [
        connection.laddr
        for process in family(*(service.pid for service in shown))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {port for _, port in listeners} >= {service.port for service in shown}
    assert {ip for ip, _ in listeners} == {"127.0.0.1"}


def test_mlflow_requires_the_password(root: Path) -> None:
    server = recorded(root)["mlflow"]
    user = mlflow_server.USER
    for path in ("/", "/version", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/users/get"):
        assert request(server.url + path)[0] == 401, path
        assert request(server.url + path, authorization=http_probe.basic(f"{user}:{'0' * 64}"))[0] == 401, path
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1"):
        assert request(server.url + path, authorization=services.authorization(server))[0] == 200, path


def test_mlflow_refuses_another_host_or_origin(root: Path) -> None:
    server = recorded(root)["mlflow"]
    ours = services.authorization(server)
    assert request(server.url, authorization=ours, Host="evil.example")[0] == 403
    path = f"{server.url}/api/2.0/mlflow/experiments/create"
    data = b'{"name": "evil"}'
    assert request(path, authorization=ours, data=data, Origin="http://evil.example")[0] == 403


def test_mlflows_secret_is_readable_only_by_its_owner(root: Path) -> None:
    server = recorded(root)["mlflow"]
    assert Path(server.secret).stat().st_mode & 0o777 == 0o600
    assert Path(server.folder).stat().st_mode & 0o777 == 0o700
    password = secret(root, "mlflow")
    assert len(password) == 64
    lines = [" ".join(process.cmdline()) for process in family(server.pid)]
    for text in (*lines, Path(server.log).read_text(), run(root, "dashboards"), run(root, "status")):
        assert password not in text


def test_status_shows_all_services(root: Path) -> None:
    assert [line.split()[0] for line in run(root, "status").splitlines()] == list(NAMES)
    assert [state for state, _ in services.status(root).values()] == [State.RUNNING] * len(NAMES)


def test_what_shows_the_storage_restarts_when_it_changes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    before = recorded(root)
    with SummaryWriter(str(tmp_path / "ray/search-0.0/trial-1")) as writer:
        writer.add_scalar("validation_accuracy", 0.5, 1)
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path))
    found = dashboards.check(root)
    page = found["tensorboard"]
    assert isinstance(page, Page)
    assert runs_of(page) == ["search-0.0/trial-1"]
    after = recorded(root)
    changed = {name for name, service in after.items() if before[name] != service}
    assert changed == {"tensorboard", "optuna"} & set(NAMES)
    monkeypatch.delenv(storage.VARIABLE)
    dashboards.check(root)
    assert recorded(root)["tensorboard"].address == str(root / paths.RAY_RESULTS)


def test_tensorboard_reads_the_curves_from_s3(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server", reason="moto's S3 server is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("validation_accuracy", 0.5, 1)
    with dead_server(silent=False) as port:
        pass
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{port}"),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "something"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        (storage.VARIABLE, "s3://curves/team"),
    ):
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: not is_free(port))
        client = boto3.client("s3")
        client.create_bucket(Bucket="curves")
        [events] = tmp_path.iterdir()
        client.upload_file(str(events), "curves", f"team/ray/search-0.0/trial-1/{events.name}")
        page = dashboards.check(root)["tensorboard"]
        assert isinstance(page, Page)
        assert runs_of(page) == ["search-0.0/trial-1"]
    finally:
        server.kill()
        server.wait()


def runs_of(page: Page) -> list[str]:
    """Return the runs that TensorBoard has found, once there are any; it searches every few seconds."""

    def found() -> list[str]:
        return list(httpx.get(f"{page.url}/data/runs", timeout=10).json())

    wait_until(lambda: bool(found()))
    return found()


# --- a cluster's pages, which the real servers of this project represent


@pytest.fixture
def client(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another project, whose user has a cluster's addresses, passwords and token."""
    servers = recorded(root)
    monkeypatch.setenv("PREFECT_API_URL", servers["prefect"].address)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", secret(root, "prefect"))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", servers["ray"].url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secret(root, "ray"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers["mlflow"].url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", mlflow_server.USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret(root, "mlflow"))
    monkeypatch.setenv("MNIST_PIPE_WORK_POOL", "gpu")
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "storage"))
    servers_of_its_own = {k: v for k, v in dashboards._PAGES.items() if k not in ("tensorboard", "optuna")}
    monkeypatch.setattr(dashboards, "_PAGES", servers_of_its_own)
    return tmp_path


def publish(root: Path, value: object) -> None:
    """Set the Prefect variable as `mnist-pipe deploy` does, or remove it if `value` is None."""
    server = recorded(root)["prefect"]
    header = services.authorization(server)
    token = json.loads(request(f"{server.address}/csrf-token?client=tests", authorization=header)[1])["token"]
    csrf = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}
    where = f"{server.address}/variables/name/{dashboards.PUBLISHED}"
    old = httpx.delete(where, headers={"Authorization": header, **csrf}, timeout=10)
    assert old.status_code in (204, 404)  # 404: the variable did not exist
    if value is not None:
        data = json.dumps({"name": dashboards.PUBLISHED, "value": value}).encode()
        assert request(f"{server.address}/variables/", authorization=header, data=data, **csrf)[0] == 201


def test_pages_of_a_cluster_are_found_by_environment_variables(root: Path, client: Path) -> None:
    servers = recorded(root)
    found = dashboards.check(client)
    assert {name: getattr(page, "url", page) for name, page in found.items()} == {
        name: servers[name].url for name in ("prefect", "ray", "mlflow")
    }
    assert [page.login for page in found.values() if isinstance(page, Page)] == [
        "password: PREFECT_API_AUTH_STRING",
        "token: RAY_AUTH_TOKEN",
        "user and password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ]
    assert not (client / paths.SERVICES).exists()


def test_missing_addresses_are_read_from_the_prefect_variable(
    root: Path, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = recorded(root)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", servers["ray"].secret)
    publish(root, {"ray": servers["ray"].url, "mlflow": servers["mlflow"].url})
    found = dashboards.check(client)
    assert {name: getattr(page, "url", page) for name, page in found.items()} == {
        name: servers[name].url for name in ("prefect", "ray", "mlflow")
    }
    publish(root, {"ray": servers["ray"].url})
    assert error(dashboards.check(client), "mlflow") == (
        f"Prefect: the variable {dashboards.PUBLISHED} must hold the address of mlflow, "
        f"but got {{'ray': '{servers['ray'].url}'}}; run: mnist-pipe deploy"
    )
    publish(root, None)
    assert error(dashboards.check(client), "ray") == (
        f"RAY_API_SERVER_ADDRESS is set neither here nor in the Prefect variable "
        f"{dashboards.PUBLISHED}; set it, or run: mnist-pipe deploy"
    )


@pytest.mark.parametrize(
    ("name", "variable", "answer", "login"),
    [
        ("prefect", "PREFECT_API_AUTH_STRING", "401 Unauthorized", "password: PREFECT_API_AUTH_STRING"),
        ("ray", "RAY_AUTH_TOKEN", "403 Forbidden", "token: RAY_AUTH_TOKEN"),
        (
            *("mlflow", "MLFLOW_TRACKING_PASSWORD", "401 Unauthorized"),
            "user and password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
    ],
)
def test_a_wrong_secret_fails_only_its_own_page(
    root: Path, client: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, answer: str, login: str
) -> None:
    monkeypatch.setenv(variable, "0" * 64)
    found = dashboards.check(client)
    url = recorded(root)[name].url
    assert error(found, name) == f"{url}: the credentials were refused: {answer}; {login}"
    assert [other for other, page in found.items() if isinstance(page, PipelineError)] == [name]


def test_a_missing_secret_is_reported_with_its_variable(
    root: Path, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(client / "none"))
    found = dashboards.check(client)
    for name, reason in (
        ("prefect", "no password: PREFECT_API_AUTH_STRING is not set"),
        ("ray", "no token: neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set to one"),
        ("mlflow", "no password: MLFLOW_TRACKING_USERNAME is not set"),
    ):
        url = recorded(root)[name].url
        assert error(found, name) == (f"{url}: the credentials were refused: 401 Unauthorized; {reason}")


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
@pytest.mark.usefixtures("root")
def test_an_unreachable_page_is_reported_in_one_line(
    client: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with dead_server(silent=silent) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@{LOOPBACK}:{port}")
        found = dashboards.check(client)
    got = "no reply within 3 seconds" if silent else "connection refused"
    assert error(found, "mlflow") == (
        f"http://{LOOPBACK}:{port}: the page must return status 2xx, but got {got}; "
        "check the address and whether the server is running"
    )


@pytest.mark.timing
@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
@pytest.mark.usefixtures("root")
def test_an_unreachable_page_times_out_within_seconds(
    client: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with dead_server(silent=silent) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOOPBACK}:{port}")
        began = time.monotonic()
        found = dashboards.check(client)
    assert time.monotonic() - began < 10
    assert isinstance(found["mlflow"], PipelineError)


def test_an_invalid_address_is_reported_without_its_password(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "file://me:hidden@/etc/passwd")
    rule = "PREFECT_API_URL: the address must be http://HOST:PORT, but got 'file:///etc/passwd'"
    assert error(dashboards.check(client), "prefect") == rule


def test_a_redirect_is_not_followed_with_credentials(root: Path, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "from http.server import *\n"
        "class Elsewhere(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        f"        self.send_response(302); self.send_header('Location', {recorded(root)['mlflow'].url!r})\n"
        "        self.end_headers()\n"
        "server = HTTPServer(('127.0.0.1', 0), Elsewhere); print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://{LOOPBACK}:{int(server.stdout.readline())}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert error(dashboards.check(client), "mlflow").startswith(
            f"{url}: the page must return status 2xx, but got 302 Found"
        )
    finally:
        server.kill()
        server.communicate()


# --- after real runs


@pytest.fixture(scope="module")
def runs(started: Path) -> dict[str, str]:
    """Name of the flow run of each stage up to `train`, which all have ended, by stage."""
    services.up(started, names=NAMES)
    stages = ("ingest", "normalize", "search", "train")
    return {stage: flow_run(run_in(started, sys.executable, "-m", "pipelines", stage)) for stage in stages}


def ask(root: Path, query: str) -> list[dict[str, Any]]:
    """Return the series that Prometheus answers for the last ten minutes, which include the runs."""
    now = time.time()
    where = f"{recorded(root)['prometheus'].url}/api/v1/query_range"
    reply = httpx.get(where, params={"query": query, "start": now - 600, "end": now, "step": 5}, trust_env=False)
    found: list[dict[str, Any]] = reply.raise_for_status().json()["data"]["result"]
    return found


@pytest.mark.skipif(prometheus.program() is None, reason="Prometheus is not installed")
def test_prometheus_answers_for_every_trial_and_every_panel_after_a_search(root: Path, runs: dict[str, str]) -> None:
    trials = pd.read_csv(root / paths.TRIALS)
    ended = f"ray_mnist_pipe_trials_total{{search='{runs['search']}'}}"
    trained = f"ray_mnist_pipe_epochs_total{{stage='train', search='{runs['train']}'}}"
    # Prometheus scrapes every 10 s, and `train` ended a moment ago.
    wait_until(lambda: len(ask(root, ended)) == len(trials) and bool(ask(root, trained)))
    statuses = {series["metric"]["trial"]: series["metric"]["status"] for series in ask(root, ended)}
    assert statuses == {str(trial): status for trial, status in zip(trials["trial"], trials["status"], strict=True)}
    epochs = ask(root, f"ray_mnist_pipe_epochs_total{{search='{runs['search']}'}}")
    found = {int(series["metric"]["trial"]): int(series["values"][-1][1]) for series in epochs}
    assert found == dict(zip(trials["trial"], trials["epochs"], strict=True))
    accuracies = ask(root, f"ray_mnist_pipe_validation_accuracy_ratio{{search='{runs['search']}'}}")
    last = {int(series["metric"]["trial"]): float(series["values"][-1][1]) for series in accuracies}
    assert last == pytest.approx(dict(zip(trials["trial"], trials["validation_accuracy"], strict=True)))
    panels = json.loads((root / paths.RAY_METRICS / "dashboards/mnist-pipe.json").read_text())["panels"]
    variables = {"$stage": ".*", "$search": ".*", "$__range": "10m", "$__rate_interval": "1m"}
    for panel in panels:
        for target in panel["targets"]:
            query = re.sub(r"\$\w+", lambda found: variables[found[0]], target["expr"])
            assert ask(root, query), query


def artifacts(root: Path, flow_run: str) -> dict[str, Any]:
    """Return the data of each artifact of a flow run by its key, as Prefect's page reads them."""
    server = recorded(root)["prefect"]
    header = services.authorization(server)
    token = json.loads(request(f"{server.address}/csrf-token?client=tests", authorization=header)[1])["token"]
    csrf = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}
    data = json.dumps({"flow_runs": {"name": {"any_": [flow_run]}}}).encode()
    status, reply = request(f"{server.address}/artifacts/filter", authorization=header, data=data, **csrf)
    assert status == 200, reply
    return {found["key"]: found["data"] for found in json.loads(reply)}


def test_a_flow_run_links_to_its_pages_and_shows_its_progress(root: Path, runs: dict[str, str]) -> None:
    found = recorded(root)
    for stage in ("search", "train"):
        shown = artifacts(root, runs[stage])
        assert shown[stage] == 100  # of its trials or epochs
        job = re.fullmatch(rf"\[Ray job {runs[stage]}\]\({found['ray'].url}/#/jobs/(\w+)\)", shown["ray-job"])
        assert job, shown
        jobs = request(f"{found['ray'].url}/api/jobs/", authorization=services.authorization(found["ray"]))[1]
        names = {one["job_id"]: one["metadata"].get("job_name") for one in json.loads(jobs)}
        assert names[job[1]] == runs[stage]
    shown = artifacts(root, runs["search"])
    assert f"({found['tensorboard'].url}/?runFilter={runs['search']}#timeseries)" in shown["tensorboard"]
    run_id = re.search(rf"\({found['mlflow'].url}/#/runs/(\w+)\)", shown["mlflow-run"])
    assert run_id, shown
    where = f"{found['mlflow'].url}/api/2.0/mlflow/runs/get?run_id={run_id[1]}"
    reply = json.loads(request(where, authorization=services.authorization(found["mlflow"]))[1])
    assert reply["run"]["info"]["run_name"] == runs["search"]


@pytest.mark.skipif(prometheus.program() is None, reason="Prometheus is not installed")
def test_prometheus_is_where_rays_dashboard_looks_for_it_and_reaches_all_of_ray(root: Path) -> None:
    found = recorded(root)
    health = f"{found['ray'].url}/api/prometheus_health"
    assert request(health, authorization=services.authorization(found["ray"]))[0] == 200
    targets = json.loads(request(f"{found['prometheus'].url}/api/v1/targets")[1])["data"]["activeTargets"]
    assert [(target["scrapeUrl"], target["health"]) for target in targets if target["health"] != "up"] == []
    assert len(targets) == 3  # the node, the autoscaler, the dashboard


# --- in a browser


@pytest.mark.browser
def test_a_browser_finds_this_run_by_name_on_every_page(root: Path, runs: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    from tests.support import browser

    pictures = Path(os.environ.get("MNIST_PIPE_SCREENSHOTS") or tmp_path) / "machine"
    browser.open_every_page(
        {name: service.url for name, service in recorded(root).items()},
        secrets={name: secret(root, name) for name in ("prefect", "ray", "mlflow")},
        user=mlflow_server.USER,
        flow_runs=runs,
        epochs=2,
        experiment="digits-search",
        pictures=pictures,
    )
    assert {path.name for path in pictures.glob("*.png")} >= {
        *(f"prefect-{stage}.png" for stage in runs),
        *("ray-job.png", "ray-train.png", "ray-actor.png", "tensorboard.png", "tensorboard-curves.png", "mlflow.png"),
        *("optuna.png", "optuna-parallel.png"),
    }


def flow_run(log: str) -> str:
    """Return the name that Prefect gave the flow run in this output."""
    found = re.search(r"Flow run '([^']+)'", log)
    assert found, log
    return found[1]


# --- shutdown


def test_down_stops_all_and_dashboards_name_the_command_to_restart(root: Path) -> None:
    found = recorded(root)
    *others, last = NAMES
    assert run(root, "down") == f"stopped {', '.join(others)} and {last}\n"
    assert family(*(service.pid for service in found.values())) == []
    assert not Path(found["mlflow"].folder).exists()
    process = command(root, "dashboards")
    lines = without_notices(process.communicate(timeout=200)[0]).splitlines()
    assert process.returncode == 3
    assert lines[:2] == [
        "FAIL  prefect        not running; start it with: mnist-pipe up",
        "FAIL  ray            not running; start it with: mnist-pipe up",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["ok", name]
        for name in NAMES[2:]
        if name != "prometheus"  # there is no Ray to scrape
    ]
