"""The training loop: plain torch, one process of `ranks`, the rows from memory or from a stream.

Every random draw comes from a generator seeded by (seed, epoch), so a run that resumes at an epoch goes on exactly as
one that was never stopped, and ranks agree on every draw without a word between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.data import augment
from mnist_pipe.errors import PipelineError, describe
from mnist_pipe.training import ema, optimizers
from mnist_pipe.training.batches import ALONE, Batches, DeviceSplit, Ranks
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.schedules import SCHEDULES


class DivergedError(PipelineError):
    """The loss is no longer a finite number."""


_ROWS_AT_ONCE = {"cpu": 250, "cuda": 4096}  # without gradients; more of them leave the processors' caches


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run has come: `epoch` whole epochs and `step` steps of the next."""

    epoch: int = 0
    step: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Loss, hits and images of those steps, over all workers."""


START = Position()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a recipe's precision; `auto` is bfloat16 only where the hardware computes in it."""
    bfloat16 = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is arithmetic here and not emulation, which is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _choose_kernels() -> None:
    """Call every function that MKL computes for us once, in one thread.

    MKL chooses a function's kernel at its first call. When two threads make that call at once, one of them may compute
    its share with a less exact kernel (pytorch/pytorch#188792): the same seed then gives other bits, once in a while.
    """
    for function in (torch.sqrt, torch.tanh, torch.cos, torch.sin):
        function(torch.ones(1))


