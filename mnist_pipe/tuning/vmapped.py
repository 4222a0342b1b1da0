"""Packs: recipes of one shape that train together in one process, by `torch.func.vmap`.

Recipes that differ only in rates and augmentation run the same operations on the same rows in the same order. Here
their weights are stacked, `(members, ...)`, and one operation computes all members. If the time of an operation is
mostly its launch, many members cost little more than one. Each member's metrics equal those of `loop.train` within
rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from mnist_pipe import models
from mnist_pipe.data import augment
from mnist_pipe.data.facts import MNIST, Background, Facts
from mnist_pipe.errors import InputError
from mnist_pipe.models import forward, numerics
from mnist_pipe.training import loop
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.training.recorded import recorded

MEMBERS_DIFFER_IN = ("learning_rate", "weight_decay", "rotation_degrees", "translation_pixels")
"""Fields of `Recipe` in which the members of one pack may differ."""
_MAX_ON_GPU = 256
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_MIN_ON_CPU, _MAX_ON_CPU = 4, 16
_MAX_PARAMETERS_ON_CPU = 15_000  # `benchmarks/packs.py` has measured no larger model: 784-15-10 has 11,935


def shape(recipe: Recipe) -> str:
    """Return the fields that a pack has in common, as canonical JSON; recipes with equal shapes may train together."""
    common = {key: value for key, value in recipe.to_dict().items() if key not in MEMBERS_DIFFER_IN}
    return json.dumps(common, sort_keys=True)


def train_pack(
    recipes: Sequence[Recipe],
    *,
    training: DeviceSplit,
    validation: DeviceSplit,
    device: torch.device,
    facts: Facts = MNIST,
) -> Iterator[list[dict[str, float]]]:
    """Train `recipes` together from their first step to their last, and yield each epoch's metrics of all members.

    If this device has too little memory for all of them, they train epoch by epoch in parts that fit. `facts` are the
    shape of the images and the classes.

    Yields:
        The metrics of each member, as of `loop.train`, in the order of `recipes`. From the epoch in which a member's
        loss is no longer finite, its metrics are `epoch`, `validation_accuracy` 0 and `diverged` 1. The other members
        are not affected.

    Raises:
        InputError: there are no recipes, or they have different shapes.
    """
    _check(recipes)
    assert not recipes[0].average_decay
    packs = [Pack(part, device=device, facts=facts) for part in fitting_parts(recipes, device=device, facts=facts)]
    # The operations of a recording keep their memory, so that the parts of a pack could not use it in turn.
    prepare = recorded if len(packs) == 1 else lambda pack: pack
    epochs = [_epochs(pack, prepare(pack), recipes[0], training=training, validation=validation) for pack in packs]
    for parts in zip(*epochs, strict=True):
        yield [metrics for part in parts for metrics in part]


def _epochs(
    pack: Pack, learner: loop.Learner, recipe: Recipe, *, training: DeviceSplit, validation: DeviceSplit
) -> Iterator[list[dict[str, float]]]:
    """Yield each epoch's metrics of the members of `pack`, which `learner` trains."""
    diverged = np.zeros(pack.shape, dtype=bool)
    for epoch, metrics in loop.epochs(learner, recipe, training=training):
        in_training, in_validation = metrics.numpy(), pack.evaluate(validation).cpu().numpy()
        diverged |= ~(np.isfinite(in_training[:, 0]) & np.isfinite(in_validation[:, 0]))
        yield [
            {"epoch": epoch, "validation_accuracy": 0.0, "diverged": 1}
            if diverged[member]
            else {
                "epoch": epoch,
                "train_loss": float(in_training[member, 0]),
                "train_accuracy": float(in_training[member, 1]),
                "validation_loss": float(in_validation[member, 0]),
                "validation_accuracy": float(in_validation[member, 1]),
            }
            for member in range(len(diverged))
        ]


def fitting_parts(recipes: Sequence[Recipe], *, device: torch.device, facts: Facts = MNIST) -> list[Sequence[Recipe]]:
    """Return `recipes`, of one shape, in parts that fit into the free memory of `device`; on a CPU in one part."""
    if device.type != "cuda":
        return [recipes]
    most = max_members(recipes[0], device=device, facts=facts)
    return [recipes[start : start + most] for start in range(0, len(recipes), most)]


