"""The model card: what a registered version is, how good it is and where it comes from, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from mnist_pipe import paths
from mnist_pipe.data.facts import Facts, listed
from mnist_pipe.data.sources import SOURCES
from mnist_pipe.errors import CorruptDataError, one_line
from mnist_pipe.evaluation import markdown
from mnist_pipe.registry.runs import flatten

_TEMPLATE = Path(__file__).with_suffix(".md")


def render(name: str, *, card: Mapping[str, Any], evaluation: Mapping[str, Any], lineage: Mapping[str, Any]) -> str:
    """Return the model card as Markdown, with the front matter of Hugging Face.

    Args:
        name: the registered name.
        card: the model's card for programs.
        evaluation: the content of `reports/evaluation.json`.
        lineage: the lineage of the model.

    Raises:
        CorruptDataError: `card` or `evaluation` is incomplete.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown.plain, "code": markdown.code, "listed": listed}  # MLflow's page shows it
    try:
        source, facts = SOURCES.get(card["dataset"]), Facts.of(card)
        return environment.get_template(_TEMPLATE.name).render(
            name=name,
            title=source.title if source else card["dataset"],
            citation=source.citation if source else "",
            licence=source.licence if source else "",
            facts=facts,
            images=f"(N, {', '.join(map(str, facts.array_shape))})",
            card=card,
            recipe=flatten({"model": card["model"], **card["model_params"], **card["recipe"]}),
            evaluation=evaluation,
            lineage=flatten(lineage),
        )
    except (jinja2.UndefinedError, KeyError, TypeError) as error:
        got, fix = one_line(error), "run: dvc repro --force evaluate"
        raise CorruptDataError.invalid(paths.EVALUATION, "the model card", "be complete", got=got, fix=fix) from error
