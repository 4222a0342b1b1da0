"""Test the scripts of `deploy/`: what they refuse, what they start, and what survives a kill."""

from __future__ import annotations

import signal
import subprocess
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.bed import POOL, ROOT, Bed, wait_for

pytestmark = pytest.mark.cluster

SCRIPTS = ("database", "deployments", "head", "mlflow-server", "node", "prefect-server", "run", "serve", "worker")

TICKS = """
    import time
    from pathlib import Path
    from prefect import flow, task

    @task
    def tick(number: int) -> None:
        time.sleep(1)
        print("tick", number)

    @flow(log_prints=True)
    def ticks(count: int, mark: str) -> None:
        for number in range(count):
            tick(number)
            with Path(mark).open("a") as lines:
                print(number, file=lines)
"""

ROUND_TRIP = """
    import json, socket
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(log_to_driver=False)

    @ray.remote(num_cpus=1)
    class Rank:
        def address(self):
            with socket.socket() as free:
                free.bind(("", 0))
                return ray.util.get_node_ip_address(), free.getsockname()[1]

        def train(self, rank, host, port):
            import torch
            from torch.nn.parallel import DistributedDataParallel

            store = f"tcp://{host}:{port}"
            torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
            torch.manual_seed(rank)  # DDP starts from the weights of rank 0, and averages the gradients
            model = DistributedDataParallel(torch.nn.Linear(3, 1))
            model(torch.full((4, 3), float(rank))).sum().backward()
            return [list(map(float, model.module.weight.flatten())), float(model.module.weight.grad[0, 0])]

    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    ranks = [Rank.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote() for _ in range(2)]
    addresses = ray.get([rank.address.remote() for rank in ranks])
    trained = ray.get([rank.train.remote(number, *addresses[0]) for number, rank in enumerate(ranks)])
    print(json.dumps([[host for host, _ in addresses], trained]))
"""


@pytest.fixture(scope="module")
def trigger(bed: Bed) -> Callable[[str, int], str]:
    """Function of a mark and a count that starts a flow run of one tick a second, and returns the run's id."""
    folder = bed.folder / "ticks"
    folder.mkdir()
    (folder / "ticks.py").write_text(textwrap.dedent(TICKS))
    deploy = f"""
        from prefect import flow
        remote = flow.from_source(source={str(folder)!r}, entrypoint="ticks.py:ticks")
        print(repr(str(remote.deploy(name="bed", work_pool_name={POOL!r}, print_next_steps=False))).replace("'", '"'))
    """
    deployment = bed.python("client", textwrap.dedent(deploy), env=bed.client_env)

    def start(mark: str, count: int) -> str:
        parameters = {"count": count, "mark": str(folder / mark)}
        run = bed.prefect(f"deployments/{deployment}/create_flow_run", body={"parameters": parameters})
        return str(run["id"])

    return start


def marks(bed: Bed, mark: str) -> list[str]:
    path = bed.folder / "ticks" / mark
    return path.read_text().split() if path.exists() else []


def state(bed: Bed, run: str) -> str:
    return str(bed.prefect(f"flow_runs/{run}")["state"]["type"])


