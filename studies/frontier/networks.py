"""How one network of the frontier is trained: its kernels, snapshots of its course, and distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.models import numerics
from mnist_pipe.training import loop, optimizers
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from studies.common import fitting
from studies.frontier import distortions
from studies.frontier.distortions import Distortion


def build(recipe: Recipe, *, kernel: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the recipe's convnet with square kernels of an odd size of 3 or more, and its optimizer, at step 0."""
    model, optimizer = loop.new_run(recipe, device=fitting.device())
    if kernel == 3:
        return model, optimizer
    layers = model.get_submodule("features")
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d):  # padded by as much more as the kernel is larger: the maps keep their sizes
            padding = int(layer.padding[0]) + (kernel - 3) // 2
            larger = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, padding=padding, bias=False)
            layers.register_module(name, larger)
    model = model.to(fitting.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizers.build(
        recipe.optimizer, model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return model, optimizer


def train(
    recipe: Recipe,
    *,
    kernel: int = 3,
    distortion: Distortion,
    cycles: int = 1,
    distilled: float = 0.0,
    training: DeviceSplit,
) -> Iterator[tuple[nn.Module, float]]:
    """Train one network; yield it and its training accuracy in the last epoch at the end of each cycle.

    Args:
        recipe: everything but what follows; its epochs are divided among the cycles.
        kernel: the side of the convolutions' kernels.
        distortion: how the training images are distorted.
        cycles: cycles of the learning rate, each of which ends in a snapshot (Huang et al. 2017).
        distilled: share of the loss that is the cross-entropy with the output of a teacher. The teacher is a network of
            the same kind that is trained before (born-again networks, Furlanello et al. 2018); 0 does without.
        training: the rows to learn from.
    """
    teacher = None
    if distilled:
        own = replace(recipe, seed=recipe.seed + 1000)
        *_, (teacher, _) = train(own, kernel=kernel, distortion=distortion, training=training)
        teacher.eval()
    model, optimizer = build(recipe, kernel=kernel)
    learner = Learner(
        recipe, model=model, optimizer=optimizer, distortion=distortion, teacher=teacher, distilled=distilled
    )
    for cycle in range(cycles):
        course = replace(recipe, num_epochs=max(1, recipe.num_epochs // cycles), seed=recipe.seed + 1000 * cycle)
        *_, (_, metrics) = loop.epochs(learner, course, training=training)
        yield model, float(metrics[1])


class Learner(loop.Network):
    """Learner of one network on distorted images, from their labels and, if there is one, from a teacher."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        distortion: Distortion,
        teacher: nn.Module | None = None,
        distilled: float = 0.0,
    ) -> None:
        super().__init__(recipe, model=model, optimizer=optimizer)
        self._distortion, self._teacher, self._share = distortion, teacher, distilled
        self._fields = distortions.fields_of(distortion, seed=recipe.seed).to(self.device)

    def draw(self, num_rows: int, *, generator: torch.Generator) -> Tensor | None:
        """Return the distortions of an epoch's images, float32 `(num_rows, 8)`, on the device."""
        return distortions.draw(num_rows, self._distortion, generator=generator).to(self.device)

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: loop.Batch) -> Tensor:
        """Distort the images, then run a step of `loop.Network`, or one that learns from the teacher as well."""
        assert moves is not None
        assert isinstance(batch.background, float)  # MNIST is grey
        images = distortions.distorted(images, moves, fields=self._fields, background=batch.background)
        if self._teacher is None:
            return super().step(images, labels, moves=None, batch=batch)
        recipe, optimizer = self._recipe, self._optimizer
        with numerics.autocast(recipe.precision, self.device):
            with torch.no_grad():
                target = self._teacher(images).float().softmax(1)
            logits = self._model(images).float()
        labelled = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        loss = labelled.lerp(F.cross_entropy(logits, target), self._share)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * batch.multiplier
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        correct = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([labelled.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
