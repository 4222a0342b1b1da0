"""The convolutional networks of 1998: LeNet-1, LeNet-4 and LeNet-5 with every layer as LeCun et al. describe it.

Three parts have gone out of use since. A convolution reads only some of the maps before it, chosen by a table. A
subsampling layer adds up each 2x2 square, and scales and shifts the sum by two learned numbers per map. LeNet-5 has no
output weights to learn: it compares its last layer with a fixed bitmap of each digit.

The numbers of free parameters and connections are exactly the paper's; the tests count them. LeNet-1 and LeNet-4 end
in linear units instead of squashed ones, so that they return logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe.models.images import check

if TYPE_CHECKING:
    from pydantic import Field  # see `models`

Table = Sequence[Sequence[int]]
"""The indices of the input maps that each output map or unit reads."""

LENET1_H3: Table = [[0], [0, 1], [0, 1], [1], [0, 1], [0, 1], [2], [2, 3], [2, 3], [3], [2, 3], [2, 3]]
"""Connections of LeNet-1's layer H3: two almost independent halves (Le Cun et al. 1990, NIPS 2, table 1)."""

LENET5_C3: Table = [
    *([first % 6 for first in range(start, start + 3)] for start in range(6)),
    *([first % 6 for first in range(start, start + 4)] for start in range(6)),
    *([0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5]),
    range(6),
]
"""Connections of LeNet-5's layer C3 (table I).

Six maps read three adjacent maps, six read four adjacent ones, three read four that are not all adjacent, and the last
reads all six.
"""

# For LeNet-4 the paper gives the layers, about 17,000 parameters and about 260,000 connections, but no table. Hidden
# units that read all 16 maps would alone have 48,120 parameters. These tables are regular and fit the paper's numbers.
LENET4_C3: Table = [
    *([first % 8 for first in range(start, start + 3)] for start in range(8)),
    *([first % 8 for first in range(start, start + 4)] for start in range(7)),
    range(8),
]
LENET4_C5: Table = [[(unit + 3 * step) % 16 for step in range(5 if unit < 80 else 4)] for unit in range(120)]

_SHAPE = "be 1x28x28, as the paper's"

DIGITS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... #####.. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""
"""The 7x12 bitmaps that LeNet-5's last layer is compared with (figure 3): `#` is 1 and `.` is -1."""


def digit_codes() -> Tensor:
    """Return the bitmap of each digit as one row of -1 and 1, float32 `(10, 84)`."""
    rows = [row.split() for row in DIGITS.split("\n") if row]
    bitmaps = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in bitmap] for bitmap in bitmaps])


class ScaledTanh(nn.Module):
    """The squashing function f(x) = 1.7159 tanh(2/3 x) (appendix A).

    f(1) = 1 and f(-1) = -1, and there the curvature is greatest.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return f of each element, in the shape and dtype of `inputs`."""
        return 1.7159 * torch.tanh(inputs * (2 / 3))


