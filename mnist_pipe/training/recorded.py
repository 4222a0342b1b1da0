"""A step as a GPU repeats it: its operations are recorded once, as a CUDA graph, and then launched as one.

A step of a small network is a hundred operations of some microseconds each, and to launch one takes the CPU longer. A
step can be recorded because it draws its numbers before it starts, waits for nothing, and brings nothing from the CPU
but its arguments; `tests/test_recorded.py` holds that for every model and optimizer.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mnist_pipe.training.loop import Batch, Learner

NUM_FIRST = 3
"""Number of steps that run as they are: libraries choose their kernels, and the optimizer makes its state."""


def recorded(learner: Learner) -> Learner:
    """Return a learner that does the same steps and, on a GPU, records the first ones and replays them."""
    return Recorded(learner) if learner.device.type == "cuda" else learner


class Recorded:
    """`loop.Learner` on a GPU, of which every step has equally many rows and changes tensors in their place."""

    def __init__(self, learner: Learner) -> None:
        self.shape, self.device = learner.shape, learner.device
        self._learner = learner
        self._num_steps = 0
        self._graph = torch.cuda.CUDAGraph()
        self._inputs: list[Tensor] = []
        self._rate = torch.zeros((), device=self.device)
        self._metrics = torch.empty(0)

    def draw(self, num_rows: int, *, generator: torch.Generator) -> Tensor | None:
        """Return the draw of the learner."""
        return self._learner.draw(num_rows, generator=generator)

    def start_epoch(self) -> None:
        """Start an epoch of the learner."""
        self._learner.start_epoch()

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: Batch) -> Tensor:
        """Run or replay one step, and return its metrics, which are valid until the next; see `loop.Learner.step`."""
        given = [tensor for tensor in (images, labels, moves) if tensor is not None]
        if not self._inputs:
            self._inputs = [torch.empty_like(tensor) for tensor in given]
        for place, tensor in zip(self._inputs, given, strict=True):
            place.copy_(tensor)
        self._rate.fill_(batch.multiplier)
        self._num_steps += 1
        if self._num_steps <= NUM_FIRST:
            return self._first(batch)
        if self._num_steps == NUM_FIRST + 1:
            # Other threads, as those of Ray, may use the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._metrics = self._run(batch)
        self._graph.replay()
        return self._metrics

    def _first(self, batch: Batch) -> Tensor:
        """Run a step on a stream of its own, as what is recorded later must not depend on the default one."""
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        main = torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side), warnings.catch_warnings():
            # The optimizer is told that it will be recorded, and notices that this step is not.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            metrics = self._run(batch)
        main.wait_stream(side)
        return metrics

    def _run(self, batch: Batch) -> Tensor:
        images, labels, *moves = self._inputs
        return self._learner.step(
            images, labels, moves=moves[0] if moves else None, batch=replace(batch, multiplier=self._rate)
        )