class Pack:
    """`loop.Learner` of the stacked networks of recipes that differ only in `MEMBERS_DIFFER_IN`."""

    def __init__(self, recipes: Sequence[Recipe], *, device: torch.device, facts: Facts = MNIST) -> None:
        self.shape, self.device = (len(recipes),), device
        self._recipe = recipes[0]
        # With rate 1 and decay 1, the parameter groups hold the factors by which each parameter uses a member's own
        # rate and decay; see `_Optimizer`.
        unit = replace(recipes[0], learning_rate=1.0, weight_decay=1.0)
        self._model, optimizer = loop.new_run(unit, device=device, facts=facts)
        self._weights, self._buffers = _stack(self._model, len(recipes), convolutions=packs_convolutions(device))
        self._optimizer = _Optimizer(optimizer, model=self._model, weights=self._weights, recipes=recipes)
        self._augmentation = _Augmentation(recipes, device=device)

    def draw(self, num_rows: int, *, generator: torch.Generator) -> Tensor | None:
        """Return unit rotation (radians) and shifts (pixels), float32 `(num_rows, 3)` on the device, or None.

        All members share the draw, and each scales it by its own limits.
        """
        if not self._augmentation.moves:
            return None
        unit = augment.draw(num_rows, rotation_degrees=math.degrees(1), translation_pixels=1, generator=generator)
        return unit.to(self.device)

    def start_epoch(self) -> None:
        """Enter training mode."""
        self._model.train()

    def step(self, images: Tensor, labels: Tensor, *, moves: Tensor | None, batch: loop.Batch) -> Tensor:
        """Run one optimizer step of all members, and return `(members, 3)` float64; see `loop.Learner.step`."""
        if moves is not None:
            images = self._augmentation(images, moves, background=batch.background)
        with numerics.autocast(self._recipe.precision, self.device):
            logits = _forward(self._model, self._weights, self._buffers, images).float()
        # The loss is a sum over members, whose terms share no weight, so each member's gradients are those of its own
        # mean loss.
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            labels.repeat(len(logits)),
            label_smoothing=self._recipe.label_smoothing,
            reduction="sum" if batch.class_weights is None else "none",
        )
        loss = losses if batch.class_weights is None else losses @ batch.class_weights[labels].repeat(len(logits))
        (loss / batch.size).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(batch.multiplier)
        return _score(logits.detach(), labels)

    @torch.inference_mode()
    def evaluate(self, data: DeviceSplit) -> Tensor:
        """Return float64 `(members, 2)`: mean negative log-likelihood in nats and accuracy, as `loop.evaluate` does."""
        self._model.eval()
        sums = torch.zeros(*self.shape, 3, device=self.device, dtype=torch.float64)
        # A GPU has room for the images of a step, of all members.
        size = self._recipe.batch_size if self.device.type == "cuda" else 1000
        for rows in forward.chunks(data.num_rows, size):
            with numerics.products("float32", self.device):
                logits = _forward(self._model, self._weights, self._buffers, data.images[rows])
            sums += _score(logits, data.labels[rows])
        return sums[..., :2] / sums[..., 2:]


def packs(
    recipes: Sequence[Recipe], *, device: torch.device, num_processes: int, facts: Facts = MNIST
) -> list[list[int]]:
    """Return the packs in which `num_processes` processes train `recipes` fastest, as lists of indices.

    Each index is in exactly one list. `facts` are the shape of the images and the classes.
    """
    alike: dict[str, list[int]] = {}
    for index, recipe in enumerate(recipes):
        alike.setdefault(shape(recipe), []).append(index)
    found: list[list[int]] = []
    for indices in alike.values():
        most = max_members(recipes[indices[0]], device=device, facts=facts)
        most = min(most, math.ceil(len(indices) / num_processes))
        num_packs = math.ceil(len(indices) / most)
        for pack in (indices[first::num_packs] for first in range(num_packs)):
            pays = device.type == "cuda" or len(pack) >= _MIN_ON_CPU
            found += [pack] if pays else [[index] for index in pack]
    return found