class TableConv(nn.Module):
    """A 5x5 convolution without padding, whose output map k reads the input maps `table[k]`."""

    def __init__(self, table: Table, *, num_inputs: int) -> None:
        super().__init__()
        self.shape = (len(table), num_inputs, 5, 5)
        links = [(output, source) for output, sources in enumerate(table) for source in sources]
        outputs, sources = torch.tensor(links).unbind(1)
        self.register_buffer("places", outputs * num_inputs + sources, persistent=False)
        fan_in = 25 * torch.tensor([len(sources) for sources in table])
        self.weight = nn.Parameter(uniform(len(links), 25, fan_in=fan_in[outputs, None]))
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps, float32 `(N, len(table), H - 4, W - 4)`, of maps, float32 `(N, num_inputs, H, W)`."""
        places = self.get_buffer("places")
        dense = self.weight.new_zeros(self.shape[0] * self.shape[1], 25).index_copy(0, places, self.weight)
        if maps.shape[-2:] == (5, 5):  # one position: a matrix product is several times as fast
            return F.linear(maps.flatten(1), dense.view(self.shape[0], -1), self.bias)[..., None, None]
        # Filters in channels-last memory format give an output in that format.
        last = dense.view(*self.shape[:2], 25).transpose(1, 2).contiguous()
        return F.conv2d(maps, last.view(self.shape[0], 5, 5, -1).permute(0, 3, 1, 2), self.bias)


class Subsampling(nn.Module):
    """A layer that replaces each 2x2 square of a map by gain * mean + bias, with a learned gain and bias per map.

    The gain is four times the paper's coefficient, which multiplies the sum. With more outputs than inputs, several
    output maps read each input map, each with its own gain and bias.
    """

    def __init__(self, num_inputs: int, *, num_outputs: int | None = None) -> None:
        super().__init__()
        num_outputs = num_outputs or num_inputs
        self.copies = num_outputs // num_inputs
        # Two outputs of one input map start with opposite gains: with equal ones they would stay equal.
        signs = 1.0 - 2.0 * (torch.arange(num_outputs) % self.copies)
        self.gain = nn.Parameter(signs)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps, float32 `(N, num_outputs, H // 2, W // 2)`, of maps, float32 `(N, num_inputs, H, W)`."""
        means = F.avg_pool2d(maps, 2)
        if self.copies > 1:
            means = means.repeat_interleave(self.copies, dim=1)
        return means * self.gain.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class LeNet1(nn.Module):
    """LeNet-1: 4@24x24, 4@12x12, 12@8x8, 12@4x4 and 10 units, with 2,578 free parameters and 98,442 connections.

    The paper's digits have 16x16 pixels in the middle of the 28x28. These numbers are those of ten classes.
    """

    def __init__(self, *, in_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        check("lenet1", _SHAPE, in_shape, is_valid=in_shape == (1, 28, 28))
        self.layers = nn.Sequential(
            TableConv([[0]] * 4, num_inputs=1),
            ScaledTanh(),
            Subsampling(4),
            ScaledTanh(),
            TableConv(LENET1_H3, num_inputs=4),
            ScaledTanh(),
            Subsampling(12),
            ScaledTanh(),
            nn.Flatten(),
            nn.Linear(12 * 4 * 4, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, 1, 28, 28)`."""
        logits: Tensor = self.layers(images)
        return logits


class LeNet4(nn.Module):
    """LeNet-4, with 16,998 free parameters and 258,306 connections.

    Its layers are a 32x32 input, 4@28x28, 8@14x14, 16@10x10, 16@5x5, 120 and 10 units, one for each class.
    """

    def __init__(self, *, in_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        check("lenet4", _SHAPE, in_shape, is_valid=in_shape == (1, 28, 28))
        self.features = nn.Sequential(
            Frame(),
            TableConv([[0]] * 4, num_inputs=1),
            ScaledTanh(),
            Subsampling(4, num_outputs=8),
            ScaledTanh(),
            TableConv(LENET4_C3, num_inputs=8),
            ScaledTanh(),
            Subsampling(16),
            ScaledTanh(),
            TableConv(LENET4_C5, num_inputs=16),
            ScaledTanh(),
            nn.Flatten(),
        )
        self.output = nn.Linear(120, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, classes)`, of images, float32 `(N, 1, 28, 28)`."""
        logits: Tensor = self.output(self.features(images))
        return logits


class LeNet5RBF(nn.Module):
    """LeNet-5 of section II.B, with an RBF output, 60,000 free parameters and 340,908 connections.

    The penalty of a class is the squared distance between F6 and the class's bitmap. The logit of a class is the mean
    of the ten penalties minus its own; the mean does not change the softmax.

    With `rubbish`, the j of equation 9, a network in training returns an eleventh logit, that of a class without a
    bitmap whose penalty is always j. The cross-entropy of a label is then the paper's discriminative (MAP) criterion,
    which also pushes the right penalty below j.
    """

    codes: Tensor
    """Bitmaps of the digits as `digit_codes` returns them, float32 `(10, 84)`."""

    def __init__(
        self,
        *,
        rubbish: Annotated[float, Field(gt=0, le=1000)] | None = None,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        is_valid = in_shape == (1, 28, 28) and num_classes == 10
        check("lenet5_rbf", f"{_SHAPE}, and ten classes", in_shape, num_classes=num_classes, is_valid=is_valid)
        self.rubbish = rubbish
        f6 = nn.Linear(120, 84)
        f6.weight.data = uniform(84, 120, fan_in=120)
        self.features = nn.Sequential(
            Frame(),
            TableConv([[0]] * 6, num_inputs=1),
            ScaledTanh(),
            Subsampling(6),
            ScaledTanh(),
            TableConv(LENET5_C3, num_inputs=6),
            ScaledTanh(),
            Subsampling(16),
            ScaledTanh(),
            TableConv([range(16)] * 120, num_inputs=16),
            ScaledTanh(),
            nn.Flatten(),
            f6,
            ScaledTanh(),
        )
        self.register_buffer("codes", digit_codes(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 `(N, 10)`, of images, float32 `(N, 1, 28, 28)`.

        In training with `rubbish` the logits are `(N, 11)`.
        """
        penalties = self.penalties(images)
        middle = penalties.mean(1, keepdim=True)
        if self.training and self.rubbish is not None:
            penalties = torch.cat([penalties, torch.full_like(middle, self.rubbish)], 1)
        return middle - penalties

    def penalties(self, images: Tensor) -> Tensor:
        """Return the squared distances between F6 and the bitmaps, float32 `(N, 10)`.

        `images` is float32 `(N, 1, 28, 28)`.
        """
        f6: Tensor = self.features(images).float()
        return (f6.unsqueeze(1) - self.codes).square().sum(2)


class Frame(nn.Module):
    """Padding of 28x28 images to 32x32: two pixels on each side that repeat the outermost ones."""

    def forward(self, images: Tensor) -> Tensor:
        """Return padded images, float32 `(N, 1, 32, 32)`, of images, float32 `(N, 1, 28, 28)`."""
        return F.pad(images, (2, 2, 2, 2), mode="replicate")


def uniform(*shape: int, fan_in: Tensor | int) -> Tensor:
    """Return initial weights, float32 of the given shape, between -2.4 / fan_in and 2.4 / fan_in (appendix A).

    In this range no unit saturates. A tensor `fan_in` broadcasts to the shape.
    """
    return (2 * torch.rand(*shape) - 1) * 2.4 / fan_in
