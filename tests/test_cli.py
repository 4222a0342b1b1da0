"""Test the `mnist-pipe` command: its output, its exit codes, and that it is fast."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw

from mnist_pipe import paths, timings
from mnist_pipe.atomic import write_json
from mnist_pipe.data.pictures import FORMATS
from mnist_pipe.local import services
from pipelines import cli
from tests.support import ROOT
from tests.support.registry import NAME, MakeCandidate, register
from tests.support.services import dead_server

MNIST_PIPE = [sys.executable, "-m", "pipelines.cli"]
NO_SERVICES = [
    "prefect      not running; start it with: mnist-pipe up",
    "ray          not running; start it with: mnist-pipe up",
]
STOPPED = {
    "state": "stopped", "url": None, "credential": None, "secret_file": None, "log": None, "start": "mnist-pipe up",
}  # fmt: skip


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


def in_json(command: str) -> tuple[int, Any, list[str]]:
    """Run a command with `--json` and return its exit code, its parsed output and its errors."""
    code, lines, errors = mnist_pipe(command, "--json")
    return code, json.loads("\n".join(lines)), errors


def test_status_works_in_a_subfolder_and_exits_3_when_nothing_runs(project: Path) -> None:
    assert mnist_pipe("status") == (3, NO_SERVICES, [])
    assert {path.name for path in project.iterdir()} == {"params.yaml", "dvc.yaml", "some"}


@pytest.mark.usefixtures("project")
def test_status_as_json_has_the_state_of_each_service_and_the_same_exit_code() -> None:
    code, value, errors = in_json("status")
    assert (code, errors) == (3, [])
    assert value == {"services": {"prefect": STOPPED, "ray": STOPPED}}


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
            ("runs, but does not answer", "mnist-pipe down && mnist-pipe up") if alive else ("died", "mnist-pipe up")
        )
        line = f"ray          {how}; see ../../.state/logs/ray.log and run: {fix}"
        assert mnist_pipe("status") == (3, [NO_SERVICES[0], line], [])
        _, value, _ = in_json("status")
        state, log = ("silent" if alive else "dead"), str(project / ".state/logs/ray.log")
        assert value["services"]["ray"] == {**STOPPED, "state": state, "log": log, "start": fix}
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
        "'dashboards', 'doctor', 'deploy', 'predict', 'score', 'export', 'serve', 'summary', 'completion'); "
        "see mnist-pipe --help"
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
        "print({'torch', 'ray', 'prefect', 'mlflow', 'numpy', 'pydantic', 'shtab'} & set(sys.modules))"
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
    return any(file.path.endswith("/services.lock") for file in psutil.Process(pid).open_files())


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
        "python", "packages", "gpu", "params", "folder", "temporary", "disk", "shared memory", "versioning",
        "dvc's lock", "dvc's cache", "dvc's objects", "ports", "services", "metrics", "settings", "storage",
        "registry", "open files",
    ]  # fmt: skip
    assert {line[6:19].strip() for line in lines if line.startswith("FAIL")} == {"params", "versioning"}


@pytest.mark.usefixtures("project")
def test_doctor_as_json_has_the_text_and_the_code_of_each_check() -> None:
    code, lines, _ = mnist_pipe("doctor")
    code_as_json, value, errors = in_json("doctor")
    assert (code_as_json, errors) == (code, [])
    assert list(value) == ["checks"]
    shown = [f"{'FAIL' if c['exit_code'] else 'ok':4}  {name:13}  {c['text']}" for name, c in value["checks"].items()]
    free = re.compile(r"[\d,]+ MB free")  # of a disk that others write to
    assert [free.sub("", line) for line in shown] == [free.sub("", line) for line in lines]
    assert max(check["exit_code"] for check in value["checks"].values()) == code


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
    known = {"name": "mnist-classifier", "version": 3, "run_id": "a1", "content_sha256": "b2"}
    write_json(project / paths.RESOLVED, {"database": [], "models": {"mnist-classifier/3": known}})
    timings.record("ingest", seconds=1.25, root=project)
    timings.record("train", seconds=61.5, root=project)
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


def test_the_summary_as_json_has_the_facts_of_the_text(finished: Path) -> None:
    code, value, errors = in_json("summary")
    assert (code, errors) == (0, [])
    assert value == {
        "registered": {
            "name": "mnist-classifier",
            "version": 3,
            "alias": "champion",
            "reason": "Every gate passed, so the candidate is the new champion.",
        },
        "tracking_uri": "sqlite:///.state/mlflow.db",
        "dataset": "mnist",
        "fallback_for": None,
        "confidence": 0.95,
        "validation": {"accuracy": 0.994, "interval": [0.9915, 0.9958], "num_rows": 5000},
        "test": {"accuracy": 0.9943, "interval": [0.9926, 0.9956], "num_rows": 10000},
        "seconds": {"ingest": 1.25, "train": 61.5},
        "report": str(finished / "reports/index.html"),
        "services": {"prefect": STOPPED, "ray": STOPPED},
    }


@pytest.mark.usefixtures("project")
def test_an_error_with_json_is_still_one_line_and_no_document() -> None:
    assert mnist_pipe("summary", "--json") == mnist_pipe("summary")


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
        "To retry, run: dvc repro --force ingest && dvc repro"
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
    assert mnist_pipe("summary", "--json") == (code, output, [line])
    assert (code, output) == (4, [])
    assert line == f"{finished / 'reports'}: a report is incomplete: KeyError 'validation'; run: dvc repro"


def test_a_summary_of_what_the_registry_lost_is_an_error(finished: Path) -> None:
    (finished / paths.RESOLVED).unlink()
    code, output, [line] = mnist_pipe("summary")
    assert (code, output) == (4, [])
    remedy = "run: rm reports/registration.json && dvc repro"
    assert line == f"sqlite:///.state/mlflow.db: mnist-classifier/3 is not registered any more; {remedy}"


@pytest.mark.services
def test_deploy_to_a_silent_server_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_server(silent=True) as port:
        (project / ".env").write_text(f"PREFECT_API_URL=http://127.0.0.1:{port}/api\n")
        monkeypatch.setenv("MNIST_PIPE_WORK_POOL", "pool")
        code, output, [line] = mnist_pipe("deploy")
    assert (code, output) == (3, [])
    assert line.startswith(f"{project}/.env: PREFECT_API_URL: http://127.0.0.1:{port}/api does not answer: no reply; ")


# --- predict


@pytest.fixture
def predicting(registry_root: Path, make_candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Project with a champion, two pictures and a file that is none, as the working directory."""
    register(registry_root, make_candidate(1, 40))
    for name in ("params.yaml", "dvc.yaml"):
        (registry_root / name).touch()
    monkeypatch.chdir(registry_root)
    image = Image.new("L", (60, 90), 255)
    ImageDraw.Draw(image).line((15, 10, 45, 10, 25, 80), fill=0, width=8)
    image.save("seven.png")
    both = Image.new("L", (160, 90), 255)
    both.paste(image, (0, 0))
    both.paste(image, (100, 0))
    both.save("both.png")
    Path("text.png").write_text("hello")
    return registry_root