def max_members(recipe: Recipe, *, device: torch.device, facts: Facts = MNIST) -> int:
    """Return how many recipes of the shape of `recipe` should train together at most; 1 if packing does not pay.

    A recipe with a moving average of the weights trains alone, because packs do not support the average, and so does a
    model with dropout: its members would have to draw what each draws alone.

    On the CPU, packing pays only for small dense networks, from 4 members on: the convolutions of a pack become grouped
    ones, which take at least twice as long. On a GPU, the number is what half of the free memory holds, and at most
    256. That limit is reasoned and not measured, because no GPU was available.
    """
    if recipe.average_decay:
        return 1
    with torch.device("meta"):
        model = models.build(recipe.model, facts=facts, **recipe.model_params)
    if any(isinstance(module, _DROPOUTS) and module.p for module in model.modules()):
        return 1
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if device.type != "cuda":
        is_dense = not any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules())
        return _MAX_ON_CPU if is_dense and num_parameters <= _MAX_PARAMETERS_ON_CPU else 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(_MAX_ON_GPU, free // 2 // _member_bytes(model, batch_size=recipe.batch_size, facts=facts)))


def packs_convolutions(device: torch.device) -> bool:
    """Return whether a pack computes its convolutions by `_Convolution`; on a CPU the rule takes twice as long."""
    return device.type == "cuda"


def _member_bytes(model: nn.Module, *, batch_size: int, facts: Facts = MNIST) -> int:
    """Return the GPU memory, in bytes, that a member takes while it trains; `model`, on the meta device, is changed."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    weights, buffers = _stack(model, 1, convolutions=True)
    images = torch.empty(1, batch_size, *facts.shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _forward(model, weights, buffers, images)
    state = sum(weight.numel() * weight.element_size() for weight in weights.values())
    # The terms are: activations and their gradients; the images, their sampling grid and the result; weights,
    # gradients, moves and two moments.
    return 2 * saved + 5 * images.numel() * images.element_size() + 5 * state


def _check(recipes: Sequence[Recipe]) -> None:
    if not recipes:
        raise InputError.invalid("pack", "recipes", "hold one recipe or more", got="none")
    first = recipes[0].to_dict()
    for recipe in recipes[1:]:
        for key, value in recipe.to_dict().items():
            if key not in MEMBERS_DIFFER_IN and value != first[key]:
                raise InputError.invalid("pack", key, f"be {first[key]!r} as in the first recipe", got=repr(value))


def _stack(model: nn.Module, num_members: int, *, convolutions: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return `num_members` copies of the parameters and of the buffers by name, each stacked as `(members, ...)`.

    Dense layers of `model` are replaced by `_PackedLinear` and, with `convolutions`, convolutions by
    `_PackedConvolution`.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.bias is not None:
                parent.add_module(name, _PackedLinear(child))
            elif convolutions and type(child) is nn.Conv2d and _PackedConvolution.can_replace(child):
                parent.add_module(name, _PackedConvolution(child))
    weights = {
        name: _copies(parameter.detach(), num_members).requires_grad_() for name, parameter in model.named_parameters()
    }
    return weights, {name: _copies(buffer, num_members) for name, buffer in model.named_buffers()}


def _copies(tensor: Tensor, num_members: int) -> Tensor:
    return tensor.expand(num_members, *tensor.shape).clone(memory_format=torch.contiguous_format)


def _forward(model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return logits `(members, rows, classes)` of images, float32, that members share or not.

    Shared images are `(rows, channels, height, width)`, others have a dimension for the members before. The logits are
    float32, or bfloat16 under autocast. In training, the running statistics of batch norm, which are among `buffers`,
    are updated in place.
    """

    def member(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Any:
        return functional_call(model, (weights, buffers), (images,))

    logits: Tensor = vmap(member, in_dims=(0, 0, 0 if images.ndim == 5 else None))(weights, buffers, images)
    return logits


def _score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float64 `(members, 3)`: summed negative log-likelihood in nats, correct rows, and rows.

    Args:
        logits: float32 `(members, rows, classes)`.
        labels: int64 `(rows,)`.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    correct = logits.argmax(2) == labels
    seen = torch.full((len(logits),), len(labels), device=labels.device)
    return torch.stack([losses.view(correct.shape).sum(1), correct.sum(1), seen], dim=1).double()


def _of_each_member(values: Tensor, weight: Tensor) -> Tensor:
    """Return `values`, `(members,)`, in a shape that broadcasts against `weight`, `(members, ...)`."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class _Augmentation:
    """Rotation and shift of a shared batch by each member's own limits."""

    def __init__(self, recipes: Sequence[Recipe], *, device: torch.device) -> None:
        angles = [math.radians(recipe.rotation_degrees) for recipe in recipes]
        shifts = [recipe.translation_pixels for recipe in recipes]
        self._scales = torch.tensor([angles, shifts, shifts], device=device).T
        self.moves = any(angles + shifts)
        """Whether any member's images move."""
        # A CPU is faster if the images fit its cache, a GPU with one large operation.
        self._together = 1 if device.type == "cpu" else len(recipes)
        self._images = torch.empty(0, device=device)  # one for all steps, since new memory is slow to touch

    def __call__(self, images: Tensor, unit: Tensor, *, background: Background) -> Tensor:
        """Return each member's moved images, float32 `(members, *images.shape)`, valid until the next call.

        Args:
            images: float32 `(rows, channels, height, width)`.
            unit: the rows' draw of `Pack.draw`, float32 `(rows, 3)`.
            background: the value of an empty pixel.
        """
        num_members = len(self._scales)
        if len(images) * num_members * images[0].numel() != self._images.numel():
            self._images = images.new_empty(num_members, *images.shape)
        for start in range(0, num_members, self._together):
            moves = unit * self._scales[start : start + self._together, None]
            moved = augment.affine(images.repeat(len(moves), 1, 1, 1), moves.flatten(0, 1), background=background)
            self._images[start : start + len(moves)] = moved.view(-1, *images.shape)
        return self._images


class _Vmapped(torch.autograd.Function):
    """Function with a vmap rule of its own."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing: autograd differentiates the operations of `vmap` as it does any others."""


class _Dense(_Vmapped):
    """`F.linear` with its own vmap rule, because PyTorch's rule copies shared inputs once for every member."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `(rows, outputs)` of values `(rows, inputs)`, weight `(outputs, inputs)` and bias `(outputs,)`.

        All are float32; under autocast the result is bfloat16.
        """
        return F.linear(values, weight, bias)

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, ...],
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, int]:
        """Return the result for all members, and the dimension of the result that counts the members.

        If the members share the values, `(rows, inputs)`, all weights are multiplied as one matrix, and the result is
        `(rows, members, outputs)`. Otherwise there is one product for each member, and the result is
        `(members, rows, outputs)`. Weight is `(members, outputs, inputs)` and bias `(members, outputs)`.
        """
        if in_dims[0] is None:
            return F.linear(values, weight.flatten(0, 1), bias.flatten()).view(-1, *bias.shape), 1
        return torch.baddbmm(bias.unsqueeze(1), values.movedim(in_dims[0], 0), weight.mT), 0


