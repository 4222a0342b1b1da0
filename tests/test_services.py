"""Test the real local services: the ports they open, the requests they accept, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mnist_pipe import atomic, paths, telemetry
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError
from mnist_pipe.local import services
from mnist_pipe.local.services import Service, State, prefect_server, program, ray_head
from mnist_pipe.local.services.process import is_free
from tests.support import ROOT
from tests.support.services import (
    answering_server,
    clean_variables,
    command,
    dead_server,
    family,
    new_root,
    recorded,
    request,
    run,
    run_twice_at_once,
    taken,
    wait_until,
    works_in,
)

__all__ = ["clean_variables"]  # fixture

NAMES = ("prefect", "ray")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, set[int], dict[str, Service]]]:
    """Project whose services two users started at once, on a machine whose default ports are occupied.

    It comes with the pids of the first processes that ran then, and with the services recorded of them.
    """
    root = new_root(tmp_path_factory.mktemp("project"))
    with taken(prefect_server.PORT, ray_head.PORT, ray_head.DASHBOARD_PORT):
        try:
            run_twice_at_once(root, "up")
            working = (p for p in psutil.process_iter() if works_in(p, root))
            yield root, {p.pid for p in working if os.getsid(p.pid) == p.pid}, recorded(root)
        finally:
            run(root, "down")


@pytest.fixture
def root(started: tuple[Path, set[int], dict[str, Service]]) -> Path:
    """The started project, with its services running again, whatever the last test did."""
    root, _, _ = started
    if any(state is not State.RUNNING for state, _ in services.status(root).values()):
        run(root, "up")
    return root


@pytest.mark.ray
@pytest.mark.services
def test_a_taken_port_is_avoided(root: Path) -> None:
    found = recorded(root)
    assert found["prefect"].port > prefect_server.PORT
    assert found["ray"].port > ray_head.PORT
    assert ray_head.DASHBOARD_PORT not in found["ray"].ports


@pytest.mark.ray
@pytest.mark.services
def test_two_concurrent_starts_start_one_of_each(started: tuple[Path, set[int], dict[str, Service]]) -> None:
    _, first_processes, found = started
    assert set(found) == set(NAMES)
    assert first_processes == {service.pid for service in found.values()}


@pytest.mark.ray
@pytest.mark.services
def test_every_listener_is_on_loopback(root: Path) -> None:
    listeners = [
        connection.laddr
        for process in family(*(service.pid for service in recorded(root).values()))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {port for _, port in listeners} >= {port for service in recorded(root).values() for port in service.ports}
    assert len(listeners) >= 10  # Prefect, GCS, raylet, dashboard, agents, client server
    assert {ip.removeprefix("::ffff:") for ip, _ in listeners} == {"127.0.0.1"}


@pytest.mark.ray
@pytest.mark.services
def test_status_as_json_is_enough_to_log_in(root: Path) -> None:
    found = json.loads(run(root, "status", "--json"))["services"]
    assert [(service["state"], service["credential"], service["start"]) for service in found.values()] == [
        ("running", "password", None),
        ("running", "token", None),
    ]
    prefect, ray = ((service["url"], Path(service["secret_file"]).read_text().strip()) for service in found.values())
    user, _, password = prefect[1].partition(":")
    assert httpx.get(f"{prefect[0]}/api/admin/version", auth=(user, password)).status_code == 200
    headers = {"Authorization": f"Bearer {ray[1]}"}
    assert httpx.get(f"{ray[0]}/nodes?view=summary", headers=headers).status_code == 200
    assert all(Path(service["log"]).is_file() for service in found.values())


@pytest.mark.ray
@pytest.mark.services
def test_prefect_requires_the_password(root: Path) -> None:
    server = recorded(root)["prefect"]
    for path in ("admin/version", "admin/settings", "csrf-token?client=x"):
        assert request(f"{server.address}/{path}")[0] == 401, path
        assert request(f"{server.address}/{path}", authorization="Basic bm86bm8=")[0] == 401, path
        assert request(f"{server.address}/{path}", authorization=services.authorization(server))[0] == 200, path
    assert request(f"{server.address}/flows/count", data=b"{}")[0] == 403


@pytest.mark.ray
@pytest.mark.services
def test_prefect_refuses_cross_site_requests(root: Path) -> None:
    server = recorded(root)["prefect"]
    status, body = request(f"{server.address}/flows/count", data=b"{}", authorization=services.authorization(server))
    assert (status, json.loads(body)) == (403, {"detail": "Missing CSRF token."})
    for origin, allowed in (("http://evil.example", None), (server.url, server.url)):
        reply = httpx.get(f"{server.address}/health", headers={"Origin": origin}, timeout=10)
        assert reply.status_code == 200
        assert reply.headers.get("Access-Control-Allow-Origin") == allowed


@pytest.mark.ray
@pytest.mark.services
def test_ray_requires_the_token(root: Path) -> None:
    head = recorded(root)["ray"]
    for path in ("/api/jobs/", "/nodes?view=summary", "/api/cluster_status"):
        assert request(head.url + path)[0] == 401, path
        assert request(head.url + path, authorization="Bearer " + "0" * 64)[0] == 403, path
        assert request(head.url + path, authorization=services.authorization(head))[0] == 200, path
    assert request(head.url + "/api/jobs/", data=b'{"entrypoint": "id"}')[0] == 401


@pytest.mark.ray
@pytest.mark.services
def test_secrets_are_readable_only_by_their_owner(root: Path) -> None:
    found = recorded(root)
    assert (root / paths.SERVICES).stat().st_mode & 0o777 == 0o600
    assert (root / services.SECRETS).stat().st_mode & 0o777 == 0o700
    lines = [" ".join(process.cmdline()) for process in family(*(service.pid for service in found.values()))]
    printed = run(root, "status")
    for service in found.values():
        assert Path(service.secret).stat().st_mode & 0o777 == 0o600
        secret = Path(service.secret).read_text()
        assert len(secret) >= 64
        assert not [line for line in [*lines, printed, Path(service.log).read_text()] if secret in line]


@pytest.mark.ray
@pytest.mark.services
def test_services_survive_the_shell_and_its_ctrl_c(root: Path) -> None:
    for service in recorded(root).values():
        assert os.getsid(service.pid) == service.pid  # a terminal signals only its own session
        assert psutil.Process(service.pid).ppid() != os.getpid()


@pytest.mark.ray
@pytest.mark.services
def test_a_second_up_changes_nothing(root: Path) -> None:
    before = (root / paths.SERVICES).read_bytes()
    assert run(root, "up").splitlines()[-1] == "stop         mnist-pipe down"
    assert (root / paths.SERVICES).read_bytes() == before


STAGE = """
import os, sys
from pathlib import Path
from mnist_pipe.local import services
os.environ.update(services.environment(Path.cwd()))
import ray
from prefect import flow, task
from prefect.client.orchestration import get_client

