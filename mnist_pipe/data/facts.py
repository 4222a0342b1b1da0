"""The facts about a data set that every stage needs: the shape of its images, its classes, how a picture becomes one.

They travel with the data: in the provenance of each Parquet file, then in the card of each model. Every registered
version carries this module, so it needs numpy and the project's errors only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.errors import InputError

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""
Background = float | Sequence[float]
"""Value of an empty pixel after standardisation: a number, or a list by channel if there are several channels."""
Resize = Literal["fit", "stretch", "digit_box"]
"""How a picture gets the size of an image. fit: it keeps its proportions, and its ground fills the rest. stretch: it
does not keep them. digit_box: its ink is scaled to a box and centred by its mass, as MNIST's digits were."""

_FORMER: dict[str, Resize] = {"digit": "digit_box", "resize": "fit"}  # the values of `picture` in cards before `resize`
_IMAGES_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the images and classes of a data set are; the default is MNIST."""

    shape: Shape = (1, 28, 28)
    labels: tuple[str, ...] = tuple("0123456789")
    """Names of the classes; a class is a number from 0 on in the data."""
    resize: Resize = "digit_box"
    invert: Literal["auto"] | bool = "auto"
    """Whether a picture is inverted after it was resized; auto: if its corners are light."""
    background: tuple[int, ...] = (0,)
    """Level of an empty pixel in each channel, 0 to 255."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Facts:
        """Return the facts in the provenance of data or in the card of a model.

        Data without facts are MNIST's: the bytes of MNIST's files have not changed since these facts travel. Cards
        before version 0.2 have no shape, and may have no names of classes and no rule for pictures.
        """
        shape = tuple(found.get("shape", (28, 28)))
        is_of_digits = found.get("dataset", "mnist") in ("mnist", "digits")
        former = str(found.get("picture") or ("digit" if is_of_digits else "resize"))
        return cls(
            shape=(1, *shape) if len(shape) == 2 else shape,
            labels=tuple(found.get("labels") or MNIST.labels),
            resize=found.get("resize") or _FORMER[former],
            invert=found.get("invert", "auto"),
            background=tuple(found.get("background", (0,))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values from which `of` makes the same facts; the shape is that of an array."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**values, "shape": list(self.array_shape)}

    def to_provenance(self) -> dict[str, Any]:
        """Return the facts as the provenance of data has them: nothing for MNIST, whose files keep their bytes."""
        return {} if self == MNIST else self.to_dict()

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Shape of an image in an array: `(height, width)`, or `(channels, height, width)` if there are several."""
        return self.shape[1:] if self.shape[0] == 1 else self.shape

    @property
    def num_values(self) -> int:
        """Number of pixels of an image, over all channels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def check_same(self, found: Facts, *, where: object, whose: str, fix: str = "") -> None:
        """Check that another data set, or a model, has the same shape of images and the same classes.

        Args:
            found: the facts of the other one.
            where: what has them, for the message.
            whose: whom these facts belong to, for the message, such as `the model's`.
            fix: the remedy that the message names.

        Raises:
            InputError: they differ.
        """
        if found.shape != self.shape:
            expected, got = ("x".join(map(str, one.shape)) for one in (self, found))
            raise InputError.invalid(where, "the images", f"be {expected} as {whose}", got=got, fix=fix)
        if found.num_classes != self.num_classes:
            rule = f"be {self.num_classes} as {whose}"
            raise InputError.invalid(where, "the classes", rule, got=found.num_classes, fix=fix)
        for number, (ours, theirs) in enumerate(zip(self.labels, found.labels, strict=True)):
            if ours != theirs:
                rule = f"be {ours!r} as {whose}"
                raise InputError.invalid(where, f"class {number}", rule, got=repr(theirs), fix=fix)

    def empty_pixel(self, found: Mapping[str, Any]) -> Background:
        """Return the value of an empty pixel after standardisation.

        Args:
            found: the provenance or the card, with `mean` and `std`.
        """
        by_channel = zip(self.background, listed(found["mean"]), listed(found["std"]), strict=True)
        values = [(level / 255 - mean) / std for level, mean, std in by_channel]
        return values[0] if len(values) == 1 else values


MNIST = Facts()
"""The facts about MNIST."""


def listed(value: float | Sequence[float]) -> list[float]:
    """Return a statistic by channel as a list; that of grey images is a single number in provenance and cards."""
    return [float(value)] if isinstance(value, int | float) else [float(one) for one in value]


def levels(mean: float | Sequence[float], std: float | Sequence[float]) -> NDArray[np.float32]:
    """Return the standardised value of each level, float32 `(channels, 256)`.

    Values that are computed in float64 and rounded once are the same bytes on every machine.
    """
    means, stds = (np.array(listed(value))[:, np.newaxis] for value in (mean, std))
    values: NDArray[np.float32] = ((np.arange(256) / 255 - means) / stds).astype(np.float32)
    return values


def standardise(images: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images with each level replaced by its value, float32 in their shape.

    It takes 1,000 images at a time: `take` first makes indices of 8 bytes a pixel, which for all images at once are
    hundreds of megabytes of fresh memory, whose page faults take longer than the work.

    Args:
        images: uint8 `(N, height, width)` or `(N, channels, height, width)`.
        values: the result of `levels`.
    """
    found = np.empty(images.shape, dtype=values.dtype)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        for channel, own in enumerate(values):
            place = part if len(values) == 1 else (part, channel)
            own.take(images[place], mode="clip", out=found[place])  # clip: numpy's fast path; a uint8 is in range
    return found
