"""Test the DAG through `dvc repro`, as a user runs it, in a temporary clone on the data set that needs no network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import studies
from mnist_pipe import hardware, paths
from mnist_pipe.local import services
from mnist_pipe.models import MODELS
from pipelines import STAGES
from tests.support import ROOT
from tests.support.checkout import SMALL, copy_tree, environment, kill_all, run, set_params, stages_run

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Git clone with its own services, built once from nothing."""
    folder = copy_tree(tmp_path_factory.mktemp("clone") / "main")
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")
    run(folder, "mnist-pipe", "up")
    try:
        (folder / "first.log").write_text(run(folder, "dvc", "repro"))
        [search] = {path.name.partition(".")[0] for path in (folder / paths.RAY_RESULTS).glob("search-*")}
        (folder / "first.search").write_text(search)
        yield folder
    finally:
        run(folder, "mnist-pipe", "down")


@pytest.fixture
def clone(rebuilt: Path) -> Iterator[Path]:
    """Rebuilt clone whose files are restored after the test; the state of its services is not."""
    before = contents(rebuilt)
    commit = run(rebuilt, "git", "rev-parse", "HEAD").strip()
    yield rebuilt
    run(rebuilt, "git", "reset", "-q", commit)
    after = contents(rebuilt)
    for path in after.keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if after.get(path) != content:
            path.write_bytes(content)


@pytest.fixture
def unpacked(clone: Path, tmp_path: Path) -> Path:
    """Copy of the clone's files and outputs, without its history, its services and DVC's records."""
    folder = copy_tree(tmp_path / "unpacked")
    run(folder, "dvc", "config", "--local", "core.no_scm", "true")  # as in the Makefile
    for name in ("data", "models", "reports"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / name)
        shutil.copytree(clone / name, folder / name)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file that the user and the stages write."""
    trees = (path for top in ("data", "models", "reports") for path in (folder / top).rglob("*"))
    return {path: path.read_bytes() for path in (folder / "params.yaml", folder / "dvc.lock", *trees) if path.is_file()}


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every reproducible stage output; the page is not, because it shows durations."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content).hexdigest()
        for path, content in contents(folder).items()
        if path.name not in ("index.html", "registration.json", ".gitignore", "params.yaml", "dvc.lock")
    }


def test_every_stage_ran_once_in_order(clone: Path) -> None:
    ran = stages_run((clone / "first.log").read_text())
    assert sorted(ran) == sorted(STAGES)
    assert [stage for stage in ran if stage not in ("baseline", "search")] == [
        stage for stage in STAGES if stage not in ("baseline", "search")
    ]


def test_the_registered_model_is_named_after_the_data_set(clone: Path) -> None:
    registration = json.loads((clone / "reports/registration.json").read_text())
    assert registration["name"] == "digits-classifier"
    assert registration["version"] == 1
    assert len(registration["lineage"]["git_revision"]) == 40
    assert [gate["name"] for gate in registration["gates"]] == ["baseline", "calibration", "champion"]


def test_the_candidate_beats_the_baseline_on_real_scans(clone: Path) -> None:
    evaluation = json.loads((clone / "reports/evaluation.json").read_text())
    assert evaluation["test"]["accuracy"] > 0.9
    assert evaluation["test"]["accuracy"] > evaluation["baseline"]["test"]["accuracy"]


def test_a_second_repro_does_nothing(clone: Path) -> None:
    compiled = clone / "mnist_pipe/models/__pycache__/stray.pyc"  # a stray file, which must not count as code
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"")
    output = run(clone, "dvc", "repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output


def in_prefect(clone: Path, *lines: str) -> str:
    """Return what the lines print, which have Prefect's `client` and the `flows` by id."""
    code = (
        "import os; from pathlib import Path; from mnist_pipe.local import services;"
        "os.environ.update(services.environment(Path.cwd()));"
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client:\n"
        "    flows = {f.id: f.name for f in client.read_flows()}\n"
    )
    return run(clone, sys.executable, "-c", code + "".join(f"    {line}\n" for line in lines))


def test_prefect_has_a_completed_flow_run_per_stage_with_rays_name(clone: Path) -> None:
    line = "for r in client.read_flow_runs(): print('RUN', flows[r.flow_id], r.state.type.value, r.name)"
    runs = {tuple(line.split()[1:]) for line in in_prefect(clone, line).splitlines() if "RUN" in line}
    assert {(stage, "COMPLETED") for stage in STAGES} <= {(stage, state) for stage, state, _ in runs}
    assert ("search", "COMPLETED", (clone / "first.search").read_text()) in runs


