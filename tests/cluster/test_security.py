"""Test that requests without a secret are refused, that only intended ports listen, and that no secret leaks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.cluster.bed import HOSTS, POOL, ROOT, Bed, basic

pytestmark = pytest.mark.cluster

# Ray binds these on every interface, and no option changes it (see docs/cluster.md). Of 6400 to 6499 it uses one.
RAY_EVERYWHERE = {6379, *range(6400, 6500), 6381, 6383, 6385, 6386, 6387}
# Every worker process of Ray listens on one of these.
RAY_WORKERS = range(10002, 11000)
# Ray's default is 20 attempts.
ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
WITHOUT_TOKEN = [ONCE | {"RAY_AUTH_MODE": "disabled"}, ONCE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}]


def test_a_node_with_a_wrong_token_is_refused_in_one_line(bed: Bed, tmp_path: Path) -> None:
    settings = bed.write_settings(tmp_path / "join.env", bed.settings("storage") | {"RAY_AUTH_TOKEN": "wrong"})
    done = bed.run("storage", [ROOT / "deploy/node"], env={"MNIST_PIPE_ENV": str(settings)}, timeout=20)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN must be" in done.stderr


@pytest.mark.parametrize("access", WITHOUT_TOKEN)
def test_ray_refuses_a_node_without_its_token(bed: Bed, access: dict[str, str]) -> None:
    place = ["--node-ip-address", bed.addresses["storage"], "--temp-dir", str(bed.folder)]
    done = bed.run("storage", ["ray", "start", "--block", "--address", bed.ray_address, *place], env=access)
    assert done.returncode == 1
    assert "authenticat" in (done.stdout + done.stderr).lower()
    assert bed.addresses["storage"] not in bed.ray_nodes()


@pytest.mark.parametrize("access", WITHOUT_TOKEN)
def test_ray_refuses_a_driver_without_its_token(bed: Bed, access: dict[str, str]) -> None:
    code = f"import ray; ray.init({bed.ray_address!r}); print(ray.cluster_resources())"
    done = bed.run("head", [sys.executable, "-c", code], env=access)
    assert done.returncode == 1
    assert "authenticat" in (done.stdout + done.stderr).lower()


def test_rays_client_server_refuses_a_call_without_its_token(bed: Bed) -> None:
    code = f"""
        import json, os, grpc
        from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

        def call(token):
            metadata = [("client_id", "x"), *([("authorization", f"Bearer {{token}}")] if token else [])]
            request = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
            try:
                stub = ray_client_pb2_grpc.RayletDriverStub(grpc.insecure_channel("{bed.addresses["head"]}:10001"))
                stub.ClusterInfo(request, metadata=metadata, timeout=20)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        print(json.dumps([call(""), call("wrong"), call(os.environ["RAY_AUTH_TOKEN"])]))
    """
    none, wrong, right = bed.python("client", textwrap.dedent(code))
    assert (none, wrong) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert right != "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("host", "port", "path", "body"),
    [
        ("head", 8265, "/api/jobs/", None),
        ("head", 8265, "/api/jobs/", {"entrypoint": "id"}),
        ("head", 8265, "/nodes?view=summary", None),
        ("head", 8265, "/api/v0/actors", None),
        ("node1", 6382, "/api/job_agent/jobs/", {"entrypoint": "id"}),
        ("node1", 6384, "/get_or_create_runtime_env", {}),
    ],
)
@pytest.mark.parametrize("token", ["", "Bearer wrong"])
def test_ray_refuses_a_request_without_its_token(
    bed: Bed, host: str, port: int, path: str, body: dict[str, str] | None, token: str
) -> None:
    headers = {"Authorization": token} if token else {}
    status, _ = bed.fetch(f"http://{bed.addresses[host]}:{port}{path}", headers=headers, body=body)
    assert status in (401, 403)


def test_ray_accepts_its_token(bed: Bed) -> None:
    assert bed.fetch(f"{bed.dashboard_url}/api/jobs/", headers=bed.ray_headers)[0] == 200


@pytest.mark.parametrize("headers", [{}, basic("mnist", "wrong"), basic("", "")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("admin/version", None),
        ("csrf-token?client=bed", None),
        ("flow_runs/filter", {}),
        ("work_pools/", {"name": "x"}),
    ],
)
def test_prefect_refuses_a_request_without_its_password(
    bed: Bed, path: str, body: dict[str, str] | None, headers: dict[str, str]
) -> None:
    assert bed.fetch(f"{bed.prefect_url}/api/{path}", headers=headers, body=body)[0] in (401, 403)


@pytest.mark.parametrize(
    "path",
    ["work_pools/{pool}/workers/connect", "events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"],
)
def test_prefect_refuses_a_websocket_without_its_password(bed: Bed, path: str) -> None:
    assert not accepts_websocket(bed, path, "mnist:wrong")
    assert not accepts_websocket(bed, path, "")
    assert accepts_websocket(bed, path, f"mnist:{bed.secrets['PREFECT_PASSWORD']}")


@pytest.mark.parametrize("headers", [{}, basic("mnist", "wrong"), basic("admin", "password1234")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("api/2.0/mlflow/experiments/search", {"max_results": 1}),
        ("api/2.0/mlflow/registered-models/create", {"name": "x"}),
        ("api/2.0/mlflow-artifacts/artifacts?path=.", None),
        ("api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/y", None),
        ("ajax-api/2.0/mlflow/experiments/search", {"max_results": 1}),
        ("graphql", {"query": "{ __typename }"}),
        ("get-artifact?path=y&run_uuid=x", None),
    ],
)
def test_mlflow_refuses_a_request_without_its_password(
    bed: Bed, path: str, body: dict[str, object] | None, headers: dict[str, str]
) -> None:
    assert bed.fetch(f"{bed.mlflow_url}/{path}", headers=headers, body=body)[0] in (401, 403)


def test_mlflow_accepts_its_password(bed: Bed) -> None:
    url = f"{bed.mlflow_url}/api/2.0/mlflow/experiments/search"
    assert bed.fetch(url, headers=bed.mlflow_headers, body={"max_results": 1})[0] == 200


@pytest.mark.parametrize(
    "url", ["{prefect_url}/api/admin/version", "{mlflow_url}/version", "{dashboard_url}/api/version"]
)
def test_no_server_lets_another_web_page_read_its_replies(bed: Bed, url: str) -> None:
    address = url.format(prefect_url=bed.prefect_url, mlflow_url=bed.mlflow_url, dashboard_url=bed.dashboard_url)
    done = bed.run("client", ["curl", "-s", "-D", "-", "-o", "/dev/null", "-H", "Origin: http://evil.test", address])
    assert done.returncode == 0
    assert "evil.test" not in done.stdout
    assert "access-control-allow-origin: *" not in done.stdout.lower()


@pytest.mark.parametrize(("user", "database"), [("prefect", "prefect"), ("mlflow", "mlflow"), ("postgres", "postgres")])
@pytest.mark.parametrize("password", ["", "wrong"])
def test_postgresql_refuses_a_connection_without_its_password(
    bed: Bed, user: str, database: str, password: str
) -> None:
    env = {"PGPASSWORD": password} if password else {}
    command = ["psql", "-w", "-h", bed.addresses["head"], "-U", user, "-d", database, "-c", "SELECT 1"]
    done = bed.run("client", command, env=env)
    assert done.returncode == 2
    assert "password" in done.stderr


def test_a_role_cannot_connect_to_another_roles_database(bed: Bed) -> None:
    env = {"PGPASSWORD": bed.secrets["MNIST_PIPE_MLFLOW_DATABASE_PASSWORD"]}
    command = ["psql", "-w", "-h", bed.addresses["head"], "-U", "mlflow", "-c", "SELECT 1", "-d"]
    assert bed.run("head", [*command, "mlflow_auth"], env=env).returncode == 0
    refused = bed.run("head", [*command, "prefect"], env=env)
    assert refused.returncode == 2
    assert "permission denied" in refused.stderr


def test_nothing_listens_outside_loopback_and_the_test_network(bed: Bed) -> None:
    own = set(bed.addresses.values())
    for host in HOSTS:
        for address, port in listeners(bed, host):
            if address in ("0.0.0.0", "*", "[::]"):
                assert port in RAY_EVERYWHERE or port in RAY_WORKERS, f"{host} listens on {address}:{port}"
                assert host in ("head", "node1", "node2")
            else:
                assert address.startswith("127.") or address == "[::1]" or address in own, f"{host}: {address}:{port}"


def test_the_bed_listens_nowhere_on_the_machine_itself(bed: Bed) -> None:
    with Path("/proc/self/ns/net").open() as here:
        own = os.fstat(here.fileno()).st_ino
    for host in HOSTS:
        pids = subprocess.run(
            ["ip", "netns", "pids", bed.namespace(host)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert all(Path(f"/proc/{pid}/ns/net").stat().st_ino != own for pid in pids if Path(f"/proc/{pid}").exists())
    machine = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    assert not any(address in machine for address in bed.addresses.values())


def test_argument_lists_contain_no_secret(bed: Bed) -> None:
    seen = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes()
        except OSError:
            continue  # the process has ended meanwhile
        seen += b"ray" in arguments
        assert not [name for name, value in bed.secrets.items() if value.encode() in arguments]
    assert seen


def test_logs_and_other_files_of_the_bed_contain_no_secret(bed: Bed) -> None:
    settings = {bed.settings_file(host) for host in HOSTS}
    files = [path for path in bed.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if path.suffix == ".log"]
    for path in files:
        if path not in settings and path.exists():
            content = path.read_bytes()
            found = {name for name, value in bed.secrets.items() if value.encode() in content}
            # The storage logs the URLs that MLflow presigns for downloads; by S3's design these contain the access
            # key's id.
            assert found <= ({"AWS_ACCESS_KEY_ID"} if path.name == "s3.log" else set()), path


def accepts_websocket(bed: Bed, path: str, password: str) -> bool:
    """Return whether a websocket of Prefect accepts this password in the message that its own clients send."""
    with bed.inside("client"):
        channel = socket.create_connection((bed.addresses["head"], 4200), timeout=10)
    address = f"{bed.prefect_url.replace('http', 'ws')}/api/{path.format(pool=POOL)}"
    try:
        with connect(address, sock=channel, subprotocols=[Subprotocol("prefect")]) as websocket:
            websocket.send(json.dumps({"type": "auth", "token": password}))
            return "auth_success" in str(websocket.recv(timeout=10))
    except (ConnectionClosed, InvalidHandshake):
        return False


def listeners(bed: Bed, host: str) -> list[tuple[str, int]]:
    """Return address and port of every TCP and UDP listener of a host; IPv4-mapped IPv6 addresses become IPv4."""
    done = bed.run(host, ["ss", "--listening", "--tcp", "--udp", "--numeric", "--no-header"], env={})
    found = [line.split()[4].rpartition(":") for line in done.stdout.splitlines()]
    return [(re.sub(r"^\[::ffff:(.*)\]$", r"\1", address), int(port)) for address, _, port in found]
