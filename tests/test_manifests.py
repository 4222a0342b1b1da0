"""Test the files for containers, Kubernetes and SLURM, as far as that is possible without any of them."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from mnist_pipe.params.loader import LOOPBACK
from tests.support import ROOT
from tests.support.checkout import copy_tree

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
MANIFESTS = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
COMPOSE = ROOT / "compose.yaml"


def read_yaml(content: Any) -> Any:
    return YAML(typ="safe").load(content)


def strict(schema: Any) -> Any:
    """Return a schema of Kubernetes that forbids unknown fields, as `kubectl apply` with strict validation does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def kuberay_schema(kind: str) -> Any:
    content = gzip.decompress((Path(__file__).parent / "data" / "kuberay" / f"{KINDS[kind]}.yaml.gz").read_bytes())
    [version] = [found for found in read_yaml(content)["spec"]["versions"] if found["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": []}
    return schema


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kuberays_schema_accepts_a_manifest(manifest: Path) -> None:
    content = read_yaml(manifest)
    assert content["apiVersion"] == "ray.io/v1"
    jsonschema.Draft4Validator(kuberay_schema(content["kind"])).validate(content)


def test_kuberays_schema_refuses_a_misspelt_field() -> None:
    content = read_yaml(ROOT / "deploy/kuberay/raycluster.yaml")
    content["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.Draft4Validator(kuberay_schema("RayCluster")).validate(content)


def containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from value.get("containers", [])
        for part in value.values():
            yield from containers(part)
    elif isinstance(value, list):
        for part in value:
            yield from containers(part)


def test_versions_in_image_lock_and_manifests_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ray = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert ray
    image = f"mnist-pipe:{project['version']}"
    for manifest in MANIFESTS:
        content = read_yaml(manifest)
        assert [container["image"] for container in containers(content)] == [image] * len(list(containers(content)))
        versions = re.findall(r"rayVersion: (.+)", manifest.read_text())
        assert set(versions) <= {ray[1]}
    services = read_yaml(COMPOSE)["services"]
    assert {service["image"] for service in services.values() if "/run/secrets/cluster.env" in str(service)} == {image}
    python = re.search(r"ARG PYTHON=([\d.]+)\nFROM python:\${PYTHON}-slim", (ROOT / "Dockerfile").read_text())
    assert python
    assert f"python:{python[1]}-" in (ROOT / ".devcontainer/devcontainer.json").read_text()
    assert project["requires-python"].startswith(f">={python[1]}")


def test_compose_publishes_ports_on_loopback_only_and_runs_programs_that_exist() -> None:
    services = read_yaml(COMPOSE)["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert {port.rpartition(":")[0].rpartition(":")[0] for port in published} <= set(LOOPBACK)
    programs = set(re.findall(r"deploy/[a-z.-]+", COMPOSE.read_text()))
    assert {program for program in programs if not (ROOT / program).is_file()} == set()


def has_compose() -> bool:
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "compose", "version"], check=False).returncode


@pytest.mark.services
def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    if not has_compose():
        pytest.skip("docker compose is not installed")
    (tmp_path / "cluster.env").touch()
    command = ["docker", "compose", "--project-directory", str(tmp_path), "-f", str(COMPOSE), "config", "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "POSTGRES_PASSWORD": "x"})


def test_the_dev_container_is_json() -> None:
    assert json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["name"] == "mnist-pipe"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_images_steps_make_an_environment_that_doctor_accepts(tmp_path: Path) -> None:
    """Take the steps of the Dockerfile in its order in a plain folder, without Docker; Debian's packages are there."""
    whole, folder = copy_tree(tmp_path / "context"), tmp_path / "image"
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = inherited | {"TORCH": "cpu", "PYTHON": f"{sys.base_prefix}/bin/python3", "HOME": str(tmp_path)}
    steps = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").partition("WORKDIR")[2].splitlines()
    for step in steps:
        if step.startswith("COPY "):
            *names, _ = [word for word in step.split()[1:] if not word.startswith("--")]
            for name in names:
                if (whole / name).is_dir():
                    shutil.copytree(whole / name, folder / name, dirs_exist_ok=name == ".")
                else:
                    shutil.copy2(whole / name, folder / name)
        elif step.startswith("RUN "):
            done = subprocess.run(
                ["sh", "-c", step[4:]], cwd=folder, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
    doctor = [str(folder / ".venv/bin/mnist-pipe"), "doctor", "--json"]
    done = subprocess.run(doctor, cwd=folder, env=env, capture_output=True, text=True, check=False)
    checks = json.loads(done.stdout)["checks"]
    assert {name: check["text"] for name, check in checks.items() if check["exit_code"]} == {}