@task
def square(number: int) -> int:
    address = os.environ.get("RAY_ADDRESS")
    ray.init(**({"address": address} if address else {"address": "local", "include_dashboard": False}))
    return ray.get(ray.remote(lambda: (number * number, os.getsid(0))).remote())

@flow
def toy(number: int) -> list[int]:
    return square(number)

result = toy(7)
import psutil
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
ips = {c.laddr.ip.removeprefix("::ffff:") for p in own for c in p.net_connections("inet") if c.status == "LISTEN"}
with get_client(sync_client=True) as client:
    runs = len(client.read_flow_runs())
print("RESULT", *result, runs, *sorted(ips))
"""


def stage(root: Path) -> list[str]:
    """Run a flow with a Ray task in a process that has only the variables of `environment`."""
    done = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=root, capture_output=True, text=True, timeout=200, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stdout + done.stderr
    return lines[0].split()[1:]


@pytest.mark.ray
@pytest.mark.services
def test_a_stage_uses_the_running_services(root: Path) -> None:
    result, session, runs, *ips = stage(root)
    assert result == "49"
    assert int(session) == recorded(root)["ray"].pid  # the task ran in a worker of the head
    assert runs == "1"
    assert ips in ([], ["127.0.0.1"])


@pytest.mark.ray
@pytest.mark.services
def test_killed_services_are_reported_and_restarted(root: Path) -> None:
    before = recorded(root)
    os.kill(before["prefect"].pid, signal.SIGSTOP)
    assert [state for state, _ in services.status(root).values()] == [State.SILENT, State.RUNNING]
    for service in before.values():
        os.kill(service.pid, signal.SIGKILL)
    wait_until(lambda: all(state is State.DEAD for state, _ in services.status(root).values()), seconds=30)
    assert not services.environment(root).keys() & {"PREFECT_API_URL", "RAY_ADDRESS"}
    run(root, "up")
    after = recorded(root)
    assert [state for state, _ in services.status(root).values()] == [State.RUNNING] * 2
    assert not {s.pid for s in before.values()} & {s.pid for s in after.values()}
    assert family(*(service.pid for service in before.values())) == []
    assert not Path(before["ray"].folder).exists()
    assert services.environment(root)["PREFECT_API_URL"] == after["prefect"].address
    assert services.environment(root)["RAY_ADDRESS"] == after["ray"].address


@pytest.mark.ray
@pytest.mark.services
def test_down_stops_only_what_up_started(root: Path) -> None:
    found = recorded(root)
    # `ray stop` takes this for a Ray of another user, and would end it.
    code = "import time; time.sleep(300)"
    stranger = subprocess.Popen([sys.executable, "-c", code, "raylet", "gcs_server", "ray start --head"])
    try:
        assert len(family(*(service.pid for service in found.values()))) > 10
        assert run(root, "down") == "stopped prefect and ray\n"
        assert family(*(service.pid for service in found.values())) == []
        assert all(is_free(port) for service in found.values() for port in service.ports)
        assert not Path(found["ray"].folder).exists()
        assert not (root / paths.SERVICES).exists()
        assert stranger.poll() is None
        assert run(root, "down") == "nothing was running\n"
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.ray
@pytest.mark.services
def test_a_failed_start_stops_the_other_service_and_names_the_log(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    variables = os.environ | {"PREFECT_SERVER_API_KEEPALIVE_TIMEOUT": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "up"],
        cwd=root, env=variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    first, *log = (line for line in done.stderr.splitlines() if not line.startswith("waiting for "))
    assert done.returncode == 3
    assert first == (
        f"{root / services.LOGS / 'prefect.log'}: prefect must answer within 120 seconds, but got exit code 1; "
        "its last lines follow"
    )
    assert "nonsense" in "".join(log)
    assert not (root / paths.SERVICES).exists()
    assert [p for p in psutil.process_iter() if p.pid != os.getpid() and works_in(p, root)] == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_two_checkouts_have_separate_services(tmp_path: Path) -> None:
    roots = []
    for path in (tmp_path / "a", tmp_path / "b"):
        path.mkdir()
        roots.append(new_root(path))
    try:
        both = [command(root, "up") for root in roots]
        outputs = [process.communicate(timeout=280)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert stage(roots[0])[:3] == ["49", str(recorded(roots[0])["ray"].pid), "1"]
        run(roots[0], "down")
        assert stage(roots[1])[:3] == ["49", str(recorded(roots[1])["ray"].pid), "1"]
    finally:
        for root in roots:
            run(root, "down")


# --- without services


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_without_services_a_stage_starts_its_own_on_loopback(tmp_path: Path) -> None:
    result, _, runs, *ips = stage(tmp_path)
    assert (result, runs, ips) == ("49", "1", ["127.0.0.1"])
    assert (tmp_path / paths.PREFECT_HOME / "prefect.db").is_file()


def test_environment_disables_telemetry_and_pickles_and_creates_secrets(tmp_path: Path) -> None:
    variables = services.environment(tmp_path)
    assert (
        variables.items()
        >= {
            "PREFECT_HOME": str(tmp_path / ".state/prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
            "DO_NOT_TRACK": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / ".state/secrets/ray"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DVC_NO_ANALYTICS": "1",
        }.items()
    )
    assert not variables.keys() & {"PREFECT_API_URL", "RAY_ADDRESS"}
    assert variables["PREFECT_API_AUTH_STRING"] == variables["PREFECT_SERVER_API_AUTH_STRING"]
    assert services.environment(tmp_path) == variables
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / ".state/secrets").glob("[a-z]*")}
    assert modes["prefect"] == modes["ray"] == 0o600


def test_deploy_settings_disable_the_same_telemetry() -> None:
    [line] = re.findall(r"^export (DO_NOT_TRACK=.*)$", (ROOT / "deploy/settings").read_text(), re.MULTILINE)
    assert dict(setting.split("=") for setting in line.split()) == telemetry.OFF


def test_two_projects_have_different_secrets(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (services.environment(tmp_path / name) for name in ("a", "b"))
    assert first["PREFECT_API_AUTH_STRING"] != second["PREFECT_API_AUTH_STRING"]


def test_variables_of_the_user_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert not services.environment(tmp_path).keys() & {"PREFECT_HOME", "RAY_USAGE_STATS_ENABLED"}


def test_the_users_own_servers_receive_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering_server() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        variables = services.environment(tmp_path)
    # Such a cluster has other nodes, which could not reach a driver on loopback.
    assert not [
        name for name in variables if name.startswith("RAY_AUTH") or name == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    ]
    assert "PREFECT_API_AUTH_STRING" in variables


@pytest.mark.parametrize(
    "silent", [pytest.param(True, id="silent", marks=pytest.mark.services), pytest.param(False, id="closed")]
)
def test_an_unreachable_prefect_server_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with dead_server(silent=silent) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:hidden@127.0.0.1:{port}/api")
        with pytest.raises(UnavailableError) as caught:
            services.environment(tmp_path)
    assert str(caught.value) == (
        f"PREFECT_API_URL: http://127.0.0.1:{port}/api does not answer: no reply; "
        "start that server or unset the variable"
    )


@pytest.mark.timing
@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
def test_an_unreachable_prefect_server_times_out_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with dead_server(silent=silent) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            services.environment(tmp_path)
    assert time.monotonic() - started < 10


SILENT = [pytest.param(True, id="silent", marks=pytest.mark.services), pytest.param(False, id="closed")]


@pytest.mark.parametrize("silent", SILENT)
@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_unreachable_cluster_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool, form: str
) -> None:
    with dead_server(silent=silent) as port:
        address = form.format(f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UnavailableError) as caught:
            services.environment(tmp_path)
    fix = "start that cluster or unset the variable"
    assert str(caught.value) == f"RAY_ADDRESS: {address} does not answer: no reply; {fix}"


def test_the_cluster_that_ray_start_recorded_is_checked_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert (
        "RAY_ADDRESS" not in services.environment(tmp_path) or services.environment(tmp_path)["RAY_ADDRESS"] == "auto"
    )
    (tmp_path / "ray").mkdir()
    file = tmp_path / "ray/ray_current_cluster"
    with dead_server(silent=False) as port:
        file.write_text(f"127.0.0.1:{port}")
        with pytest.raises(UnavailableError, match=f"^RAY_ADDRESS=auto, {file}: 127.0.0.1:{port} does not answer: "):
            services.environment(tmp_path)
    with answering_server() as port:
        file.write_text(f"127.0.0.1:{port}\n")
        assert services.environment(tmp_path)["RAY_ADDRESS"] == f"127.0.0.1:{port}"


@pytest.mark.services
def test_prefects_tables_are_in_a_folder_of_any_name(tmp_path: Path) -> None:
    root = tmp_path / "a?b=c#d%3Fe @f"
    root.mkdir()
    variables = services.environment(root)
    code = "from prefect import flow\n@flow(log_prints=False)\ndef nothing(): pass\nnothing()\n"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, cwd=root, check=True, timeout=120)
    with closing(sqlite3.connect(root / ".state/prefect/prefect.db")) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (1,)
    assert list(tmp_path.iterdir()) == [root]


PREFECT_PLACES = {
    ".env": ("PREFECT_API_URL={}\n", "{root}/.env: PREFECT_API_URL"),
    "prefect.toml": ('[api]\nurl = "{}"\n', "{root}/prefect.toml: api.url"),
    "pyproject.toml": ('[tool.prefect.api]\nurl = "{}"\n', "{root}/pyproject.toml: tool.prefect.api.url"),
    ".state/prefect/profiles.toml": (
        'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{}"\n',
        "{root}/.state/prefect/profiles.toml: PREFECT_API_URL of the profile 'team'",
    ),
}


@pytest.mark.parametrize("name", PREFECT_PLACES)
def test_every_place_that_names_a_prefect_server_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content, place = PREFECT_PLACES[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    with dead_server(silent=False) as port:
        url = f"http://127.0.0.1:{port}/api"
        (tmp_path / name).write_text(content.format(url))
        with pytest.raises(UnavailableError) as caught:
            services.environment(tmp_path)
        fix = "start that server or remove that setting"
        assert str(caught.value) == f"{place.format(root=tmp_path)}: {url} does not answer: no reply; {fix}"
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(UnavailableError, match=r"^PREFECT_API_URL: "):  # the shell's comes first
            services.environment(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL")
    with answering_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        url = f"http://127.0.0.1:{port}/api"
        (tmp_path / name).write_text(content.format(url))
        variables = services.environment(tmp_path)
    assert variables["PREFECT_API_URL"] == url
    assert "PREFECT_API_AUTH_STRING" not in variables  # our password is not for that server


@pytest.mark.parametrize("place", ["variable", ".env", "prefect.toml", "pyproject.toml"])
def test_every_place_that_names_prefects_profiles_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = tmp_path / "mine.toml"
    match place:
        case "variable":
            monkeypatch.setenv("PREFECT_PROFILES_PATH", str(file))
        case ".env":
            (tmp_path / place).write_text(f"PREFECT_PROFILES_PATH={file}")
        case "prefect.toml":
            (tmp_path / place).write_text(f'profiles_path = "{file}"')
        case _:
            (tmp_path / place).write_text(f'[tool.prefect]\nprofiles_path = "{file}"')
    monkeypatch.setenv("PREFECT_PROFILE", "b")
    with dead_server(silent=False) as port:
        file.write_text(f'active = "a"\n[profiles.b]\nPREFECT_API_URL = "http://127.0.0.1:{port}/api"\n')
        with pytest.raises(UnavailableError, match=f"^{file}: PREFECT_API_URL of the profile 'b': http://127.0.0.1:"):
            services.environment(tmp_path)


@pytest.mark.parametrize("name", ["prefect.toml", "pyproject.toml", ".state/prefect/profiles.toml"])
def test_a_file_that_prefect_cannot_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("[api\n")
    with pytest.raises(InputError, match=f"^{tmp_path / name}: the file must be TOML, because Prefect reads it, but "):
        services.environment(tmp_path)


def test_a_prefect_server_that_refuses_the_credentials_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering_server(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        (tmp_path / "prefect.toml").write_text('[api]\nauth_string = "me:wrong"\n')
        with pytest.raises(UnavailableError) as caught:
            services.environment(tmp_path)
    fix = f"set {tmp_path}/prefect.toml: api.auth_string to the server's user:password"
    assert str(caught.value) == f"http://127.0.0.1:{port}/api: the credentials were refused; {fix}"


def test_loopback_bypasses_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    variables = services.environment(tmp_path)
    assert variables["NO_PROXY"] == variables["no_proxy"] == "intranet.example,127.0.0.1,localhost"


def test_a_reused_pid_is_never_killed(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    try:
        service = Service(
            name="prefect", pid=stranger.pid, created=psutil.Process(stranger.pid).create_time() - 60, port=1,
            address="", url="http://127.0.0.1:1", secret="", log="", folder=str(tmp_path),
        )  # fmt: skip
        atomic.write_json(tmp_path / paths.SERVICES, {"prefect": asdict(service)})
        assert services.status(tmp_path)["prefect"][0] is State.DEAD
        assert services.down(tmp_path) == []
        assert stranger.poll() is None
        assert tmp_path.exists()  # nor is a folder removed that `up` did not create
        assert not (tmp_path / paths.SERVICES).exists()
    finally:
        stranger.kill()
        stranger.wait()


def forge(root: Path, **record: Any) -> Service:
    """Write a record as if it had come with somebody else's copy of the project, and return it."""
    service = Service(
        name="ray", pid=2**22 + 1, created=1.0, port=1, address="", url="http://127.0.0.1:1", secret="", log="",
        folder="",
    )  # fmt: skip
    service = replace(service, **record)
    atomic.write_json(root / paths.SERVICES, {"ray": asdict(service)})
    return service


