"""Test the catalogue: every study is complete, importable by Ray, and made of the modules that dvc.yaml lists."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import studies
from mnist_pipe import paths
from mnist_pipe.errors import InputError
from pipelines.study import computing_modules
from studies.common import catalogue
from tests.support import ROOT


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_comes_from_its_own_package_and_plans_runs(name: str) -> None:
    study = catalogue.study_of(name)
    assert study is importlib.import_module(f"studies.{name}.study").STUDY
    assert study.params.__module__ == f"studies.{name}.runs"
    assert study.plan or study.plan_from_results
    assert pickle.loads(pickle.dumps(study.run)) is study.run


@pytest.mark.parametrize("name", studies.STUDIES)
def test_shipped_params_are_valid_and_plan_no_configuration_twice(name: str) -> None:
    study, params = catalogue.study_of(name), catalogue.params_of(name, ROOT / paths.STUDY_PARAMS)
    assert type(params) is study.params
    if study.plan:
        configs = study.plan(params)
        assert configs
        assert len({str(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_params_survive_json_in_which_a_flow_run_gets_them(name: str) -> None:
    study, params = catalogue.study_of(name), catalogue.params_of(name, ROOT / paths.STUDY_PARAMS)
    assert study.params.model_validate(json.loads(json.dumps(params.model_dump()))) == params


@pytest.mark.parametrize("name", studies.STUDIES)
def test_runs_stage_depends_on_computing_modules_and_report_stage_on_the_rest(name: str) -> None:
    stages = YAML(typ="safe").load(ROOT / "studies/dvc.yaml")["stages"]
    computing = {os.path.relpath(path, ROOT / "studies") for path in computing_modules(name)}
    own = {f"{name}/{path.name}" for path in (ROOT / "studies" / name).glob("*.py")}
    runs, shown = set(stages[f"{name}-runs"]["deps"]), set(stages[name]["deps"])
    packages = {f"{name}/__init__.py"}
    assert own - packages == (own & runs) | (own & shown)
    assert not own & runs & shown
    assert own & runs == (own & computing) - packages
    assert {Path(path).name for path in own & shown} <= set(studies.SHOWING)


def test_the_shared_computing_modules_exist() -> None:
    assert all((ROOT / "studies/common" / name).is_file() for name in studies.COMPUTING)


def test_an_unknown_study_is_refused_with_a_suggestion() -> None:
    catalogue.check("ladder", where="here")
    with pytest.raises(InputError, match=r"^here: study must be one of .*did you mean 'ladder'"):
        catalogue.check("lader", where="here")
