"""TensorBoard, which shows the curves of the search; it has no password and listens on loopback only."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, flags

PORT = 6006
"""First port to try."""


def _plan(root: Path) -> Launch:
    port, curves = free_port(PORT), _curves(root)
    options = {"--logdir": curves, "--host": LOOPBACK, "--port": port}
    return Launch(command=["tensorboard", *flags(options)], port=port, address=curves)


def _curves(root: Path) -> str:
    """Return the folder or URI of Ray's results in the storage, where the search writes its curves."""
    from mnist_pipe.cluster import storage  # imports pyarrow, which takes 0.1 s

    place = os.environ.get(storage.VARIABLE)
    if not place:
        return str(root / paths.RAY_RESULTS)
    return f"{place.rstrip('/')}/ray" if "://" in place else str(root / place / "ray")


PROGRAM = Program(
    plan=_plan,
    probe="data/environment",
    accepts=lambda service, reply: isinstance(reply, dict) and reply.get("data_location") == service.address,
    shows=_curves,
    has_secret=False,
)