def test_down_removes_only_a_folder_that_its_service_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "mnist-pipe-thesis"
    folder.mkdir()
    (tmp_path / "mnist-pipe-link").symlink_to(folder)
    for name in ("mnist-pipe-thesis", "mnist-pipe-link"):
        forge(tmp_path, folder=str(tmp_path / name))
        services.down(tmp_path)
        assert folder.exists()
    service = forge(tmp_path, folder=str(folder))
    program.claim_folder(replace(service, pid=service.pid + 1))
    services.down(tmp_path)
    assert folder.exists()
    program.claim_folder(forge(tmp_path, folder=str(folder)))
    services.down(tmp_path)
    assert not folder.exists()


def test_a_forged_record_makes_no_command_read_or_send_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("private")
    forge(tmp_path, secret=str(tmp_path / "key"), log=str(tmp_path / "key"))
    record = program.read(tmp_path)["ray"]
    assert record.secret == str(tmp_path / program.SECRETS / "ray")
    assert record.log == str(tmp_path / program.LOGS / "ray.log")
    for url in ("http://collector.example:80", "http://127.0.0.1@collector.example", "file:///etc/passwd"):
        forge(tmp_path, url=url)
        with pytest.raises(CorruptDataError, match=r"a record must be of a service on 127\.0\.0\.1"):
            services.status(tmp_path)


def test_status_without_services_is_stopped(tmp_path: Path) -> None:
    assert services.status(tmp_path) == dict.fromkeys(NAMES, (State.STOPPED, None))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    path = tmp_path / paths.SERVICES
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(CorruptDataError) as caught:
        services.status(tmp_path)
    assert str(caught.value) == (
        f"{path}: the file must be JSON, but got Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); delete it and stop the services by hand"
    )