class _PackedLinear(nn.Module):
    """Dense layer with the parameters of `linear`, whose inputs under vmap may be shared by all members or not."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return `(rows, outputs)`, float32 or under autocast bfloat16, of values `(rows, inputs)` of one member."""
        result: Tensor = _Dense.apply(values, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Convolution(_Vmapped):
    """`F.conv2d` with its own vmap rule, because PyTorch's rule makes a group of channels of each member.

    For groups of a few channels cuDNN has no fast kernels, least for the gradient of the weights
    (pytorch/pytorch#73764). Here the members' filters are those of one convolution, or one matrix product each.
    """

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        """Return `(rows, outputs, height, width)` of images `(rows, inputs, H, W)`.

        Weight is `(outputs, inputs, k, k)` and bias `(outputs,)` or None. All are float32; under autocast the result is
        bfloat16.
        """
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, ...],
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
    ) -> tuple[Tensor, int]:
        """Return the result for all members, and the dimension of the result that counts the members.

        If the members share the images, one convolution has all filters, and the result is `(rows, members, ...)`.
        Otherwise each patch of an image is a column of a matrix, of which there is one product for each member, and the
        result is `(members, rows, ...)`. Weight is `(members, outputs, inputs, k, k)` and bias `(members, outputs)`.
        """
        num_members, num_outputs, _, *size = weight.shape
        sides = zip(images.shape[-2:], size, strict=True)
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side, kernel in sides)
        if in_dims[0] is None:
            together = F.conv2d(images, weight.flatten(0, 1), None if bias is None else bias.flatten(), stride, padding)
            return together.view(-1, num_members, num_outputs, height, width), 1
        images = images.movedim(in_dims[0], 0)
        patches = F.unfold(images.flatten(0, 1), tuple(size), padding=padding, stride=stride)
        columns = patches.view(num_members, -1, *patches.shape[1:]).transpose(1, 2).flatten(2)
        filters = weight.flatten(2)
        found = filters @ columns if bias is None else torch.baddbmm(bias.unsqueeze(2), filters, columns)
        return found.view(num_members, num_outputs, -1, height, width).transpose(1, 2), 0