def test_a_flow_run_links_only_to_what_is_there(clone: Path) -> None:
    output = in_prefect(
        clone,
        "run_of = {r.id: flows[r.flow_id] for r in client.read_flow_runs()}",
        "for a in client.read_artifacts(): print('ARTIFACT', run_of[a.flow_run_id], a.key, a.data)",
    )
    found = dict(re.findall(r"^ARTIFACT (\w+ \S+) (.*)$", output, re.MULTILINE))
    assert found["report report"] == f"[Report]({(clone / paths.REPORT).as_uri()})"
    curves = re.fullmatch(r"\[TensorBoard: .*\]\(file://(.+)\)", found["search tensorboard"])
    assert curves  # TensorBoard does not run, but its folder is there
    assert (Path(curves[1]) / "trial-1").is_dir()
    assert (float(found["search search"]), float(found["train train"])) == (100, 100)
    assert not [name for name in found if name.endswith(" mlflow-run")]  # no server shows the registry


def test_ray_names_the_search_and_training_and_logs_every_trial(clone: Path) -> None:
    [head] = [service for _, service in services.status(clone).values() if service and service.name == "ray"]
    authorization = {"Authorization": services.authorization(head)}

    def fetch_json(path: str) -> Any:
        with urllib.request.urlopen(
            urllib.request.Request(head.url + path, headers=authorization), timeout=30
        ) as reply:
            return json.load(reply)

    search = (clone / "first.search").read_text()
    names = {job["metadata"].get("job_name") for job in fetch_json("/api/jobs/")}
    assert search in names
    assert any(re.fullmatch("train-[0-9a-f]{12}", name) for name in names)
    trainers = [
        actor for actor in fetch_json("/logical/actors")["data"]["actors"].values() if actor["reprName"] == search
    ]
    assert len(trainers) == 1  # one actor ran every trial
    log = next(Path(head.folder).glob(f"session_latest/logs/worker-*-{trainers[0]['pid']}.out")).read_text()
    for trial in range(1, SMALL["search.num_trials"] + 1):
        assert f"trial {trial}: model " in log
        assert f"trial {trial}: epoch 1/2: train loss " in log


def test_one_changed_key_reruns_only_what_depends_on_it(clone: Path) -> None:
    set_params(clone, **{"register.max_p_value_against_champion": 0.04})
    assert stages_run(run(clone, "dvc", "repro")) == ["register", "report"]


def test_a_forced_repro_gives_the_same_bytes(clone: Path) -> None:
    before = digests(clone)
    for stage in ("ingest", "normalize", "baseline", "evaluate"):  # test_search.py covers search, another test train
        assert stages_run(run(clone, "dvc", "repro", "--force", "--single-item", stage)) == [stage]
    assert digests(clone) == before
    assert any(name.endswith(".safetensors") for name in before)


def test_dvc_metrics_params_plots_and_experiments_work(clone: Path) -> None:
    assert "reports/metrics.json" in run(clone, "dvc", "metrics", "show")
    assert "search" in run(clone, "dvc", "dag")
    set_params(clone, **{"search.num_trials": 3})
    assert "search.num_trials" in run(clone, "dvc", "params", "diff")
    set_params(clone, **{"search.num_trials": SMALL["search.num_trials"]})
    page = run(clone, "dvc", "plots", "show").splitlines()[-1].removeprefix("file://")
    assert "vega" in Path(page).read_text()
    run(clone, "git", "add", "-A")
    run(clone, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "results")
    assert stages_run(run(clone, "dvc", "exp", "run", "search", "-S", "search.num_trials=2")) == ["search"]
    assert "search.num_trials" in run(clone, "dvc", "params", "diff", "HEAD")


def test_the_summary_names_the_model_the_report_and_how_to_stop(clone: Path) -> None:
    summary = run(clone, "mnist-pipe", "summary")
    for part in ("digits-classifier version", "validation", "test", "reports/index.html", "mnist-pipe down", "http://"):
        assert part in summary


@pytest.mark.slow
def test_an_interrupted_train_resumes_and_leaves_no_process(clone: Path) -> None:
    expected = hashlib.sha256((clone / "models/candidate/model.safetensors").read_bytes()).hexdigest()
    # Ctrl-C in a terminal reaches the whole process group, a scheduler's SIGTERM reaches only dvc, and a power cut
    # leaves no process to clean up.
    first = interrupt(clone, stop=lambda process: os.killpg(process.pid, signal.SIGINT))
    second = interrupt(clone, stop=lambda process: process.send_signal(signal.SIGTERM))
    third = interrupt(clone, stop=kill_all)
    fourth = run(clone, *RETRAIN)
    shown = [int(epoch) for log in (first, second, third, fourth) for epoch in re.findall(r"- epoch (\d+)/", log)]
    assert shown[0] == 1
    assert shown == sorted(set(shown)), "an epoch that was shown is trained again"
    assert hashlib.sha256((clone / "models/candidate/model.safetensors").read_bytes()).hexdigest() == expected


