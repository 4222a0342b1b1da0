"""Test the notebook: it holds no outputs, and its cells run as they are."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ROOT
from tests.support.checkout import copy_tree, environment, run

NOTEBOOK = Path("examples/quickstart.ipynb")


def text(cell: dict[str, Any]) -> str:
    """Return what a cell printed."""
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def works_below(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd().startswith(str(folder))  # the name of a removed folder ends with " (deleted)"
    except psutil.Error:
        return False


def test_the_notebook_has_no_outputs_and_no_execution_counts() -> None:
    notebook = json.loads((ROOT / NOTEBOOK).read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"], cell["metadata"]) for cell in cells] == [([], None, {})] * len(
        cells
    )
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}  # no version of a kernel that ran it


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_cell_runs_and_leaves_the_checkout_and_the_machine_as_they_were(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    checkout = copy_tree(tmp_path / "main")
    run(checkout, "git", "init", "-q")
    run(checkout, "git", "add", "-A")
    run(checkout, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {
        **environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")])),
        "TMPDIR": str(temporary),
        "GIT_CONFIG_GLOBAL": os.devnull,  # a new user's Git has no name and no address
    }
    notebook = nbformat.read(checkout / NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(checkout / "examples")}}
    client = NotebookClient(notebook, kernel_name="python3", resources=folder)
    try:
        client.execute(env=env)
        left = list(temporary.glob("quickstart-*"))
    finally:
        for clone in temporary.glob("quickstart-*/mnist-pipe"):
            run(clone, "mnist-pipe", "down")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    summary, figure, predictions, drawn, stopped = (cells[number] for number in (2, 3, 4, 6, 7))
    assert text(summary).startswith("registered   digits-classifier version 1, alias champion\n")
    assert text(figure).rstrip().endswith("/mnist-pipe/reports/index.html")
    assert any("image/png" in output.get("data", {}) for output in figure.outputs)
    [accuracy] = re.findall(r"digits-classifier/1: ([\d.]+)% of 360 test images are right", text(predictions))
    assert float(accuracy) > 90
    assert text(drawn).startswith("seven.png: 7 ")
    assert text(stopped) == "stopped prefect and ray\n"
    print(*map(text, cells))
    assert left == []
    assert not [process for process in psutil.process_iter() if works_below(process, temporary)]
    assert run(checkout, "git", "status", "--short") == ""
    assert not (checkout / ".state").exists()
