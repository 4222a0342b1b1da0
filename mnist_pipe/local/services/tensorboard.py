"""TensorBoard: the search's curves. It has no password, and listens on loopback alone."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_pipe import paths
from mnist_pipe.local.http_probe import LOOPBACK
from mnist_pipe.local.services.process import free_port
from mnist_pipe.local.services.program import Launch, Program, flags

PORT = 6006
"""The first that is tried."""


def _plan(root: Path) -> Launch:
    port, curves = free_port(PORT), _curves(root)
    options = {"--logdir": curves, "--host": LOOPBACK, "--port": port}
    return Launch(command=["tensorboard", *flags(options)], port=port, address=curves)


def _curves(root: Path) -> str:
    """The folder of Ray's results in the storage, where the search writes its curves."""
    from mnist_pipe.cluster import storage  # which imports pyarrow: 0.1 s

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
