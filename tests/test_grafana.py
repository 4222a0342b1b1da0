"""Test the dashboard of `deploy/grafana` against Grafana's schema, as far as that is possible without Grafana."""

from __future__ import annotations

import copy
import json
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from pydantic import ConfigDict, TypeAdapter
from ruamel.yaml import YAML

from mnist_pipe.cluster import metrics
from tests.support import ROOT

FILE = ROOT / "deploy/grafana/mnist-pipe.json"


@pytest.fixture
def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def problems(content: dict[str, Any]) -> list[str]:
    """Return what the types that Grafana generates from its schema do not know, or have with another type."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    decoded = Dashboard.from_json(content)
    known = json.loads(JSONEncoder(sort_keys=True).encode(decoded))
    return [*lost(content, known, "dashboard"), *wrong_types(decoded, "dashboard")]


def lost(before: Any, after: Any, where: str) -> Iterator[str]:
    """Yield the fields of `before` that `after` does not have with the same value; defaults may be added."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{where}.{number}")
    elif before != after:
        yield f"{where}: {before!r}"


def wrong_types(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from wrong_types(one, f"{where}.{number}")
    elif type(value).__module__.startswith("grafana_foundation_sdk"):
        for name, hint in typing.get_type_hints(type(value), vars(sys.modules[type(value).__module__])).items():
            adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            try:
                adapter.validate_python(getattr(value, name))
            except ValueError as error:
                yield f"{where}.{name}: {error}"
            yield from wrong_types(getattr(value, name), f"{where}.{name}")


def test_grafanas_schema_accepts_the_dashboard(content: dict[str, Any]) -> None:
    assert problems(content) == []


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ((), "headline", "mnist-pipe"),
        ((), "schemaVersion", "newest"),
        (("panels", 0), "gridpos", {}),
        (("panels", 0, "gridPos"), "h", "tall"),
        (("panels", 0, "targets", 0), "exprs", "up"),
        (("templating", "list", 0), "multiple", True),
    ],
)
def test_grafanas_schema_refuses_a_wrong_field(content: dict[str, Any], path: Any, name: str, value: Any) -> None:
    broken: Any = copy.deepcopy(content)
    place = broken
    for key in path:
        place = place[key]
    place[name] = value
    assert problems(broken)


def test_every_query_asks_for_metrics_that_the_code_exports(content: dict[str, Any]) -> None:
    served = set(re.findall(r'"(mnist_pipe_\w+)"', (ROOT / "mnist_pipe/serving/replica.py").read_text()))
    exported = {f"{name}_total" for name in {*metrics.COUNTERS, *served}} | metrics.GAUGES.keys() | served
    asked = set(re.findall(r"ray_(mnist_pipe_\w+)", json.dumps(content)))
    assert {name.removesuffix("_bucket") for name in asked} <= exported
    assert asked >= metrics.GAUGES.keys() | {f"{name}_total" for name in metrics.COUNTERS}  # nothing is left out


def test_without_ray_nothing_is_exported() -> None:
    assert not ray.is_initialized()
    exporter = metrics.Exporter(stage="search", run="search-1")
    exporter.epoch({"epoch": 1, "validation_accuracy": 0.5}, trial=1, num_images=10, seconds=1.0)
    exporter.trial(1, status="finished")
    assert not ray.is_initialized()


def test_panels_do_not_overlap(content: dict[str, Any]) -> None:
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in content["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24  # Grafana's grid
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])


def test_compose_starts_the_grafana_of_the_schema_and_shows_it_to_ray() -> None:
    services = YAML(typ="safe").load(ROOT / "compose.yaml")["services"]
    sdk = re.search(r"grafana-foundation-sdk==\d+!(\d+\.\d+)", (ROOT / "requirements.lock").read_text())
    assert sdk
    assert services["grafana"]["image"].startswith(f"grafana/grafana:{sdk[1]}.")
    head = services["head"]["environment"]
    for name in ("prometheus", "grafana"):
        own = services[name]["networks"]["cluster"]["ipv4_address"]
        assert head[f"RAY_{name.upper()}_HOST"].startswith(f"http://{own}:")
        [published] = services[name]["ports"]
        assert published.rpartition(":")[2] == head[f"RAY_{name.upper()}_HOST"].rpartition(":")[2]
    folder = head["MNIST_PIPE_METRICS_FOLDER"]
    assert f"--config.file={folder}/prometheus/prometheus.yml" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_PATHS_CONFIG"] == f"{folder}/grafana/grafana.ini"
