"""A study's modules and its section of `studies/params.yaml`, by the study's name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, create_model

from mnist_pipe import paths
from mnist_pipe.errors import unknown
from mnist_pipe.params import loader
from mnist_pipe.params.schema import Section
from studies import STUDIES


def check(name: str, *, where: str) -> None:
    """Refuse the name of no study.

    Raises:
        InputError: it names the studies that there are.
    """
    if name not in STUDIES:
        raise unknown(where, "study", name, STUDIES)


def runs_of(name: str) -> ModuleType:
    """What a study computes: `Params`, `plan(params, done)`, `run(config, splits)`, `conclude(done, splits)`.

    One that searches first has `tune(params, splits, available=, storage=, name=, say=)` too.
    """
    return importlib.import_module(f"studies.{name}.runs")


def findings_of(name: str) -> ModuleType:
    """How a study is shown: `TITLE`, `rows`, `draw` and `tell`."""
    return importlib.import_module(f"studies.{name}.findings")


def params_of(name: str, path: Path = paths.STUDY_PARAMS) -> Section:
    """The study's section of `studies/params.yaml`, checked; of the other studies only that they have one.

    Raises:
        InputError: every fault of the file, one line each.
    """
    sections: dict[str, Any] = {study: (dict[str, Any], Field()) for study in STUDIES}
    sections[name] = (runs_of(name).Params, Field())
    schema = create_model("StudyParams", __base__=Section, **sections)
    section: Section = getattr(loader.read(path, schema=schema), name)
    return section
