"""LeNet-5 trained by many optimizers at once: one start, the same batches, and for each a row of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.models import forward
from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from studies.optimizers import lenets

_ROWS_AT_ONCE = 250  # in evaluation, without gradients


class LeNets:
    """The LeNet-5 networks `models`, all with the same activation, as rows of one matrix of weights."""

    def __init__(
        self, models: Sequence[nn.Module], *, convolutions: Literal["relu", "linear"], dtype: torch.dtype
    ) -> None:
        vectors = [torch.cat([part.flatten() for part in model.parameters()]).detach() for model in models]
        self.weights = nn.Parameter(torch.stack(vectors))
        """Weights, float32 `(members, parameters)`: in each row one member's parameters, one after the other."""
        self.weights.grad = torch.zeros_like(self.weights)
        self.members = list(range(len(models)))
        """Members that are computed, in the order of the results."""
        self._convolutions = convolutions
        self._shapes = [parameter.shape for parameter in models[0].parameters()]
        self._dtype = dtype
        """Dtype of the products; they are summed in float32."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, float32 `(members, 10, N)`, of images, float32 `(N, 1, 28, 28)`."""
        weights = self.weights if len(self.members) == len(self.weights) else self.weights[self.members]
        return lenets.logits(self._parts(weights), images, convolutions=self._convolutions, dtype=self._dtype)

    def member(self, index: int, *, whole: bool) -> nn.ParameterList:
        """Return a member's parameters for an optimizer, `whole` as one vector; they share its weights and gradient.

        One vector is for optimizers that treat each weight by itself, and saves most of a step's calls.
        """
        weights, gradient = self.weights.detach()[index], self.weights.grad[index]  # type: ignore[index]
        found = nn.ParameterList([weights] if whole else self._parts(weights))
        for parameter, part in zip(found, [gradient] if whole else self._parts(gradient), strict=True):
            parameter.grad = part
        return found

    def copy_to(self, model: nn.Module, index: int) -> nn.Module:
        """Copy the weights of a member into `model` and return `model`."""
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), self._parts(self.weights[index]), strict=True):
                parameter.copy_(part)
        return model

    def _parts(self, weights: Tensor) -> list[Tensor]:
        """Return each parameter, `(..., *shape)`, as a view of `weights`, `(..., parameters)`."""
        flat = torch.split(weights, [shape.numel() for shape in self._shapes], dim=-1)
        return [part.view(*weights.shape[:-1], *shape) for part, shape in zip(flat, self._shapes, strict=True)]


def train(
    nets: LeNets,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    training: DeviceSplit,
    recipe: Recipe,
    start: loop.Position = loop.START,
) -> Iterator[list[float]]:
    """Train by `recipe`, except for its optimizer and rate: `optimizers` has one for each computed member.

    Yields the training losses of each epoch after `start`, one for each computed member, in nats.
    """
    for _, metrics in loop.epochs(_SideBySide(nets, optimizers), recipe, training=training, start=start):
        yield metrics[:, 0].tolist()


class _SideBySide:
    """The networks, each with its own optimizer, as `loop.epochs` trains them."""

    def __init__(self, nets: LeNets, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.shape, self.device = (len(nets.members),), nets.weights.device
        self._nets, self._optimizers = nets, optimizers

    def draw(self, num_rows: int, *, generator: torch.Generator) -> None:
        """Return None: no image moves."""

    def start_epoch(self) -> None:
        """Do nothing: the networks compute the same in training and in evaluation."""

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: loop.Batch) -> Tensor:  # noqa: ARG002
        """Make one step of every optimizer, as `loop.Learner` describes, and count no hits; the rates are constant.

        `images` are float32 `(B, 1, 28, 28)`, `labels` int64 `(B,)`; the result is float64 `(members, 3)`.
        """
        logits = self._nets.logits(images)
        loss = F.cross_entropy(logits, labels.expand(len(logits), -1), reduction="none").mean(1)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            optimizer.step()
        self._nets.weights.grad.zero_()  # type: ignore[union-attr]
        seen = torch.full_like(loss, len(labels)).double()
        return torch.stack([loss.detach().double() * seen, torch.zeros_like(seen), seen], dim=1)


@torch.inference_mode()
def accuracies(nets: LeNets, data: DeviceSplit) -> list[float]:
    """Return each computed member's accuracy on the rows of `data`, in [0, 1]."""
    hits = torch.zeros(len(nets.members), device=nets.weights.device)
    for rows in forward.chunks(data.num_rows, _ROWS_AT_ONCE):
        hits += (nets.logits(data.images[rows]).argmax(1) == data.labels[rows]).sum(1)
    return (hits / data.num_rows).tolist()
