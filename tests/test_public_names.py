"""Test that no private name of a library is used, and that nothing of a library is modified."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("mnist_pipe", "pipelines", "studies")
SOURCES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
EXCEPTIONS = {
    # Without it, a Ray that a stage starts for itself listens on every interface: `ray.init` has no public name for
    # `ray start --node-ip-address` (https://github.com/ray-project/ray/issues/22732, closed without one).
    ("mnist_pipe/cluster/ray_session.py", "_node_ip_address"),
    # The callbacks of Ray Data's scheduling loop are an internal interface. Without the pause that ours adds, the loop
    # spins while blocks wait for a slow reader, and takes 0.40 instead of 0.08 of a CPU in the process that trains
    # (https://github.com/ray-project/ray/issues/63544, on the cost of that loop).
    ("mnist_pipe/cluster/ordered_reader.py", "custom_execution_callback_classes"),
    # The documented way to leave a process whose other threads hang; Python named it so in 1.5.
    ("mnist_pipe/local/supervisor.py", "os._exit"),
}
INTERNAL = ("custom_execution_callback_classes",)
"""Names that are private although they have no underscore."""
MUTATORS = ("add", "append", "clear", "difference_update", "discard", "extend", "pop", "remove", "setdefault", "update")


def is_private(name: str) -> bool:
    """Return whether any part of a dotted name is private."""
    return any(part.startswith("_") and not (part.startswith("__") and part.endswith("__")) for part in name.split("."))


def imported(tree: ast.AST) -> dict[str, str]:
    """Return the names that imports bind, and the top-level package of each."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name).split(".")[0]: a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: node.module.split(".")[0] for alias in node.names}
    return found


def first_name(node: ast.expr) -> str:
    """Return the first name of an attribute chain: `a` for `a.b.c`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> Iterator[str]:
    """Yield every private name that is used, and every modification of an imported object."""
    tree = ast.parse(source)
    bound = imported(tree)
    theirs = {name for name, package in bound.items() if package not in OURS}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if is_private(alias.name))
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{a.name}" for a in names if is_private(f"{module}.{a.name}"))
            case ast.keyword(arg=str(name)) if is_private(name):
                yield name
            case ast.Attribute(attr=name) if name in INTERNAL:
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()) if name.startswith("__"):
                yield f"{ast.unparse(node)} ="
            case ast.Attribute(value=value, ctx=ast.Store() | ast.Del()) if first_name(value) in theirs:
                yield f"{ast.unparse(node)} ="
            case ast.Attribute(value=value, attr=name) if is_private(name) and first_name(value) not in ("self", "cls"):
                yield ast.unparse(node)
            case ast.Call(func=ast.Name(id="setattr"), args=[target, *_]) if first_name(target) in theirs:
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=ast.Attribute() as value, attr=attr)) if (
                attr in MUTATORS and first_name(value) in theirs - {"os"}
            ):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_public_names_are_used_and_nothing_of_a_library_is_changed(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    assert {found for found in offences(path.read_text()) if (place, found) not in EXCEPTIONS} == set()


def test_every_exception_is_needed_and_there_are_at_most_three() -> None:
    assert len(EXCEPTIONS) <= 3
    for place, name in EXCEPTIONS:
        assert name in offences((ROOT / place).read_text())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ray.train.v2._internal import constants", "ray.train.v2._internal.constants"),
        ("import ray._private.utils", "ray._private.utils"),
        ("import torch\ntorch._foreach_lerp_(a, b, 1)", "torch._foreach_lerp_"),
        ("from ray.air import usage\nusage.tag_callbacks = f", "usage.tag_callbacks ="),
        ("import ray\nray.tune.NAMES.clear()", "ray.tune.NAMES.clear()"),
        ("module.__class__ = Other", "module.__class__ ="),
        ("import ray\nray.init(_node_ip_address=x)", "_node_ip_address"),
        ("super()._create()", "super()._create"),
        ("import torch\nsetattr(torch.optim, 'SGD', x)", "setattr(torch.optim, 'SGD', x)"),
    ],
)
def test_private_uses_and_changes_of_a_library_are_detected(source: str, found: str) -> None:
    assert list(offences(source)) == [found]
