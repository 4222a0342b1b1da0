"""Reading of YAML files into validated types; every error has its line number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from mnist_pipe.errors import InputError, closest, describe, one_line
from mnist_pipe.params import messages
from mnist_pipe.params.messages import Location
from mnist_pipe.params.schema import IngestParams, Params, Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts at which only this machine's own programs reach a server."""


def load(path: Path, *, names: Mapping[str, Collection[str]] | None) -> Params:
    """Read `path` as `Params` and check it.

    Args:
        path: a file such as `params.yaml`.
        names: maps `models`, `optimizers`, `schedules`, `datasets` and `published` to the names that exist; None
            accepts any name.

    Raises:
        InputError: the file breaks rules; the message has one line for each error.
    """

    def cross_checks(path: Path, params: Params) -> list[str]:
        return _cross_checks(path, params) + _checks_of_own(
            path, params.ingest, published=(names or {}).get("published")
        )

    return read(path, schema=Params, names=names, cross_checks=cross_checks)


Schema = TypeVar("Schema", bound=Section)


def read(
    path: Path,
    *,
    schema: type[Schema],
    names: Mapping[str, Collection[str]] | None = None,
    cross_checks: Callable[[Path, Schema], list[str]] = lambda *_: [],
) -> Schema:
    """Read the YAML file `path` as a `schema` and check it.

    Args:
        path: the file to read.
        schema: the type of the file's content.
        names: maps the kinds of names that `schema` checks to the names that exist; None accepts any name.
        cross_checks: returns one line for each rule between several values that a file of valid values breaks.

    Raises:
        InputError: the file breaks rules; the message has one line for each error.
    """
    content, lines, errors = _parse(path)
    try:
        params = schema.model_validate(content, context={"names": names})
    except ValidationError as error:
        errors += messages.explain(error, content, schema=schema, where=path, lines=lines)
    else:
        errors += cross_checks(path, params)
    if errors:
        raise InputError("\n".join(errors))
    return params


def _parse(path: Path) -> tuple[Any, dict[Location, int], list[str]]:
    """Return the file's value, the line of each key and list entry, and an error for each duplicate key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
        raise InputError.invalid(path, "the file", "be readable text", got=reason) from error
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    try:
        root = yaml.compose(text)
        content = yaml.load(text)
        keys = list(_keys(root, ()))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise InputError.invalid(where, "the file", "be YAML", got=error.problem) from error
    except RecursionError as error:
        raise InputError.invalid(path, "the file", "be YAML", got="bottomless nesting") from error
    except (YAMLError, ValueError, KeyError) as error:  # `!!int x` and `!!bool x` raise the last two
        raise InputError.invalid(path, "the file", "be YAML", got=one_line(error)) from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise InputError.invalid(path, "the file", "be a mapping of sections", got=got)
    lines: dict[Location, int] = {}
    errors = []
    for key, line in keys:
        if key in lines:
            got = f"line {lines[key]} and line {line}"
            errors.append(describe(path, messages.name_of(key), "be defined once", got=got, fix="keep one"))
        lines[key] = line
    return content, lines, errors


def _keys(node: Node | None, prefix: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            here = (*prefix, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield (*prefix, number), value.start_mark.line + 1
            yield from _keys(value, (*prefix, number))


def _checks_of_own(path: Path, ingest: IngestParams, *, published: Collection[str] | None) -> list[str]:
    """Return one line for each broken rule about the user's own images; `published` are the names of all others."""
    if published is None:
        return []
    errors, name = [], ingest.name
    if ingest.dataset in published:
        if name is not None:
            rule = f"be null while ingest.dataset is {ingest.dataset}, which has a name"
            errors.append(describe(path, "ingest.name", rule, got=repr(name)))
    elif name is None or name in published:
        rule = "be a name of your own, under which the model registers"
        errors.append(describe(path, "ingest.name", rule, got="null" if name is None else f"that of {name}"))
    channels = None if ingest.shape == "auto" else ingest.shape[0]
    if channels not in (None, 1, 3):
        errors.append(describe(path, "ingest.shape[0]", "be 1 or 3, the number of channels", got=channels))
    elif channels and ingest.channels not in ("auto", channels):
        errors.append(
            describe(path, "ingest.channels", f"be auto or {channels}, as in ingest.shape", got=ingest.channels)
        )
    if ingest.resize == "digit_box" and 3 in (channels, ingest.channels):
        errors.append(describe(path, "ingest.resize", "be fit or stretch for images in colour", got="'digit_box'"))
    return errors


def _cross_checks(path: Path, params: Params) -> list[str]:
    """Return one line for each broken rule that involves more than one key."""
    errors = []
    too_long = [number for number in params.search.space.get("num_epochs", ()) if number > params.search.num_epochs]
    if too_long:
        rule = f"be at most search.num_epochs, which is {params.search.num_epochs}"
        errors.append(describe(path, "search.space.num_epochs", rule, got=too_long[0]))
    if params.recipe not in params.recipes:
        rule = f"be one of {', '.join(sorted(params.recipes))}"
        fix = closest(params.recipe, params.recipes)
        errors.append(describe(path, "recipe", rule, got=repr(params.recipe), fix=fix))
    elif params.train.data == "stream" and params.recipes[params.recipe].train_rows is not None:
        rule = "be null when train.data is stream, which reads every row"
        got = params.recipes[params.recipe].train_rows
        errors.append(describe(path, f"recipes.{params.recipe}.train_rows", rule, got=got))
    elif params.train.data == "stream" and params.recipes[params.recipe].balance == "sampling":
        rule = "be none or weights when train.data is stream, which reads every row once"
        errors.append(describe(path, f"recipes.{params.recipe}.balance", rule, got="'sampling'"))
    if not params.serve.require_token and params.serve.host not in LOOPBACK:
        rule = f"be true unless serve.host is {' or '.join(LOOPBACK)}"
        errors.append(describe(path, "serve.require_token", rule, got="false"))
    return errors
