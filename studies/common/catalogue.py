"""The studies by name, each imported only when it is needed, and their sections of `studies/params.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

import studies
from mnist_pipe import paths
from mnist_pipe.cluster import dvc_stages
from mnist_pipe.errors import unknown
from mnist_pipe.params import loader
from mnist_pipe.params.schema import Section
from studies import STUDIES

if TYPE_CHECKING:
    from studies.common.study import Study


def check(name: str, *, where: str) -> None:
    """Raise an exception if no study has that name.

    Raises:
        InputError: the name is unknown; the message names the studies that exist.
    """
    if name not in STUDIES:
        raise unknown(where, "study", name, STUDIES)


def study_of(name: str) -> Study[Any]:
    """Return the study of that name, which must be one of STUDIES."""
    return _LOADERS[name]()


def params_of(name: str, path: Path = paths.STUDY_PARAMS) -> Section:
    """Return the study's section of `studies/params.yaml`, validated; the other studies' sections need only exist.

    Raises:
        InputError: the file has errors; the message has one line for each.
    """
    sections: dict[str, Any] = {study: (dict[str, Any], Field()) for study in STUDIES}
    sections[name] = (study_of(name).params, Field())
    schema = create_model("StudyParams", __base__=Section, **sections)
    section: Section = getattr(loader.read(path, schema=schema), name)
    return section


def code_of(study: str) -> dict[str, str]:
    """Return the digest of each module that the stage which measures `study` depends on, by its path."""
    root = Path(studies.__file__).parent.parent
    return {path.as_posix(): dvc_stages.md5_of(root / path) for path in dvc_stages.read(root)[f"{study}-runs"].code}


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


_LOADERS: dict[str, Callable[[], Study[Any]]] = {  # functions, because each study imports torch
    "lecun1998": _lecun1998,
    "optimizers": _optimizers,
    "gradient_descent": _gradient_descent,
    "cnn": _cnn,
    "ladder": _ladder,
    "frontier": _frontier,
}