def shares_of(line: str) -> tuple[str, dict[str, float]]:
    """Return what stands before the probabilities of a line, and the probabilities by label."""
    head, *shares = line.strip().split("  ")
    return head, {label.strip(): float(share) for label, share in (part.split(": ") for part in shares)}


@pytest.mark.usefixtures("predicting")
def test_predict_prints_digit_and_probabilities_and_skips_invalid_files(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["predict", "text.png", "seven.png"]) == 2
    output, errors = capsys.readouterr()
    assert errors == f"text.png: the file must be {FORMATS}, but got bytes that start with b'hello'\n"
    head, probabilities = shares_of(output.rstrip("\n"))
    assert list(probabilities) == [*"0123456789"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
    digit = max(probabilities, key=probabilities.__getitem__)
    assert head == f"seven.png: {digit} ({100 * max(probabilities.values()):.2f} %)"


@pytest.mark.usefixtures("predicting")
def test_predict_prints_a_number_and_then_its_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "seven.png", "both.png"]) == 0
    one, number, *digits = capsys.readouterr().out.splitlines()
    head, probabilities = shares_of(one.removeprefix("seven.png: "))
    digit = max(probabilities, key=probabilities.__getitem__)
    assert number.startswith(f"both.png: {digit}{digit} (")
    percent = float(number.split("(")[1].removesuffix(" %)"))
    assert percent == pytest.approx(100 * max(probabilities.values()) ** 2, abs=0.02)
    assert [shares_of(line) for line in digits] == [(head, probabilities)] * 2
    assert all(line.startswith(f"  {digit}") for line in digits)


