"""The training loop of one process of `ranks`: plain PyTorch, with rows from memory or from a stream.

Every random draw comes from a generator seeded by (seed, epoch). A run that resumes at an epoch therefore computes
exactly what an uninterrupted run computes, and all ranks draw the same numbers without communicating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.data import augment
from mnist_pipe.data.facts import MNIST, Background, Facts
from mnist_pipe.errors import PipelineError
from mnist_pipe.models import numerics
from mnist_pipe.models.forward import ROWS_AT_ONCE, chunks, forward
from mnist_pipe.training import ema, optimizers
from mnist_pipe.training.batches import ALONE, Batches, DeviceSplit, Ranks, class_weights, derived_seed, generators
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.recorded import recorded
from mnist_pipe.training.schedules import SCHEDULES


class DivergedError(PipelineError):
    """Error of a run whose loss is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Position of a run: `epoch` completed epochs and `step` steps into the next."""

    epoch: int = 0
    """Number of completed epochs."""
    step: int = 0
    """Number of completed steps of the next epoch."""
    sums: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Summed loss in nats, correct images and all images of those steps, over all workers."""


START = Position()


def new_run(recipe: Recipe, *, device: torch.device, facts: Facts = MNIST) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and its optimizer at step 0; the same seed gives the same weights on every machine.

    Args:
        recipe: the model, its arguments, the optimizer and the seed.
        device: the device of the weights.
        facts: the shape of the images and the classes.
    """
    numerics.choose_kernels()
    numerics.keep_memory()
    torch.manual_seed(recipe.seed)
    model = models.build(recipe.model, facts=facts, **recipe.model_params)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizers.build(
        recipe.optimizer, model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if "capturable" in group:  # the others can be recorded as they are
            group["capturable"] = device.type == "cuda"
    return model, optimizer


class Learner(Protocol):
    """Object that the loop trains: one network, or the stacked networks of many recipes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading dimensions of every metric: `()` for one network, `(members,)` for many."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def draw(self, num_rows: int, *, generator: torch.Generator) -> Tensor | None:
        """Return rotation and shifts of an epoch's images, float32 `(num_rows, 3)`, or None if no image moves."""

    def start_epoch(self) -> None:
        """Enter training mode."""

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: Batch) -> Tensor:
        """Run one optimizer step on this worker's rows of a batch, and return their summed metrics.

        Args:
            images: float32 `(rows, channels, height, width)`.
            labels: int64 `(rows,)`.
            moves: these rows of the result of `draw`, float32 `(rows, 3)`, or None.
            batch: what the step must know about the whole batch.

        Returns:
            A floating-point tensor `(*shape, 3)` on the device: the summed loss in nats, the number of correct rows,
            and the number of rows.
        """


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Description of a step's batch, apart from this worker's rows."""

    size: int
    """Number of rows over all workers."""
    multiplier: float | Tensor
    """Factor by which the schedule multiplies the peak learning rate at this step; a tensor `()` if it is recorded."""
    background: Background
    """Value of an empty pixel after standardisation."""
    class_weights: Tensor | None = None
    """Weight of the loss of a row of each class, float32 `(classes,)`; None if all have 1."""


class Network:
    """`Learner` of one network and its optimizer."""

    shape = ()

    def __init__(
        self, recipe: Recipe, *, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE
    ) -> None:
        self._recipe, self._model, self._optimizer, self._ranks = recipe, model, optimizer, ranks
        self.device = next(model.parameters()).device

    def draw(self, num_rows: int, *, generator: torch.Generator) -> Tensor | None:
        """Return rotation (radians) and shifts (pixels), float32 `(num_rows, 3)` on the device, or None.

        They are drawn for the whole epoch, so that one copy brings them to the device.
        """
        recipe = self._recipe
        if not (recipe.rotation_degrees or recipe.translation_pixels):
            return None
        return augment.draw(
            num_rows,
            rotation_degrees=recipe.rotation_degrees,
            translation_pixels=recipe.translation_pixels,
            generator=generator,
        ).to(self.device)

    def start_epoch(self) -> None:
        """Enter training mode."""
        self._model.train()

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: Batch) -> Tensor:
        """Run one optimizer step and return `(3,)`: summed loss, correct rows and rows; see `Learner.step`."""
        recipe, optimizer = self._recipe, self._optimizer
        if moves is not None:
            images = augment.affine(images, moves, background=batch.background)
        with numerics.autocast(recipe.precision, self.device):
            logits = self._model(images).float()
        log_probabilities = logits.log_softmax(1)
        likely = F.nll_loss(log_probabilities, labels)
        if batch.class_weights is None:
            loss = likely.lerp(-log_probabilities.mean(), recipe.label_smoothing)
        else:
            rows = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
            loss = (rows * batch.class_weights[labels]).mean()
        # DDP averages the gradients over the workers, whose shares may differ by a row. With this weight the average is
        # the mean over the rows of the whole batch. For equal shares the weight is exactly 1.
        weighted = loss * (len(labels) * self._ranks.size / batch.size)
        weighted.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * batch.multiplier
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if recipe.average_decay:
            ema.update(optimizer, decay=recipe.average_decay)
        correct = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([likely.detach() * len(labels), correct, torch.full_like(correct, len(labels))])


def epochs(
    learner: Learner,
    recipe: Recipe,
    *,
    training: Batches,
    start: Position = START,
    ranks: Ranks = ALONE,
    after_step: Callable[[Callable[[], Position]], None] = lambda _: None,
) -> Iterator[tuple[int, Tensor]]:
    """Train `learner` epoch by epoch, and yield each epoch's number and training metrics as soon as it ends.

    Args:
        learner: the network or the stacked networks.
        recipe: the number of epochs, the batch size, the schedule and the seed.
        training: the source of the training batches.
        start: the position of the checkpoint that the run resumes from.
        ranks: the rank of this process.
        after_step: called after every step except an epoch's last, with a function that returns the run's position.
            All workers must call that function at the same step, because it sums over them.

    Yields:
        The number of the epoch, from 1, and its metrics over all workers, float64 `(*learner.shape, 2)` on the CPU:
        mean negative log-likelihood in nats and accuracy in [0, 1], both of the training rows as augmented and at the
        weights of their step.
    """
    schedule = SCHEDULES[recipe.schedule]
    batch_size = min(recipe.batch_size, training.num_rows)
    num_steps = training.num_rows // batch_size
    weights = class_weights(training.class_counts) if recipe.balance == "weights" else None
    balanced = recipe.balance == "sampling"
    for epoch in range(start.epoch, recipe.num_epochs):
        torch.manual_seed(derived_seed(recipe.seed, epoch))  # for layers that draw, such as dropout
        batches = training.epoch(epoch, seed=recipe.seed, batch_size=batch_size, ranks=ranks, balanced=balanced)
        sums = torch.zeros(*learner.shape, 3, device=learner.device, dtype=torch.float64)
        first_step = start.step if epoch == start.epoch else 0
        if first_step and ranks.rank == 0:
            sums += torch.tensor(start.sums, device=sums.device, dtype=sums.dtype)
        moves = learner.draw(num_steps * batch_size, generator=generators(recipe.seed, epoch)[1])
        learner.start_epoch()
        for step, (images, labels) in enumerate(batches):
            if step < first_step:
                continue
            batch = Batch(
                size=batch_size,
                multiplier=schedule((epoch * num_steps + step) / (recipe.num_epochs * num_steps)),
                background=training.background,
                class_weights=weights,
            )
            mine = None if moves is None else moves[step * batch_size : (step + 1) * batch_size][ranks.rank_slice]
            # The sums stay on the device, so that no step waits for a transfer to the CPU.
            with numerics.products(recipe.precision, learner.device):
                sums += learner.step(images, labels, moves=mine, batch=batch)
            if step + 1 < num_steps:
                after_step(partial(_position, epoch, step + 1, sums, ranks))
        sums = ranks.all_reduce(sums).cpu()
        yield epoch + 1, sums[..., :2] / sums[..., 2:]


def _position(epoch: int, step: int, sums: Tensor, ranks: Ranks) -> Position:
    return Position(epoch=epoch, step=step, sums=tuple(ranks.all_reduce(sums.clone()).tolist()))


def train(
    recipe: Recipe,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Batches,
    validation: DeviceSplit,
    start: Position = START,
    ranks: Ranks = ALONE,
    after_step: Callable[[Callable[[], Position]], None] = lambda _: None,
) -> Iterator[dict[str, float]]:
    """Train one network by `epochs`, and yield each epoch's metrics as soon as it ends.

    If the recipe keeps an average of the weights, the averaged weights are validated.

    Args:
        recipe: everything that defines the run, apart from its data.
        model: the network, or its DDP wrapper.
        optimizer: the optimizer of the network's parameters.
        training: the source of the training batches.
        validation: the validation split.
        start: the position of the checkpoint that the run resumes from.
        ranks: the rank of this process.
        after_step: see `epochs`.

    Yields:
        `epoch` (from 1), `train_loss` and `validation_loss` (mean negative log-likelihood in nats, without label
        smoothing), `train_accuracy` and `validation_accuracy` in [0, 1]. Each metric is a sum over all workers,
        divided once.

    Raises:
        DivergedError: the loss of an epoch is not finite.
    """
    learner: Learner = Network(recipe, model=model, optimizer=optimizer, ranks=ranks)
    if ranks.size == 1:
        learner = recorded(learner)
    for epoch, metrics in epochs(learner, recipe, training=training, start=start, ranks=ranks, after_step=after_step):
        train_loss, train_accuracy = metrics.tolist()
        with ema.averaged(optimizer):
            validation_loss, validation_accuracy = evaluate(model, validation, ranks=ranks)
        if not (np.isfinite(train_loss) and np.isfinite(validation_loss)):
            loss_now = train_loss if not np.isfinite(train_loss) else validation_loss
            fix = "lower the learning rate"
            raise DivergedError.invalid(
                "training", "the loss", "stay finite", got=f"{loss_now} in epoch {epoch}", fix=fix
            )
        yield {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
        }


def progress_line(metrics: dict[str, float], *, num_epochs: int) -> str:
    """Return one epoch's metrics as a line of text for a log."""
    return (
        f"epoch {metrics['epoch']}/{num_epochs}: train loss {metrics['train_loss']:.4f}, "
        f"validation loss {metrics['validation_loss']:.4f}, validation accuracy {metrics['validation_accuracy']:.2%}"
    )


def evaluate(model: nn.Module, data: DeviceSplit, *, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Return mean negative log-likelihood in nats and accuracy in [0, 1] over all workers' rows.

    The forward pass is in float32: without autocast and without TF32.
    """
    images, labels = data.images[ranks.rank_slice], data.labels[ranks.rank_slice]
    sums = torch.zeros(3, device=labels.device, dtype=torch.float64)
    for rows in chunks(len(labels), ROWS_AT_ONCE[labels.device.type]):
        sums += _score(forward(model, images[rows]), labels[rows])
    loss, correct, seen = ranks.all_reduce(sums).tolist()
    return loss / seen, correct / seen


def _score(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return float64 `(3,)`: summed negative log-likelihood in nats, number of correct rows, and number of rows.

    Args:
        outputs: logits, float32 `(rows, classes)`.
        labels: int64 `(rows,)`.
    """
    loss = F.cross_entropy(outputs, labels, reduction="sum")
    correct = (outputs.argmax(1) == labels).sum()
    return torch.stack([loss, correct, torch.full_like(correct, len(labels))]).double()
