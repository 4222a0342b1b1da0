"""The studies by name, each loaded when it is asked for, and their sections of `studies/params.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from mnist_pipe import paths
from mnist_pipe.errors import unknown
from mnist_pipe.params import loader
from mnist_pipe.params.schema import Section
from studies import STUDIES

if TYPE_CHECKING:
    from studies.common.study import Study


def check(name: str, *, where: str) -> None:
    """Refuse the name of no study.

    Raises:
        InputError: it names the studies that there are.
    """
    if name not in STUDIES:
        raise unknown(where, "study", name, STUDIES)


def study_of(name: str) -> Study[Any]:
    """The study of that name, one of STUDIES."""
    return _LOADERS[name]()


def params_of(name: str, path: Path = paths.STUDY_PARAMS) -> Section:
    """The study's section of `studies/params.yaml`, checked; of the other studies only that they have one.

    Raises:
        InputError: every error of the file, one line each.
    """
    sections: dict[str, Any] = {study: (dict[str, Any], Field()) for study in STUDIES}
    sections[name] = (study_of(name).params, Field())
    schema = create_model("StudyParams", __base__=Section, **sections)
    section: Section = getattr(loader.read(path, schema=schema), name)
    return section


def _lecun1998() -> Study[Any]:
    from studies.lecun1998.study import STUDY

    return STUDY


def _optimizers() -> Study[Any]:
    from studies.optimizers.study import STUDY

    return STUDY


def _gradient_descent() -> Study[Any]:
    from studies.gradient_descent.study import STUDY

    return STUDY


def _cnn() -> Study[Any]:
    from studies.cnn.study import STUDY

    return STUDY


def _ladder() -> Study[Any]:
    from studies.ladder.study import STUDY

    return STUDY


def _frontier() -> Study[Any]:
    from studies.frontier.study import STUDY

    return STUDY


_LOADERS: dict[str, Callable[[], Study[Any]]] = {  # functions, since each study imports torch
    "lecun1998": _lecun1998,
    "optimizers": _optimizers,
    "gradient_descent": _gradient_descent,
    "cnn": _cnn,
    "ladder": _ladder,
    "frontier": _frontier,
}