@pytest.mark.slow
@pytest.mark.timing
def test_an_interrupted_train_exits_within_seconds(clone: Path) -> None:
    interrupt(clone, stop=lambda process: os.killpg(process.pid, signal.SIGINT), seconds=5)


RETRAIN = ("dvc", "repro", "--force", "--single-item", "train")


def interrupt(clone: Path, *, stop: Callable[[subprocess.Popen[bytes]], None], seconds: float = 60) -> str:
    """Train until an epoch is printed, `stop` dvc, and return the output; all processes must end within `seconds`."""
    log = clone / "train.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            RETRAIN, cwd=clone, env=environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while "- epoch " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    stop(process)
    assert process.wait(timeout=seconds) != 0
    _, alive = psutil.wait_procs(family, timeout=max(0.0, began + seconds - time.monotonic()))
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    return log.read_text()


@pytest.mark.slow
def test_a_stage_without_services_starts_its_own(unpacked: Path) -> None:
    before = {p.pid for p in psutil.process_iter()}
    assert stages_run(run(unpacked, "dvc", "repro", "--force", "--single-item", "search")) == ["search"]
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert [p.info["cmdline"] for p in left if str(unpacked) in " ".join(p.info["cmdline"] or ())] == []


@pytest.mark.slow
def test_the_pipeline_runs_without_git_and_the_lineage_records_it(unpacked: Path) -> None:
    assert stages_run(run(unpacked, "dvc", "repro", "--single-item", "register")) == ["register"]
    lineage = json.loads((unpacked / "reports/registration.json").read_text())["lineage"]
    assert lineage["git_revision"] == "not a git checkout"
    assert lineage["git_dirty"] is None


@pytest.mark.parametrize(
    ("changes", "stage", "code", "line"),
    [
        ({"train.num_workers": 64}, "ingest", 2,
         "params.yaml: train.num_workers must be at most {cpus}, the number of CPUs of this machine, but got 64; "
         "lower it or connect a larger cluster with RAY_ADDRESS"),
        ({"train.use_gpu": True}, "ingest", 2,
         "params.yaml: train.use_gpu must be auto or false without a GPU, but got true, while this machine has none; "
         "`mnist-pipe doctor` says why torch uses none"),
        ({"search.space.model": ["convnet", "resnett"]}, "ingest", 2,
         "params.yaml:{line}: search.space.model[1] must be one of {models}, "
         "but got 'resnett'; did you mean 'resnet'?"),
        ({"models.mlp.hidden": [0]}, "search", 2,
         "params.yaml: models.mlp.hidden[0] must be >= 1, but got 0"),
    ],
    ids=["workers", "gpu", "model", "arguments"],
)  # fmt: skip
def test_preflight_errors_are_one_line_before_work_starts(
    tmp_path: Path, changes: dict[str, object], stage: str, code: int, line: str
) -> None:
    folder = copy_tree(tmp_path / "main")
    set_params(folder, **changes)
    output = run(folder, sys.executable, "-m", "pipelines", stage, code=code)
    number = next(
        (n for n, text in enumerate((folder / "params.yaml").read_text().splitlines(), 1) if "resnett" in text), 0
    )
    assert output == line.format(cpus=hardware.num_cpus(), line=number, models=", ".join(sorted(MODELS))) + "\n"
    assert not (folder / "data").exists()


def test_an_error_within_a_flow_is_one_line_too(tmp_path: Path) -> None:
    folder = copy_tree(tmp_path / "main")
    for split in ("train", "test"):
        path = folder / paths.RAW / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no table")
    output = run(folder, sys.executable, "-m", "pipelines", "normalize", code=4)
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if "must be Parquet" in line]
    assert line.startswith(f"{paths.RAW}/train.parquet: the file must be Parquet, but got ")
    assert line.endswith("; run: dvc repro --force ingest")


@pytest.mark.timing
def test_preflight_errors_are_reported_within_seconds(tmp_path: Path) -> None:
    folder = copy_tree(tmp_path / "main")
    set_params(folder, **{"train.num_workers": 64})
    began = time.monotonic()
    run(folder, sys.executable, "-m", "pipelines", "ingest", code=2)
    assert time.monotonic() - began < 5


def test_an_unknown_stage_is_reported_in_one_line() -> None:
    output = run(ROOT, sys.executable, "-m", "pipelines", "trian", code=2)
    known = ", ".join(sorted([*STAGES, *studies.STAGES]))
    assert output == f"python -m pipelines: stage must be one of {known}, but got 'trian'; did you mean 'train'?\n"