def _keep_memory() -> None:
    """Have glibc keep what a step frees, which the next one needs.

    It gives the end of its heap back to the system, which then has to clear the pages again, when more than twice the
    largest block that was ever freed is free: so until the first large one is, at every step, and two epochs of the
    standard recipe cost 990,000 page faults. This one is never touched and costs nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # of more than 32 MB glibc takes no note


def new_run(recipe: Recipe, *, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and its optimizer at step 0; the same seed gives the same weights on every machine."""
    _choose_kernels()
    _keep_memory()
    torch.manual_seed(recipe.seed)
    model = models.build(recipe.model, **recipe.model_params)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizers.build(
        recipe.optimizer, model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return model, optimizer


def train(
    recipe: Recipe,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Batches,
    validation: DeviceSplit,
    start: Position = START,
    ranks: Ranks = ALONE,
    is_leaving: Callable[[], bool] = lambda: False,
    save: Callable[[Position], None] = lambda _: None,
) -> Iterator[dict[str, float]]:
    """Train epoch by epoch from `start`, yielding each epoch's metrics with the model as it then is.

    After each step `is_leaving` is asked, and where it says yes, on every worker at the same step, `save` is called.

    With an average of the weights, it is what is validated.

    Yields `epoch` (from 1), `train_loss` and `validation_loss` (mean negative log-likelihood in nats, without label
    smoothing), `train_accuracy` and `validation_accuracy` in [0, 1], each a sum over all workers divided once.

    Raises:
        DivergedError: the loss of an epoch is not finite.
    """
    schedule = SCHEDULES[recipe.schedule]
    device = next(model.parameters()).device
    batch_size = min(recipe.batch_size, training.num_rows)
    num_steps = training.num_rows // batch_size
    augmented = bool(recipe.rotation_degrees or recipe.translation_pixels)
    for epoch in range(start.epoch, recipe.num_epochs):
        torch.manual_seed(_seed(recipe.seed, epoch))  # for a model that draws, such as dropout
        order, chance = generators(recipe.seed, epoch)
        batches = training.epoch(epoch, batch_size=batch_size, ranks=ranks, generator=order)
        sums = torch.zeros(3, device=device, dtype=torch.float64)
        first_step = start.step if epoch == start.epoch else 0
        if first_step and ranks.rank == 0:
            sums += torch.tensor(start.sums, device=device, dtype=sums.dtype)
        if augmented:  # of the whole epoch, so that they reach the device at once
            moves = augment.draw(
                num_steps * batch_size,
                rotation_degrees=recipe.rotation_degrees,
                translation_pixels=recipe.translation_pixels,
                generator=chance,
            ).to(device)
        model.train()
        for step, (images, labels) in enumerate(batches):
            if step < first_step:
                continue
            if augmented:
                mine = moves[step * batch_size : (step + 1) * batch_size][ranks.rank_slice]
                images = augment.affine(images, mine, background=training.background)
            with autocast(recipe.precision, device):
                logits = model(images).float()
            log_probabilities = logits.log_softmax(1)
            likely = F.nll_loss(log_probabilities, labels)
            loss = likely.lerp(-log_probabilities.mean(), recipe.label_smoothing)
            # DDP takes the mean over the workers, whose shares may differ by a row: so weighted, it is the mean over
            # the rows of the whole batch. Of equal shares the weight is exactly 1.
            weighted = loss * (len(labels) * ranks.size / batch_size)
            weighted.backward()  # type: ignore[no-untyped-call]
            multiplier = schedule((epoch * num_steps + step) / (recipe.num_epochs * num_steps))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if recipe.average_decay:
                ema.update(optimizer, decay=recipe.average_decay)
            correct = (logits.detach().argmax(1) == labels).sum()
            # It stays on the device: no host sync within an epoch.
            sums += torch.stack([likely.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
            if is_leaving() and step + 1 < num_steps:
                save(Position(epoch=epoch, step=step + 1, sums=tuple(ranks.all_reduce(sums.clone()).tolist())))
        train_loss, train_accuracy = _rates(ranks.all_reduce(sums))
        with ema.averaged(optimizer):
            validation_loss, validation_accuracy = evaluate(model, validation, ranks=ranks)
        if not (np.isfinite(train_loss) and np.isfinite(validation_loss)):
            loss_now = train_loss if not np.isfinite(train_loss) else validation_loss
            fix = "lower the learning rate"
            raise DivergedError(
                describe("training", "the loss", "stay finite", got=f"{loss_now} in epoch {epoch + 1}", fix=fix)
            )
        yield {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
        }


def progress_line(metrics: dict[str, float], *, num_epochs: int) -> str:
    """One epoch as a person reads it."""
    return (
        f"epoch {metrics['epoch']}/{num_epochs}: train loss {metrics['train_loss']:.4f}, "
        f"validation loss {metrics['validation_loss']:.4f}, validation accuracy {metrics['validation_accuracy']:.2%}"
    )


def evaluate(model: nn.Module, data: DeviceSplit, *, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Mean negative log-likelihood in nats and accuracy in [0, 1] over all workers' rows, in float32."""
    mine = slice(ranks.rank, None, ranks.size)
    images, labels = data.images[mine], data.labels[mine]
    sums = torch.zeros(3, device=labels.device, dtype=torch.float64)
    num_rows = _ROWS_AT_ONCE[labels.device.type]
    for start in range(0, len(labels), num_rows):
        stop = start + num_rows
        sums += _score(_forward(model, images[start:stop]), labels[start:stop])
    return _rates(ranks.all_reduce(sums))


def logits(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 10) logits of (n, 28, 28) standardised images, in float32 on the model's device."""
    _choose_kernels()
    device = next(model.parameters()).device
    parts = []
    num_rows = _ROWS_AT_ONCE[device.type]
    for start in range(0, len(images), num_rows):
        batch = torch.tensor(images[start : start + num_rows], device=device).unsqueeze(1)
        parts.append(_forward(model, batch).cpu())
    return torch.cat(parts).numpy()


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor) -> Tensor:
    # Not the DDP wrapper: its forward broadcasts buffers, and ranks may have different numbers of batches.
    inner: nn.Module = getattr(model, "module", model)
    inner.eval()
    output: Tensor = inner(images)
    return output


def _score(outputs: Tensor, labels: Tensor) -> Tensor:
    """(summed negative log-likelihood, number correct, number seen)."""
    loss = F.cross_entropy(outputs, labels, reduction="sum")
    correct = (outputs.argmax(1) == labels).sum()
    return torch.stack([loss, correct, torch.tensor(len(labels), device=labels.device)]).double()


def _rates(sums: Tensor) -> tuple[float, float]:
    loss, correct, seen = sums.tolist()
    return loss / seen, correct / seen


def generators(seed: int, epoch: int) -> tuple[torch.Generator, torch.Generator]:
    """What draws the order of an epoch's rows, and what draws how each of them is moved."""
    order, chance = (torch.Generator().manual_seed(_seed(seed, epoch, which)) for which in (1, 2))
    return order, chance


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