@pytest.mark.usefixtures("predicting")
def test_predict_abstains_below_the_smallest_confidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "both.png", "--min-confidence", "1"]) == 0
    number, *digits = capsys.readouterr().out.splitlines()
    assert number.startswith("both.png: ?? (")
    assert [line[:5] for line in digits] == ["  ? ("] * 2


@pytest.mark.usefixtures("predicting")
def test_predict_writes_a_line_of_json_for_each_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "text.png", "seven.png", "both.png", "--json"]) == 2
    one, both = map(json.loads, capsys.readouterr().out.splitlines())
    [found] = one["predictions"]
    assert (one["path"], one["model"], one["text"]) == ("seven.png", f"{NAME}/1", found["label"])
    assert found["probability"] == max(found["probabilities"].values()) == found["probabilities"][found["label"]]
    assert found["class"] == int(found["label"])
    assert [digit["label"] for digit in both["predictions"]] == [found["label"]] * 2
    shift = np.subtract(both["predictions"][1]["box"], both["predictions"][0]["box"])
    assert shift.tolist() == [100, 0, 100, 0]
    assert cli.main(["predict", "seven.png", "--json", "--min-confidence", "1"]) == 0
    [unsure] = json.loads(capsys.readouterr().out)["predictions"]
    assert (unsure["label"], unsure["class"], unsure["probabilities"]) == ("?", None, found["probabilities"])


@pytest.mark.usefixtures("predicting")
def test_predict_writes_a_row_of_csv_for_each_digit(capsys: pytest.CaptureFixture[str]) -> None:
    Path("seven.png").rename("a, b.png")
    assert cli.main(["predict", "text.png", "a, b.png", "both.png", "--csv"]) == 2
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert cli.main(["predict", "a, b.png", "both.png", "--json"]) == 0
    pictures = map(json.loads, capsys.readouterr().out.splitlines())
    expected = [(one["path"], n, found) for one in pictures for n, found in enumerate(one["predictions"])]
    assert [(line["path"], int(line["position"])) for line in table] == [(path, n) for path, n, _ in expected]
    for line, (_, _, found) in zip(table, expected, strict=True):
        assert (line["model"], line["label"], int(line["class"])) == (f"{NAME}/1", found["label"], found["class"])
        assert [int(line[side]) for side in ("left", "top", "right", "bottom")] == found["box"]
        assert float(line[f"probability of {found['label']}"]) == float(line["probability"]) == found["probability"]


@pytest.mark.usefixtures("predicting")
def test_predict_draws_the_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "both.png", "--show", "shown.png", "--json"]) == 0
    boxes = [found["box"] for found in json.loads(capsys.readouterr().out)["predictions"]]
    shown = np.asarray(Image.open("shown.png").convert("RGB")).astype(int)
    zoom = shown.shape[1] // 160
    margin = shown.shape[0] - 90 * zoom
    green = (shown[:, :, 1] - shown[:, :, 0] > 60)[margin:]
    for left, top, right, bottom in boxes:
        assert green[zoom * top : zoom * bottom, [zoom * left, zoom * right - 1]].all()
        assert green[[zoom * top, zoom * bottom - 1], zoom * left : zoom * right].all()
        green[zoom * top : zoom * bottom, zoom * left : zoom * right] = False
    assert green.any()  # the labels