def messages(bed: Bed, run: str) -> list[str]:
    logs = bed.prefect("logs/filter", body={"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    return [str(log["message"]) for log in logs]


# --- refused settings


def refused(script: str, settings: Path) -> str:
    """Return the one line that a script prints when it refuses its settings."""
    done = subprocess.run(
        [ROOT / "deploy" / script],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MNIST_PIPE_ENV": str(settings)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_refuses_a_settings_file_that_others_can_read(bed: Bed, script: str, tmp_path: Path) -> None:
    settings = bed.write_settings(tmp_path / "cluster.env", bed.settings("head"))
    settings.chmod(0o644)
    assert "chmod 600" in refused(script, settings)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_refuses_a_missing_settings_file(script: str, tmp_path: Path) -> None:
    assert "MNIST_PIPE_ENV" in refused(script, tmp_path / "cluster.env")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("database", "MNIST_PIPE_PREFECT_DATABASE_PASSWORD"),
        ("database", "MNIST_PIPE_MLFLOW_DATABASE_PASSWORD"),
        ("head", "MNIST_PIPE_HEAD"),
        ("head", "RAY_AUTH_TOKEN"),
        ("mlflow-server", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        ("mlflow-server", "MLFLOW_TRACKING_PASSWORD"),
        ("mlflow-server", "MNIST_PIPE_STORAGE"),
        ("node", "MNIST_PIPE_HEAD"),
        ("node", "RAY_AUTH_TOKEN"),
        ("prefect-server", "PREFECT_API_AUTH_STRING"),
        ("deployments", "PREFECT_API_AUTH_STRING"),
        ("run", "MLFLOW_TRACKING_USERNAME"),
        ("serve", "MNIST_PIPE_SERVE_TOKEN"),
        ("worker", "MNIST_PIPE_WORK_POOL"),
        ("worker", "MNIST_PIPE_STORAGE"),
    ],
)
def test_a_script_names_the_setting_that_is_missing(bed: Bed, script: str, name: str, tmp_path: Path) -> None:
    values = {key: value for key, value in bed.settings("head").items() if key != name}
    settings = bed.write_settings(tmp_path / "cluster.env", values)
    assert f"{name} must be set" in refused(script, settings)


def test_the_example_names_every_setting_that_the_scripts_read(bed: Bed) -> None:
    example = (ROOT / "deploy/cluster.env.example").read_text()
    assert not [name for name in bed.settings("head") | bed.settings("node1") if f"{name}=" not in example]


def test_creating_the_databases_again_changes_nothing(bed: Bed) -> None:
    bed.create_databases()
    assert bed.prefect("admin/version")


# --- started services


def test_nodes_have_their_own_addresses_and_the_head_offers_no_cpu(bed: Bed) -> None:
    assert {bed.ray_nodes()[bed.addresses[host]] for host in ("head", "node1", "node2")} == {"ALIVE"}
    resources = bed.python("head", "import json, ray; ray.init(); print(json.dumps(ray.cluster_resources()))")
    assert resources["CPU"] == 2
    assert {f"node:{bed.addresses[host]}" for host in ("head", "node1", "node2")} <= resources.keys()


def test_gradients_are_averaged_over_both_nodes(bed: Bed) -> None:
    addresses, trained = bed.python("head", textwrap.dedent(ROUND_TRIP))
    assert sorted(addresses) == [bed.addresses["node1"], bed.addresses["node2"]]
    (weights, gradient), others = trained
    assert others == [weights, gradient]
    assert gradient == 2.0  # mean of 0 and 4: all four rows of a rank hold the rank's own number


def test_a_flow_run_has_the_credentials_it_needs_and_no_others(bed: Bed, trigger: Callable[[str, int], str]) -> None:
    run = trigger("environment", 3)
    wait_for(lambda: bool(marks(bed, "environment")), "the run")
    pids = subprocess.run(["pgrep", "-f", "prefect.engine"], capture_output=True, text=True).stdout.split()
    environments = [Path(f"/proc/{pid}/environ").read_bytes().decode() for pid in pids]
    (environment,) = [found for found in environments if run in found]
    names = {line.partition("=")[0] for line in environment.split("\0")}
    assert {"RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GLOO_SOCKET_IFNAME"} <= names
    assert not names & {"MNIST_PIPE_PREFECT_DATABASE_PASSWORD", "MNIST_PIPE_MLFLOW_DATABASE_PASSWORD"}
    assert not names & {"MLFLOW_FLASK_SERVER_SECRET_KEY", "PREFECT_SERVER_API_AUTH_STRING", "PGPASSWORD"}
    wait_for(lambda: state(bed, run) == "COMPLETED", "the run")


def test_mlflow_stores_artifacts_in_the_shared_storage(bed: Bed) -> None:
    code = """
        import json, mlflow
        mlflow.set_experiment("bed")
        with mlflow.start_run() as run:
            mlflow.log_text("proof", "proof.txt")
        print(json.dumps(run.info.run_id))
    """
    run = bed.python("client", textwrap.dedent(code), env=bed.client_env)
    assert [size for key, size in bed.objects("mlflow/").items() if f"{run}/artifacts/proof.txt" in key] == [5]


# --- restarts


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_survives_its_worker_and_a_new_worker_takes_the_next_run(
    bed: Bed, trigger: Callable[[str, int], str], signal_: signal.Signals
) -> None:
    mark = f"worker-{signal_.name}"
    run = trigger(mark, 12)
    wait_for(lambda: len(marks(bed, mark)) >= 2, "the run")
    bed.kill("worker", signal_)
    bed.deploy("worker")
    following = trigger(f"{mark}-next", 1)
    wait_for(lambda: {state(bed, run), state(bed, following)} == {"COMPLETED"}, "both runs")
    assert marks(bed, mark) == list(map(str, range(12)))
    assert marks(bed, f"{mark}-next") == ["0"]


@pytest.mark.slow
def test_a_run_survives_a_prefect_outage_and_loses_no_log_line(bed: Bed, trigger: Callable[[str, int], str]) -> None:
    run = trigger("server", 12)
    wait_for(lambda: len(marks(bed, "server")) >= 2, "the run")
    bed.kill("prefect-server")
    time.sleep(30)
    bed.deploy("prefect-server")
    wait_for(lambda: state(bed, run) == "COMPLETED", "the run")
    assert marks(bed, "server") == list(map(str, range(12)))
    wanted = {f"tick {number}" for number in range(12)}
    wait_for(lambda: wanted <= set(messages(bed, run)), "its log")
    following = trigger("server-next", 1)
    print(f"the next run took {wait_for(lambda: state(bed, following) == 'COMPLETED', 'it'):.0f} s")


def test_a_node_without_network_is_declared_dead_and_joins_again(bed: Bed) -> None:
    bed.link("node1", up=False)
    try:
        waited = wait_for(lambda: bed.ray_nodes()[bed.addresses["node1"]] == "DEAD", "node1 is dead", timeout=60)
    finally:
        bed.link("node1", up=True)
    print(f"the node was dead after {waited:.0f} s")
    bed.processes["node1"].wait(60)  # the node learns that Ray considers it dead and ends; its supervisor restarts it
    bed.deploy("node1")


def test_a_killed_node_is_declared_dead_within_seconds(bed: Bed) -> None:
    bed.crash("node2")
    try:
        wait_for(lambda: bed.ray_nodes()[bed.addresses["node2"]] == "DEAD", "node2 is dead", timeout=20)
    finally:
        bed.deploy("node2")


def test_a_node_finishes_its_tasks_after_sigterm(bed: Bed) -> None:
    code = """
        import ray, time
        ray.init(log_to_driver=False)
        @ray.remote(num_cpus=1, resources={"node:%s": 0.01}, max_retries=0)
        def work():
            print("begun", flush=True)
            open("%s", "w").close()
            time.sleep(8)
            return "done"
        print(ray.get(work.remote()))
    """
    begun = bed.folder / "begun"
    code = textwrap.dedent(code) % (bed.addresses["node2"], begun)
    driver = bed.spawn("head", "driver", ["python", "-c", code], env=bed.driver_env)
    try:
        wait_for(begun.exists, "the task")
        bed.kill("node2", signal.SIGTERM)
        assert driver.wait(30) == 0, bed.log("driver")
        assert "done" in bed.log("driver")
    finally:
        bed.deploy("node2")


def test_a_request_to_a_broken_storage_is_answered_with_503(bed: Bed) -> None:
    url = bed.settings("head")["AWS_ENDPOINT_URL"]
    bed.storage_fails(True)
    try:
        assert bed.fetch(url)[0] == 503
    finally:
        bed.storage_fails(False)
    assert bed.fetch(url)[0] == 200
