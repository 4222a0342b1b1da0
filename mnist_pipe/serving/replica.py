"""The deployment on Ray Serve: batches of requests, the model that follows its alias, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram

from mnist_pipe.cluster.metrics import Exporter
from mnist_pipe.inference.classifier import Predictions
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.serving import web
from mnist_pipe.serving.bodies import Images
from mnist_pipe.serving.follower import Follower, Served

_LOG = logging.getLogger("ray.serve")
_PREPARING = 2  # threads that decode pictures, beside the one that computes
_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]
_IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0]
_CONFIDENCE = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]


class Metrics:
    """The metrics in Prometheus' format, at the address where the Ray of this node exposes its own."""

    def __init__(self) -> None:
        self._requests = Counter("mnist_pipe_requests", "Requests to /predict.", ("status",))
        self._seconds = Histogram("mnist_pipe_request_seconds", "Duration of a request.", boundaries=_SECONDS)
        self._batch = Histogram("mnist_pipe_batch_images", "Images that the network saw at once.", boundaries=_IMAGES)
        self._classes = Counter("mnist_pipe_predictions", "Predictions by class.", ("name",))
        self._confidence = Histogram(
            "mnist_pipe_confidence", "Probability of the predicted class.", boundaries=_CONFIDENCE
        )
        self._version = Gauge("mnist_pipe_model_version", "Version of the registered model that serves.")
        self._exporter = Exporter(stage="serve")

    def request(self, *, status: int, seconds: float) -> None:
        """Record a finished request."""
        self._requests.inc(tags={"status": str(status)})
        self._seconds.observe(seconds)

    def batch(self, found: Predictions) -> None:
        """Record what the network predicted at once."""
        self._exporter.images(len(found.labels))
        self._batch.observe(len(found.labels))
        for name, number in Tally(found.labels).items():
            self._classes.inc(number, tags={"name": name})
        for probability in found.probability.tolist():
            self._confidence.observe(probability)

    def version(self, number: int) -> None:
        """Record the version that serves."""
        self._version.set(number)


@serve.ingress()
class Endpoint:
    """One replica: an application of `web`, with a model and one thread that computes."""

    def __init__(
        self, *, spec: str, root: str, params: dict[str, Any], token_sha256: str, environment: Mapping[str, str]
    ) -> None:
        """Load the model and probe it, so that a replica is ready only when it answers.

        Args:
            spec: `NAME@ALIAS`, which is followed, or `NAME/VERSION`.
            root: the project's root on the machine that started the endpoint; elsewhere a temporary folder serves.
            params: the section `serve` of params.yaml.
            token_sha256: the digest of the token; empty if none is needed.
            environment: the variables with which the registry is reached.
        """
        os.environ.update(environment)
        torch.set_num_threads(1)  # two are slower, beside the proxy: 8.3 instead of 4.0 ms for 100 images
        self._params, self._token_sha256 = ServeParams.model_validate(params), token_sha256
        folder = Path(root) if Path(root).is_dir() else Path(tempfile.mkdtemp(prefix="mnist-pipe-"))
        self._follower = Follower(spec, root=folder, log=_LOG)
        self._metrics = Metrics()
        self._metrics.version(self._follower.served.model.version)
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="computing")
        self._preparing = ThreadPoolExecutor(_PREPARING, thread_name_prefix="preparing")
        self._batched.set_max_batch_size(self._params.max_batch_size)
        self._batched.set_batch_wait_timeout_s(self._params.batch_wait_seconds)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application, which Ray calls after the constructor."""
        return web.build(self, params=self._params, token_sha256=self._token_sha256)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the alias while the block runs."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._params.poll_seconds)
            await loop.run_in_executor(self._preparing, self._follower.check)
            self._metrics.version(self._follower.served.model.version)

    def state(self) -> tuple[Served, str]:
        """Return the model that serves, and why another one does not."""
        return self._follower.served, self._follower.problem

    def count(self, *, status: int, seconds: float) -> None:
        """Record a finished request."""
        self._metrics.request(status=status, seconds=seconds)

    async def prepare(self, work: Callable[[], Images]) -> Images:
        """Run `work` in a thread that decodes bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def classify(self, images: NDArray[np.uint8]) -> tuple[Served, Predictions]:
        """Classify images together with those of requests that came at the same time."""
        found: tuple[Served, Predictions] = await self._batched(images)
        return found

    async def saliency(self, served: Served, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the saliency of each image."""
        work = lambda: [served.classifier.saliency(image) for image in images]  # noqa: E731
        return await asyncio.get_running_loop().run_in_executor(self._computing, work)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _batched(self, requests: list[NDArray[np.uint8]]) -> list[tuple[Served, Predictions]]:
        served = self._follower.served  # one model for the whole batch, whatever the alias does meanwhile
        loop = asyncio.get_running_loop()
        together = await loop.run_in_executor(self._computing, served.classifier.predict, np.concatenate(requests))
        self._metrics.batch(together)
        ends = np.cumsum([len(images) for images in requests])
        return [
            (served, _rows(together, slice(end - len(images), end)))
            for images, end in zip(requests, ends.tolist(), strict=True)
        ]


def _rows(found: Predictions, rows: slice) -> Predictions:
    return Predictions(
        classes=found.classes[rows],
        labels=found.labels[rows],
        probability=found.probability[rows],
        probabilities=found.probabilities[rows],
    )


def application(
    *, spec: str, root: Path, params: ServeParams, token_sha256: str, environment: Mapping[str, str]
) -> serve.Application:
    """Return the application for `serve.run`; its arguments are those of `Endpoint`."""
    low, high = params.num_replicas
    deployment = serve.deployment(
        Endpoint,
        name="endpoint",
        autoscaling_config={
            "min_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": params.target_ongoing_requests,
        },
        max_ongoing_requests=params.max_ongoing_requests,
        max_queued_requests=params.max_queued_requests,
        ray_actor_options={"num_cpus": params.cpus_per_replica},
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=params.drain_seconds,
    )
    return deployment.bind(
        spec=spec,
        root=str(root),
        params=params.model_dump(mode="json"),
        token_sha256=token_sha256,
        environment=dict(environment),
    )
