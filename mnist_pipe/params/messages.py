"""One-line messages for the values that a pydantic model rejects, with the nearest known name if there is one.

The same wording serves `params.yaml`, `studies/params.yaml` and the constructor arguments of the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from mnist_pipe.errors import closest, describe, shortened, without_credentials

Location = tuple[str | int, ...]
"""The keys and indices that lead to a value."""


def explain(
    error: ValidationError,
    content: Any,
    *,
    schema: type[BaseModel],
    where: object,
    prefix: Location = (),
    lines: Mapping[Location, int] | None = None,
) -> list[str]:
    """Return one line for each value of `content` that `schema` rejects.

    Args:
        error: the exception that pydantic raised.
        content: the value that was validated.
        schema: the type that it was validated as.
        where: the file, or another place, that each line starts with.
        prefix: the location of `content` within `where`.
        lines: the line number of each location in the file, if `where` is a file.
    """
    by_value: dict[tuple[Location, str], list[ErrorDetails]] = {}
    located = [(_location(detail, content), detail) for detail in error.errors()]
    wrong_keys = {location for location, detail in located if _is_of_key(detail)}
    for location, detail in located:
        if _is_of_key(detail) or not any(location[: len(key)] == key for key in wrong_keys):  # its value has no rule
            by_value.setdefault((location, show(detail["input"])), []).append(detail)
    found = []
    for (location, _), details in by_value.items():
        line = (lines or {}).get(location)
        place = where if line is None else f"{where}:{line}"
        found.append(_explain(details, name_of((*prefix, *location)), location, where=place, schema=schema))
    return found


def _is_of_key(detail: ErrorDetails) -> bool:
    return detail["loc"][-1:] == ("[key]",)


def name_of(location: Location) -> str:
    """Return the dotted name of a location, for example `search.space.model[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def show(value: Any) -> str:
    """Return `value` as YAML spells it, cut if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(without_credentials(repr(value)), width=80)  # a mirror's URL may contain a password


def _location(detail: ErrorDetails, content: Any) -> Location:
    """Return the location in `content`, without what pydantic adds: the union branch or the key that it tried."""
    location: Location = ()
    value = content
    for part in detail["loc"]:
        keys = {str(key): key for key in value} if isinstance(value, Mapping) else {}
        if str(part) in keys:
            location, value = (*location, str(part)), value[keys[str(part)]]
        elif detail["type"] == "missing":
            location, value = (*location, str(part)), None
        elif isinstance(value, Sequence) and isinstance(part, int) and part < len(value):
            location, value = (*location, part), value[part]
        else:
            break
    return location


def _explain(
    details: Sequence[ErrorDetails], name: str, location: Location, *, where: object, schema: type[BaseModel]
) -> str:
    """Return one line for one value; if it has several errors, each branch of its union rejected it."""
    detail = details[0]
    value = detail["input"]
    match detail["type"]:
        case "missing":
            return f"{where}: {name} is missing"
        case "invalid_key":
            return describe(where, "every key", "be text", got=show(value))
        case "extra_forbidden":
            known = _known_keys(location[:-1], schema)
            fix = closest(location[-1], known) or f"known here: {', '.join(known) or 'none'}"
            return describe(where, name, "be a known key", got=repr(location[-1]), fix=fix)
    rules, names = zip(*(_rule(detail) for detail in details), strict=True)
    rule = " or ".join([rules[0], *(other.removeprefix("be ") for other in rules[1:])])
    fix = closest(value, [name for branch in names for name in branch]) if isinstance(value, str) else ""
    return describe(where, name, rule, got=show(value), fix=fix or _FIXES.get(detail["type"], ""))


def _rule(detail: ErrorDetails) -> tuple[str, list[str]]:
    """Return the rule that was broken and, if it is a rule about names, the names that it accepts."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "unknown_name":
            known = context["known"]
        case "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        case kind if kind in _RULES:
            limits = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in context.items()}
            return _RULES[kind].format(**limits), []
        case _:
            rule = detail["msg"].removeprefix("Input should ")
            return rule[0].lower() + rule[1:], []
    return f"be {known[0]}" if len(known) == 1 else f"be one of {', '.join(known)}", known


_RULES = {
    "int_type": "be a whole number",
    "float_type": "be a number",
    "string_type": "be text",
    "bool_type": "be true or false",
    "list_type": "be a list",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "is_instance_of": "be a list",  # for a Sequence, the only type here that pydantic checks this way
    "sequence_str": "be a list",
    "finite_number": "be a finite number",
    "greater_than": "be > {gt}",
    "greater_than_equal": "be >= {ge}",
    "less_than": "be < {lt}",
    "less_than_equal": "be <= {le}",
    "too_short": "have {min_length} or more entries",
    "too_long": "have {max_length} or fewer entries",
    "string_too_long": "have {max_length} or fewer characters",
    "string_pattern_mismatch": "be letters, digits, dots, dashes and underscores",
    "string_too_short": "have {min_length} or more characters",
    "bad_mirror": "be a directory or an http(s) base URL",
    "bad_range": "be [low, high] with low <= high",
}
_FIXES = {"bad_range": "swap them"}


def _known_keys(location: Location, schema: Any) -> list[str]:
    """Return the keys that `schema` accepts at `location`, sorted."""
    for part in location:
        schema = _keys(schema)[str(part)] if _keys(schema) else get_args(schema)[1]
    return sorted(_keys(schema))


def _keys(schema: Any) -> dict[str, Any]:
    """Return the type of each key of a model or a typed dictionary; of other types, nothing."""
    if is_typeddict(schema):
        return dict(schema.__annotations__)
    return {field.alias or name: field.annotation for name, field in getattr(schema, "model_fields", {}).items()}
