"""Test the `mnist-pipe` command: its output, its exit codes, and that it is fast."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageDraw

from mnist_pipe import paths
from mnist_pipe.atomic import write_json
from mnist_pipe.local import services
from pipelines import cli
from tests.support.registry import MakeCandidate, register

MNIST_PIPE = [sys.executable, "-m", "pipelines.cli"]
NO_SERVICES = [
    "prefect      not running; start it with: mnist-pipe up",
    "ray          not running; start it with: mnist-pipe up",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty project, with a folder deep inside it as the working directory."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "some" / "folder")
    return tmp_path


def mnist_pipe(*arguments: str) -> tuple[int, list[str], list[str]]:
    done = subprocess.run([*MNIST_PIPE, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_status_works_in_a_subfolder_and_exits_3_when_nothing_runs(project: Path) -> None:
    assert mnist_pipe("status") == (3, NO_SERVICES, [])
    assert {path.name for path in project.iterdir()} == {"params.yaml", "dvc.yaml", "some"}


@pytest.mark.parametrize("alive", [True, False])
def test_status_of_a_failed_service_names_its_log_and_a_remedy(project: Path, alive: bool) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        created = psutil.Process(ended.pid).create_time()
        (project / "secret").touch()
        service = services.Service(
            name="ray", pid=ended.pid, created=created, port=1, address="127.0.0.1:1", url="http://127.0.0.1:1",
            secret=str(project / "secret"), log=str(project / ".state/logs/ray.log"), folder="",
        )  # fmt: skip
        write_json(project / paths.SERVICES, {"ray": asdict(service)})
        if not alive:
            ended.kill()
            ended.wait()
        how, fix = (
            ("runs, but does not answer", "mnist-pipe down, then mnist-pipe up") if alive else ("died", "mnist-pipe up")
        )
        line = f"ray          {how}; see ../../.state/logs/ray.log and run: {fix}"
        assert mnist_pipe("status") == (3, [NO_SERVICES[0], line], [])
    finally:
        ended.kill()
        ended.wait()


def test_outside_of_a_project_the_error_names_the_folder_to_change_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mnist_pipe("status") == (
        2,
        [],
        [
            f"{tmp_path}: the folder must be in a mnist-pipe project, but got no params.yaml above it; "
            "change to the folder that holds params.yaml and dvc.yaml"
        ],
    )


@pytest.mark.usefixtures("project")
def test_an_unknown_command_is_one_line() -> None:
    code, output, [line] = mnist_pipe("stats")
    assert (code, output) == (2, [])
    assert line == (
        "mnist-pipe: argument COMMAND: invalid choice: 'stats' (choose from 'up', 'down', 'status', "
        "'dashboards', 'doctor', 'deploy', 'predict', 'score', 'serve', 'summary'); see mnist-pipe --help"
    )


@pytest.mark.parametrize("arguments", [["summary"], ["--debug", "summary"], ["summary", "--debug"]])
def test_debug_shows_the_traceback_before_or_after_the_command(project: Path, arguments: list[str]) -> None:
    _, _, lines = mnist_pipe(*arguments)
    message = f"{project / paths.REGISTRATION} does not exist; run: dvc repro"
    if "--debug" in arguments:
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1].endswith(message)
    else:
        assert lines == [message]


@pytest.mark.usefixtures("project")
def test_a_quick_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipelines.cli import main; main(['status'])\n"
        "print({'torch', 'ray', 'prefect', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.timing
@pytest.mark.usefixtures("project")
def test_status_takes_half_a_second_at_most() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        mnist_pipe("status")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_causes_no_traceback(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    script = (
        f'"{sys.executable}" -c "import sys, time; time.sleep(0.5); from pipelines.cli import main; sys.exit(main())"'
    )
    done = subprocess.run(["sh", "-c", f"{script} status | true"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_exits_with_130(project: Path) -> None:
    # `down` waits for the lock that this test holds, so that the signal arrives while it runs.
    from mnist_pipe.atomic import locked

    with locked(project / ".state/services.lock", purpose="a test"):
        # A job that a shell starts in the background ignores SIGINT, and so do its children.
        process = subprocess.Popen(
            [*MNIST_PIPE, "down"],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 20
        while not is_waiting_for_a_lock(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")


def is_waiting_for_a_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_file_in_place_of_the_state_folder_is_reported(project: Path) -> None:
    (project / ".state").touch()
    code, _, [line] = mnist_pipe("down")
    assert code == 3
    assert line == f"{project / '.state'}: the path must be readable and writable, but got file exists"


@pytest.mark.usefixtures("project")
def test_doctor_lists_every_check_and_exits_with_the_code_of_its_errors() -> None:
    code, lines, errors = mnist_pipe("doctor")
    assert (code, errors) == (3, [])
    assert [line[6:19].strip() for line in lines] == [
        "python", "packages", "params", "folder", "disk", "shared memory", "versioning", "dvc's lock", "ports",
        "services", "storage", "open files",
    ]  # fmt: skip
    assert {line[6:19].strip() for line in lines if line.startswith("FAIL")} == {"params", "versioning"}


# --- summary


def score(correct: int, rows: int, low: float, high: float) -> dict[str, Any]:
    return {"accuracy": correct / rows, "interval": [low, high], "num_rows": rows}


@pytest.fixture
def finished(project: Path) -> Path:
    write_json(
        project / paths.REGISTRATION,
        {
            "name": "mnist-classifier",
            "version": 3,
            "alias": "champion",
            "reason": "Every gate passed, so the candidate is the new champion.",
            "tracking_uri": "sqlite:///.state/mlflow.db",
        },
    )
    write_json(
        project / paths.EVALUATION,
        {
            "dataset": "mnist",
            "fallback_for": None,
            "confidence": 0.95,
            "validation": score(4970, 5000, 0.9915, 0.9958),
            "test": score(9943, 10000, 0.9926, 0.9956),
        },
    )
    write_json(project / paths.TIMINGS, {"train": 61.5, "ingest": 1.25})
    return project


def test_the_summary_names_the_model_its_accuracy_and_the_dashboards(finished: Path) -> None:
    code, lines, errors = mnist_pipe("summary")
    assert (code, errors) == (0, [])
    assert lines == [
        "registered   mnist-classifier version 3, alias champion",
        "             Every gate passed, so the candidate is the new champion.",
        "validation   accuracy 99.40 %, 95 % interval 99.15 to 99.58 %, 5,000 images",
        "test         accuracy 99.43 %, 95 % interval 99.26 to 99.56 %, 10,000 images",
        "time         ingest 1.2 s, train 1 min 2 s, total 1 min 3 s",
        f"report       {finished / 'reports/index.html'}",
        *NO_SERVICES,
        "dashboards   mnist-pipe dashboards   also starts TensorBoard and MLflow, and checks every page",
        "stop         mnist-pipe down",
    ]


def test_the_summary_announces_a_fallback_first_and_last(finished: Path) -> None:
    evaluation = {
        "dataset": "digits",
        "fallback_for": "mnist",
        "confidence": 0.9,
        "validation": score(9, 10, 0.6, 0.98),
        "test": score(10, 10, 0.7, 1.0),
    }
    write_json(finished / paths.EVALUATION, evaluation)
    _, lines, _ = mnist_pipe("summary")
    loud = (
        "FALLBACK     mnist could not be downloaded; all results are for digits. "
        "To retry, run: dvc repro --force ingest"
    )
    assert lines[0] == lines[-1] == loud
    assert "test         accuracy 100.00 %, 90 % interval 70.00 to 100.00 %, 10 images" in lines


def test_the_summary_of_a_failed_candidate_gives_the_reason(finished: Path) -> None:
    write_json(
        finished / paths.REGISTRATION,
        {
            "name": "mnist-classifier",
            "version": 4,
            "alias": None,
            "reason": "The champion gate failed: p = 0.4 is not below 0.05.",
            "tracking_uri": "https://mlflow.example",
        },
    )
    _, lines, _ = mnist_pipe("summary")
    assert lines[:2] == [
        "registered   mnist-classifier version 4, without an alias",
        "             The champion gate failed: p = 0.4 is not below 0.05.",
    ]
    assert "mlflow       https://mlflow.example" in lines


def test_a_summary_of_incomplete_reports_is_one_line(finished: Path) -> None:
    write_json(finished / paths.EVALUATION, {"dataset": "mnist", "fallback_for": None})
    code, output, [line] = mnist_pipe("summary")
    assert (code, output) == (4, [])
    assert line == f"{finished / 'reports'}: a report is incomplete: KeyError 'validation'; run: dvc repro"


# --- predict


def test_predict_prints_digit_and_probabilities_and_skips_invalid_files(
    registry_root: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    register(registry_root, make_candidate(1, 40))
    for name in ("params.yaml", "dvc.yaml"):
        (registry_root / name).touch()
    monkeypatch.chdir(registry_root)
    image = Image.new("L", (60, 90), 255)
    ImageDraw.Draw(image).line((15, 10, 45, 10, 25, 80), fill=0, width=8)
    image.save("seven.png")
    Path("text.png").write_text("hello")
    capsys.readouterr()
    assert cli.main(["predict", "text.png", "seven.png"]) == 2
    output, errors = capsys.readouterr()
    assert errors == "text.png: the file must be a PNG or JPEG image, but got bytes that start with b'hello'\n"
    head, *shares = output.rstrip("\n").split("  ")
    probabilities = [float(share.split(":")[1]) for share in shares if share.strip()]
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    digit = max(range(10), key=probabilities.__getitem__)
    assert head == f"seven.png: {digit} ({100 * max(probabilities):.2f} %)"


@pytest.mark.usefixtures("project")
def test_predict_without_a_champion_is_one_line() -> None:
    assert mnist_pipe("predict", "x.png") == (
        3, [], ["no champion is registered yet; run: dvc repro"],
    )  # fmt: skip


@pytest.mark.usefixtures("project")
def test_predict_without_an_image_is_one_line() -> None:
    code, _, lines = mnist_pipe("predict")
    line = "mnist-pipe predict: the following arguments are required: IMAGE; see mnist-pipe predict --help"
    assert (code, lines) == (2, [line])


@pytest.mark.usefixtures("project")
def test_the_installed_command_runs_this_code() -> None:
    command = Path(sys.executable).with_name("mnist-pipe")
    done = subprocess.run([command, "status"], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout.splitlines()) == (3, NO_SERVICES)