WRONG, HELP = "mnist-pipe predict:", "see mnist-pipe predict --help"


@pytest.mark.usefixtures("predicting")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seven.png", "--show", "x.png"], "predict: --show must be given with exactly one picture, but got 2"),
        ([".", "--show", "x.png"], "predict: --show must be given with exactly one picture, but got 4"),
        (["--show", "x.gif"], "predict: --show must name a PNG file, but got x.gif"),
        (["--show", "./both.png"], "predict: --show must name another file than the picture, but got both.png"),
        (["--show", "none/x.png"], "predict: --show: none does not exist; create that folder"),
        (["--min-confidence", "nan"], f"{WRONG} argument --min-confidence: must be 0 to 1, but got 'nan'; {HELP}"),
        (["--json", "--csv"], f"{WRONG} argument --csv: not allowed with argument --json; {HELP}"),
    ],
)
def test_a_wrong_option_of_predict_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    assert cli.main(["predict", "both.png", *arguments]) == 2
    assert capsys.readouterr() == ("", f"{message}\n")
    assert sorted(Path().iterdir()) == before


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


# --- completion


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, printed in a folder of no project, as a shell's start-up file does."""
    folder = tmp_path_factory.mktemp("completion")
    done = subprocess.run(
        [*MNIST_PIPE, "completion", "bash"], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr == ""
    (folder / "mnist-pipe.bash").write_text(done.stdout)
    return folder / "mnist-pipe.bash"


def completed(script: Path, *words: str, folder: Path) -> list[str]:
    """Return what bash offers for the last of the words after `mnist-pipe`, when TAB is pressed there."""
    program = """
        source "$1" && shift
        COMP_WORDS=(mnist-pipe "$@") COMP_CWORD=$#
        function=$(complete -p mnist-pipe | sed 's/.* -F \\(\\S*\\) .*/\\1/')
        "$function" mnist-pipe "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", script, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pre"], ["predict"]),
        (["s"], ["score", "serve", "status", "summary"]),
        (["export", "--f"], ["--format"]),
        (["export", "--format", "o"], ["onnx"]),
        (["summary", "--"], ["--debug", "--help", "--json"]),
        (["completion", "z"], ["zsh"]),
        (["predict", "seven.pn"], ["seven.png"]),
        (["predict", "seven.png", "eig"], ["eight.png"]),
        (["score", "sev"], ["seven.parquet", "seven.png"]),
        (["export", "--format", "onnx", "s"], ["scores"]),  # a folder, and no file
    ],
)
def test_bash_completes(completion: Path, tmp_path: Path, words: list[str], offered: list[str]) -> None:
    for name in ("seven.png", "eight.png", "seven.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "scores").mkdir()
    assert completed(completion, *words, folder=tmp_path) == offered


def test_bash_offers_every_command_and_no_other_word(completion: Path, tmp_path: Path) -> None:
    assert {word for word in completed(completion, "", folder=tmp_path) if not word.startswith("-")} == {*cli.COMMANDS}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("shell", "sign"), [("zsh", "#compdef mnist-pipe"), ("tcsh", "complete mnist-pipe")])
def test_the_other_shells_have_a_script_with_every_command(shell: str, sign: str) -> None:
    code, lines, errors = mnist_pipe("completion", shell)
    assert (code, errors) == (0, [])
    assert any(line.startswith(sign) for line in lines)
    assert all(any(command in line for line in lines) for command in cli.COMMANDS)


@pytest.mark.usefixtures("project")
def test_an_unknown_shell_is_one_line() -> None:
    code, output, [line] = mnist_pipe("completion", "fish")
    assert (code, output) == (2, [])
    assert line.startswith("mnist-pipe completion: argument shell: invalid choice: 'fish' (choose from 'bash', 'zsh', ")


@pytest.mark.usefixtures("project")
def test_the_installed_command_runs_this_code() -> None:
    command = Path(sys.executable).with_name("mnist-pipe")
    done = subprocess.run([command, "status"], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout.splitlines()) == (3, NO_SERVICES)
