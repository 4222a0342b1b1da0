"""Champions to serve, and the endpoint as a user starts it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from ruamel.yaml import YAML

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services import SECRETS
from tests.support import ROOT
from tests.support.registry import METRICS, Candidate, register, write_candidate

RAW, PNG, JSON = "application/octet-stream", "image/png", "application/json"


def new_project(folder: Path, database: Path, **changes: Any) -> Path:
    """Create a project with an empty registry and this checkout's params.yaml, whose section `serve` has `changes`."""
    (folder / paths.STATE).mkdir(parents=True)
    shutil.copy(database, folder / paths.MLFLOW_DB)
    shutil.copy(ROOT / "dvc.yaml", folder)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["serve"].update(changes)
    yaml.dump(params, folder / "params.yaml")
    return folder


def promote(root: Path, seed: int, *, errors: int) -> Candidate:
    """Register the linear model of that seed; with fewer errors than the champion's it becomes the champion."""
    candidate = write_candidate(root / "candidates", seed, errors)
    assert register(root, candidate).promoted
    return candidate


def damage(root: Path, *, version: int) -> None:
    """Flip a bit of the weights that the registry keeps of a version."""
    from mnist_pipe.registry import versions
    from tests.support.registry import NAME

    found = versions.find(f"{NAME}/{version}", root=root)
    weights = root / paths.MLFLOW_ARTIFACTS / found.run_id / "artifacts" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def register_trained(root: Path, mirror: Path) -> None:
    """Register the model of `write_trained`."""
    write_trained(root / "candidates/trained", mirror)
    _, predictions = write_candidate(root / "candidates", 0, 10)
    assert register(root, (root / "candidates/trained", predictions), metrics=METRICS).promoted


def write_trained(folder: Path, mirror: Path) -> None:
    """Train the recipe `fast` on the published files, which takes 2 s on two idle cores, and save it."""
    import torch

    from mnist_pipe.data import idx
    from mnist_pipe.models import saved
    from mnist_pipe.params import loader
    from mnist_pipe.training import loop
    from mnist_pipe.training.batches import DeviceSplit
    from mnist_pipe.training.recipe import recipe_of

    chosen = loader.load(ROOT / "params.yaml", names=None).recipes["fast"]
    recipe = recipe_of(chosen.model_dump(), found={}, models={})
    images = idx.read(mirror / "train-images-idx3-ubyte.gz", kind="images", max_bytes=1 << 26)[: chosen.train_rows]
    labels = idx.read(mirror / "train-labels-idx1-ubyte.gz", kind="labels", max_bytes=1 << 20)[: chosen.train_rows]
    mean, std = float(images.mean() / 255), float(images.std() / 255)
    data = DeviceSplit(
        images=torch.from_numpy((images / np.float32(255) - mean) / std).float().unsqueeze(1),
        labels=torch.from_numpy(labels).long(),
        background=-mean / std,
    )
    few = replace(data, images=data.images[:100], labels=data.labels[:100])
    torch.manual_seed(0)
    model, optimizer = loop.new_run(recipe, device=torch.device("cpu"))
    for _ in loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=few):
        pass
    card = {
        **{"model": recipe.model, "model_params": recipe.model_params, "recipe": recipe.to_dict()},
        **{"dataset": "mnist", "mean": mean, "std": std, "data_sha256": {"train": "aa", "validation": "bb"}},
    }
    saved.save_model(folder, model, card=card)


class Endpoint:
    """An endpoint that runs, and its client."""

    def __init__(self, root: Path, process: subprocess.Popen[str], url: str) -> None:
        self.root, self.process, self.url = root, process, url
        self.token = (root / SECRETS / "serve").read_text()
        self.headers = {"Authorization": f"Bearer {self.token}"}

    @property
    def lines(self) -> str:
        """What the command has printed so far."""
        return (self.root / "serve.out").read_text()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=30, trust_env=False, **options)

    def predict(self, body: bytes | Iterator[bytes], kind: str = RAW, query: str = "") -> httpx.Response:
        """Send a body of that type to /predict."""
        headers = {**self.headers, "Content-Type": kind}
        url = f"{self.url}/predict{query}"
        return httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        reply = self.predict(images.tobytes())
        assert reply.status_code == 200, reply.text
        return np.array([found["probabilities"] for found in reply.json()["predictions"]])

    def model(self) -> Mapping[str, Any]:
        reply = self.get("/model")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def replicas(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if process.name().startswith("ray::ServeRepli")]


class Load:
    """Clients that send single images one after the other while the block runs."""

    def __init__(self, endpoint: Endpoint, *, clients: int = 4) -> None:
        self._endpoint, self._stop = endpoint, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.clients = clients
        self.statuses: Counter[int] = Counter()
        """Number of replies by status; 0 is a connection that failed."""
        self.versions: Counter[int] = Counter()
        """Number of replies by the version of the model that answered."""
        self._lock = threading.Lock()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        headers = {**self._endpoint.headers, "Content-Type": RAW}
        with httpx.Client(base_url=self._endpoint.url, headers=headers, timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    reply = client.post("/predict", content=bytes(784))
                except httpx.HTTPError:
                    status, version = 0, 0
                else:
                    status = reply.status_code
                    version = reply.json()["model"]["version"] if status == 200 else 0
                with self._lock:
                    self.statuses[status] += 1
                    self.versions[version] += 1


@contextmanager
def serving(root: Path, *options: str) -> Iterator[Endpoint]:
    """Run `mnist-pipe serve` in `root` while the block runs; end it by SIGTERM."""
    from mnist_pipe.local.services.process import free_port

    port = free_port(8300)
    with (root / "serve.out").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "serve", "--port", str(port), *options],
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 150
        while "\nstop " not in (root / "serve.out").read_text():
            assert process.poll() is None, (root / "serve.out").read_text()
            assert time.monotonic() < deadline, (root / "serve.out").read_text()
            time.sleep(0.1)
        yield Endpoint(root, process, f"http://{LOOPBACK}:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
