"""Test the project's architecture rules on its source code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import studies
from mnist_pipe import paths
from mnist_pipe.registry.pyfunc import _copy_modules
from pipelines import RESUMED, STAGES
from tests.support import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("mnist_pipe", "pipelines", "studies")
    for path in (ROOT / folder).rglob("*.py")
}
# A module may import from its own layer and from those before it.
LAYERS = [
    {
        "errors",
        "command_line",
        "telemetry",
        "atomic",
        "paths",
        "hardware",
        "experiment",
        "fingerprint",
        "interpreter",
        "lineage",
        "params",
        "timings",
        "waiting",
    },
    {"cluster"},
    {"data", "models"},
    {"evaluation", "training"},
    {"tuning", "registry", "inference"},
    {"preflight", "local", "serving"},
    {"studies"},
    {"pipelines"},
]
ONLY = {
    "ray": {
        "mnist_pipe.cluster.metrics",
        "mnist_pipe.cluster.ray_session",
        "mnist_pipe.cluster.ordered_reader",
        "mnist_pipe.training.process_group",
        "mnist_pipe.training.progress",
        "mnist_pipe.training.ray_train",
        "mnist_pipe.training.streaming",
        "mnist_pipe.tuning.callbacks",
        "mnist_pipe.tuning.schedulers",
        "mnist_pipe.tuning.search",
        "mnist_pipe.tuning.trial",
        "mnist_pipe.inference.batch",
        "mnist_pipe.serving.deployment",
        "mnist_pipe.serving.replica",
        "studies.common.executor",
    },
    "mlflow": {
        f"mnist_pipe.registry.{name}"
        for name in ("model_code", "pyfunc", "registration", "runs", "search_log", "store", "succession", "versions")
    },
    "prefect": {name for name in MODULES if name.startswith("pipelines")},
    "fastapi": {"mnist_pipe.serving.web", "mnist_pipe.serving.replica"},
    "starlette": {"mnist_pipe.serving.web"},
}


def imports(path: Path) -> set[str]:
    """Return every module that the source imports, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def layer(module: str) -> int:
    """Return the layer of the module's longest matching prefix."""
    name = module.removeprefix("mnist_pipe.")
    matches = [(len(n), i) for i, names in enumerate(LAYERS) for n in names if name == n or name.startswith(n + ".")]
    assert matches, f"{module} has no layer"
    return max(matches)[1]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "mnist_pipe"])
def test_imports_only_point_down(module: str) -> None:
    for imported in imports(MODULES[module]) & set(MODULES):
        if imported != "mnist_pipe":
            assert layer(imported) <= layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize("library", ONLY)
def test_only_named_modules_import_an_orchestrator(library: str) -> None:
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= ONLY[library]
    assert users


HEAVY = {*ONLY["ray"], *ONLY["mlflow"]} | {
    f"mnist_pipe.{name}" for name in ("training", "tuning", "models", "inference", "data", "evaluation", "serving")
}  # imported inside the functions that use them


def test_importing_the_library_has_no_effect(tmp_path: Path) -> None:
    # In a new process and an empty folder: importing creates no file, prints nothing, starts no thread and is light.
    names = [
        m for m in MODULES if m.startswith("mnist_pipe") and not any(m == h or m.startswith(h + ".") for h in HEAVY)
    ]
    code = (
        f"import sys, threading, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'torch', 'ray', 'prefect', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_version_carries_imports_nothing_else_of_the_project(tmp_path: Path) -> None:
    carried = {path.relative_to(tmp_path).as_posix() for path in _copy_modules(tmp_path).rglob("*.py")}
    for name, path in MODULES.items():
        if name != "mnist_pipe" and path.relative_to(ROOT).as_posix() in carried:  # `load` needs a project's registry
            needed = {MODULES[found].relative_to(ROOT).as_posix() for found in imports(path) & set(MODULES)}
            assert needed <= carried, name


def test_there_is_no_utils() -> None:
    assert not {name for name in MODULES if name.split(".")[-1] in ("utils", "helpers", "misc")}


@pytest.mark.parametrize("name", [*STAGES, "study"])
def test_each_stage_has_its_flow(name: str) -> None:
    from pipelines.__main__ import load_flow

    assert load_flow(name).name == name


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumable_flow_receives_its_run_name(stage: str) -> None:
    from pipelines.__main__ import load_flow

    assert ("run_name" in load_flow(stage).parameters.properties) == (stage in RESUMED)
    assert "mnist_pipe.fingerprint.run_name" not in imports(MODULES[f"pipelines.{stage}"])


def test_dvc_yaml_has_every_stage_with_only_its_own_params() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert list(stages) == list(STAGES)
    for name, sections in STAGES.items():
        assert stages[name]["cmd"] == f"exec python -m pipelines {name}"
        if name != "report":  # report prints all of params.yaml
            narrow = {"recipe": "recipes.${recipe}"}  # DVC resolves the name of the chosen recipe, and tracks no other
            assert set(stages[name]["params"]) == {narrow.get(section, section) for section in sections}


def test_studies_dvc_yaml_has_two_stages_per_study_with_only_its_params() -> None:
    stages = YAML(typ="safe").load(ROOT / "studies/dvc.yaml")["stages"]
    assert list(stages) == [name for stage, study in studies.STAGES.items() for name in (stage, study)]
    for stage, study in studies.STAGES.items():
        measured = [f"{study}/{name}" for name in (paths.STUDY_RUNS, paths.STUDY_TIMES)]
        assert stages[stage]["cmd"] == f"cd .. && exec python -m pipelines {stage}"
        assert stages[stage]["params"] == [study]
        assert [next(iter(output)) for output in stages[stage]["outs"]] == measured
        assert stages[study]["cmd"] == f"cd .. && exec python -m studies {study}"
        assert set(measured) < set(stages[study]["deps"])


def test_dvc_yaml_uses_the_paths_of_the_library() -> None:
    known = {str(value) for value in vars(paths).values() if isinstance(value, Path)}
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        outputs = [*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())]
        for output in outputs:
            path = next(iter(output)) if isinstance(output, dict) else output
            assert path in known or str(Path(path).parent) in known, f"{name}: {path}"


def test_every_code_dependency_of_a_stage_exists() -> None:
    for file in paths.DVC_FILES:
        for stage in YAML(typ="safe").load(ROOT / file)["stages"].values():
            for dependency in stage["deps"]:
                is_code = dependency.removeprefix("../").startswith(("mnist_pipe/", "pipelines/"))
                if is_code or dependency.endswith(".py"):
                    assert (ROOT / file.parent / dependency).exists(), dependency


def test_benchmarks_import_no_tests() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "tests"}, path


def test_no_module_of_tests_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        in_strings = set(re.findall(r"\btests\.[\w.]+", path.read_text()))  # of programs that a test starts
        for name in imports(path) | in_strings:
            parts = name.split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") or part == "conftest" for part in parts), (
                path
            )


def test_every_stage_is_deployed() -> None:
    deployed = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert [entry["entrypoint"] for entry in deployed] == [
        f"pipelines.{name}.{name}" for name in (*STAGES, "study", "rebuild")
    ]