class _PackedConvolution(nn.Module):
    """Convolution with the parameters of `convolution`, whose images under vmap may be shared by all members or not."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._stride, self._padding = convolution.stride[0], int(convolution.padding[0])

    @staticmethod
    def can_replace(convolution: nn.Conv2d) -> bool:
        """Return whether the rule covers a convolution: no groups, no holes, one stride and one padding with zeros."""
        return (
            convolution.groups == 1
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
            and set(convolution.dilation) == {1}
            and len(set(convolution.stride)) == len(set(convolution.padding)) == 1
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return `(rows, outputs, height, width)`, float32 or under autocast bfloat16, of images of one member."""
        result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            images, self.weight, self.bias, self._stride, self._padding
        )
        return result


class _Part:
    """One parameter of the model, stacked for all members."""

    def __init__(self, *, weight: Tensor, decay: Tensor | None, decoupled: bool) -> None:
        self.weight = weight
        """Weights of all members, float32 `(members, ...)`."""
        self.move = torch.zeros_like(weight, requires_grad=False)
        """Tensor of the shape of `weight` that the optimizer updates in place of the parameter."""
        self.decay = decay
        """Weight decay of each member, float32 `(members,)`, or None if the parameter does not decay."""
        self.decoupled = decoupled
        """Whether decay shrinks the weight, as in AdamW; otherwise it is added to the gradient."""


class _Optimizer:
    """One optimizer for all members, each with its own learning rate and weight decay.

    Without weight decay, every optimizer of OPTIMIZERS moves a weight by its rate times a term that depends only on the
    gradients. The optimizer therefore runs at rate 1 and without decay, on tensors of zeros that get the gradients of
    the weights. After its step, these tensors hold each member's move at a rate of 1, which is then scaled by the
    member's rate; the decay is applied separately.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        model: nn.Module,
        weights: dict[str, Tensor],
        recipes: Sequence[Recipe],
    ) -> None:
        """Modify `optimizer`, built at rate 1 and decay 1 for `model`, whose stacked parameters are `weights`."""
        device = next(model.parameters()).device
        self._optimizer = optimizer
        self._rates = torch.tensor([recipe.learning_rate for recipe in recipes], device=device, dtype=torch.float64)
        decays = torch.tensor([recipe.weight_decay for recipe in recipes], device=device, dtype=torch.float32)
        stacked = {parameter: weights[name] for name, parameter in model.named_parameters()}
        self._parts = []
        for group in optimizer.param_groups:
            decay = decays if group["weight_decay"] else None
            decoupled = group.get("decoupled_weight_decay", False)
            parts = [
                _Part(weight=stacked[parameter], decay=decay, decoupled=decoupled) for parameter in group["params"]
            ]
            for parameter, part in zip(group["params"], parts, strict=True):
                # Some optimizers create their state in the constructor and not at the first step.
                optimizer.state[part.move] = {
                    key: _copies(value, len(recipes)) if value.shape == parameter.shape else value
                    for key, value in optimizer.state.pop(parameter, {}).items()
                }
            group.update(params=[part.move for part in parts], weight_decay=0.0, stacked=True)
            self._parts += parts

    @torch.no_grad()
    def step(self, multiplier: float | Tensor) -> None:
        """Update each member's weights at `multiplier` times its learning rate, and clear their gradients."""
        rates = (self._rates * multiplier).float()
        for part in self._parts:
            gradient, part.weight.grad = part.weight.grad, None
            if part.decay is not None and not part.decoupled:
                assert gradient is not None
                gradient.addcmul_(part.weight, _of_each_member(part.decay, part.weight))
            part.move.grad = gradient
        self._optimizer.step()
        for part in self._parts:
            rate = _of_each_member(rates, part.weight)
            if part.decay is not None and part.decoupled:
                part.weight.mul_(1 - rate * _of_each_member(part.decay, part.weight))
            part.weight.addcmul_(part.move, rate)
            part.move.zero_()
            part.move.grad = None
