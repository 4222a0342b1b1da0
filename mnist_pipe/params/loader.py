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
from mnist_pipe.params.schema import Params, Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts at which only this machine's own programs reach a server."""


def load(path: Path, *, names: Mapping[str, Collection[str]] | None) -> Params:
    """Read `path` as `Params` and check it.

    Args:
        path: a file such as `params.yaml`.
        names: maps `models`, `optimizers`, `schedules` and `datasets` to the names that exist; None accepts any name.

    Raises:
        InputError: the file breaks rules; the message has one line for each error.
    """
    return read(path, schema=Params, names=names, cross_checks=_cross_checks)


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
    if not params.serve.require_token and params.serve.host not in LOOPBACK:
        rule = f"be true unless serve.host is {' or '.join(LOOPBACK)}"
        errors.append(describe(path, "serve.require_token", rule, got="false"))
    return errors
