"""Test that no text from outside reaches the terminal with control characters in it."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_pipe import command_line
from mnist_pipe.data.pictures import Picture, read_picture
from mnist_pipe.errors import InputError, UnavailableError, printable
from mnist_pipe.inference import output
from mnist_pipe.inference.predict import Prediction, Reading
from pipelines import __main__ as stage
from tests.support import ROOT

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\r\udcff"
SOURCES = sorted(path for folder in ("mnist_pipe", "pipelines", "studies") for path in (ROOT / folder).rglob("*.py"))


def is_quiet(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_control_characters_are_shown_as_escapes_and_the_rest_as_it_is() -> None:
    assert printable("one\n\ttwo: ä, 手") == "one\n\ttwo: ä, 手"
    assert printable(HOSTILE) == r"a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\r\udcff"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_function_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert len(prints) == (path == ROOT / "mnist_pipe/command_line.py")


def test_the_error_of_a_hostile_name_is_one_quiet_line(tmp_path: Path) -> None:
    name = f"{HOSTILE}\nok  forged.png"
    command = [sys.executable, "-m", "pipelines.cli", "predict", "--show", f"{tmp_path}/{name}/x.png", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    text = done.stderr.decode()
    assert done.returncode == 2
    assert is_quiet(text)
    assert text.count("\n") == 1
    assert "forged.png" in text


def test_every_shape_of_an_error_keeps_a_path_on_its_line() -> None:
    path = Path("a\nb\x1b")
    errors = [
        InputError.invalid(path, "the file", "be a picture", got=path),
        UnavailableError.missing(path, where=path),
        UnavailableError.unreachable(path, cause="x"),
    ]
    assert all(str(error).isprintable() for error in errors)


def test_a_reading_of_a_hostile_name_is_a_quiet_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"{HOSTILE}\n.png".replace("/", "")
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(path)
    picture: Picture = read_picture(path)
    found = Prediction(box=(0, 0, 28, 28), label="1", number=1, probability=1.0, probabilities={"0": 0.0, "1": 1.0})
    reading = Reading(path=path, model="m/1", predictions=[found], picture=picture)
    assert output.to_text(reading).isprintable()
    assert output.to_json(reading).isprintable()
    command_line.show(output.to_csv(reading, header=True))
    assert is_quiet(capsys.readouterr().out)


def test_a_mirrors_words_are_logged_without_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(stage._without_control_characters)
    logging.getLogger("flow").warning("not available from %s", f"http://mirror ({HOSTILE})")
    assert is_quiet(caplog.messages[0])
    assert "http://mirror (a" in caplog.messages[0]
