"""Test `dvc repro` on a client whose stages run on the cluster."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.cluster.bed import SERVICES, Bed, wait_for
from tests.cluster.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STAGES = ("ingest", "normalize", "baseline", "search", "train", "evaluate", "register", "report")


@pytest.mark.usefixtures("project")
def test_deploying_twice_changes_nothing(bed: Bed) -> None:
    def deployments() -> dict[str, dict[str, object]]:
        volatile = ("updated", "status", "last_polled")
        return {
            entry["entrypoint"]: {key: value for key, value in entry.items() if key not in volatile}
            for entry in bed.prefect("deployments/filter", body={})
            if entry["entrypoint"].startswith("pipelines.")
        }

    before = deployments()
    assert {entry["name"] for entry in before.values()} == {"cpu"}
    assert len(before) == len(STAGES) + 2
    # From the same checkout: Prefect takes a deployment's version from the commit.
    done = bed.script("deployments")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"deployed {name}/cpu" for name in (*STAGES, "study", "rebuild")]
    after = deployments()
    assert after.keys() == before.keys()
    for entrypoint, entry in before.items():
        changed = {
            key: (value, after[entrypoint][key]) for key, value in entry.items() if after[entrypoint][key] != value
        }
        assert changed == {}, entrypoint


def test_the_client_registers_a_champion(bed: Bed, rebuilt: str, project: Project) -> None:
    registration = json.loads((project.folder / "reports/registration.json").read_text())
    assert (registration["version"], registration["alias"]) == (1, "champion"), registration["reason"]
    assert registration["tracking_uri"] == bed.mlflow_url
    url = f"{bed.mlflow_url}/api/2.0/mlflow/registered-models/alias?name={registration['name']}&alias=champion"
    status, text = bed.fetch(url, headers=bed.mlflow_headers)
    assert status == 200
    assert json.loads(text)["model_version"]["version"] == "1"
    revision = project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert registration["lineage"]["git_revision"] == revision
    predicted = project.run("mnist-pipe", "summary")
    assert predicted.returncode == 0, predicted.stderr
    assert rebuilt.count("Running stage") == len(STAGES)


def test_the_training_and_the_search_ran_on_both_nodes(bed: Bed, rebuilt: str) -> None:
    nodes = {bed.addresses["node1"], bed.addresses["node2"]}
    workers = re.search(r"2 workers: (\S+), (\S+)", rebuilt)
    assert workers
    assert set(workers.groups()) == nodes
    assert set(re.findall(r"trial \d+ of \d+ on (\S+):", rebuilt)) == nodes


def test_a_second_repro_does_nothing_and_contacts_no_server(rebuilt: str, project: Project) -> None:
    assert rebuilt
    assert "up to date" in project.run("dvc", "status", "dvc.yaml").stdout
    nowhere = "http://10.77.0.99:1"
    done = project.run(
        "dvc",
        "repro",
        env={"PREFECT_API_URL": f"{nowhere}/api", "AWS_ENDPOINT_URL": nowhere, "MLFLOW_TRACKING_URI": nowhere},
    )
    assert done.returncode == 0
    assert "Data and pipelines are up to date" in done.stdout + done.stderr


def test_every_stage_is_one_completed_flow_run(bed: Bed, rebuilt: str) -> None:
    runs = {run["name"]: run["state_name"] for run in bed.prefect("flow_runs/filter", body={"limit": 200})}
    for stage in STAGES:
        name = re.search(rf"({stage}-[0-9a-f]{{12}}): Completed", rebuilt)
        assert name, stage
        assert runs[name[1]] == "Completed"


def test_a_second_request_joins_the_flow_run_that_is_running(bed: Bed, checkout: Project) -> None:
    checkout.set(baseline__num_epochs=4, baseline__seed=1)
    command = ["python", "-m", "pipelines", "baseline"]
    bed.spawn("client", "first", command, cwd=checkout.folder)
    wait_for(lambda: "Running" in bed.log("first"), "the first client", timeout=90)
    name = re.search(r"baseline-[0-9a-f]{12}", bed.log("first"))
    assert name
    bed.crash("client")
    second = bed.run("client", command, cwd=checkout.folder, timeout=300)
    assert second.returncode == 0, second.stderr
    runs = [run["name"] for run in bed.prefect("flow_runs/filter", body={"limit": 200})]
    assert runs.count(name[0]) == 1
    assert f"{name[0]}.1" not in runs
    assert (checkout.folder / "reports/baseline.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_client_cancels_the_run(number: signal.Signals, bed: Bed, checkout: Project) -> None:
    checkout.set(baseline__num_epochs=500, baseline__seed=int(number))
    name = f"stopped-{number}"
    process = bed.spawn("client", name, ["python", "-m", "pipelines", "baseline"], cwd=checkout.folder)
    wait_for(lambda: "Running" in bed.log(name), name, timeout=90)
    run = re.search(r"(baseline-[0-9a-f]{12}): Running", bed.log(name))
    assert run
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert "cancelled: http" in bed.log(name)
    seconds = wait_for(lambda: bed.run_state(run[1]) == "Cancelled", "the run to be cancelled")
    print(f"cancelled after {seconds:.1f} s")


def test_a_remote_error_is_one_line_with_its_exit_code(checkout: Project) -> None:
    checkout.set(ingest__dataset="idx", ingest__name="mine", ingest__path="/nowhere")
    done = checkout.run("python", "-m", "pipelines", "ingest")
    checkout.set(ingest__dataset="mnist", ingest__name=None, ingest__path="inputs")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ingest.path: /nowhere does not exist")
    assert re.search(r"\(failed on the cluster: http://10\.77\.0\.2:4200/runs/flow-run/[0-9a-f-]{36}\)$", last)


def test_logs_parameters_and_objects_contain_no_secret(bed: Bed, rebuilt: str, project: Project) -> None:
    assert rebuilt
    texts = {f"log of {name}": bed.log(name) for name in SERVICES}
    texts["the client"] = rebuilt
    texts["flow runs"] = json.dumps(bed.prefect("flow_runs/filter", body={"limit": 200}))
    texts["logs in Prefect"] = json.dumps(
        [line for page in range(20) for line in bed.prefect("logs/filter", body={"limit": 200, "offset": 200 * page})]
    )
    for path in (project.folder / "reports").rglob("*.json"):
        texts[str(path)] = path.read_text()
    with bed.inside("client"):
        s3 = bed.s3()
        for key in bed.objects():
            if bed.objects()[key] < 2_000_000:
                body = s3.get_object(Bucket="mnist-pipe", Key=f"bed/{key}")["Body"].read()
                texts[f"object {key}"] = body.decode(errors="replace")
    for path in bed.folder.glob("ray-*/session_*/logs/*"):
        if path.is_file():
            texts[str(path)] = path.read_text(errors="replace")
    leaks = [(where, name) for where, text in texts.items() for name, secret in bed.secrets.items() if secret in text]
    assert leaks == []
