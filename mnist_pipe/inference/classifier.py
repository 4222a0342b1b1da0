"""A trained model from grey images to probabilities: the one object behind `predict`, `score`, `serve` and MLflow.

Every registered version carries this module and what it imports, so that it loads without this project. It therefore
needs numpy, pydantic, safetensors and torch only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_pipe.data.facts import Facts, levels, standardise
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.models import forward, saved


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions for N images, in their order."""

    classes: NDArray[np.intp]
    """Most probable classes, `(N,)`, as row numbers of `Classifier.labels`."""
    labels: list[str]
    """Names of these classes."""
    probability: NDArray[np.float32]
    """Probabilities of these classes, `(N,)`."""
    probabilities: NDArray[np.float32]
    """Probabilities of all classes, `(N, classes)`; each row sums to 1."""


class Classifier:
    """A trained model with its card: standardisation, network, test-time augmentation and calibration."""

    def __init__(
        self, network: nn.Module, *, card: Mapping[str, Any], name: str = "", content_sha256: str = ""
    ) -> None:
        """Take a model as `saved.load_model` returns it.

        Args:
            network: maps standardised images to calibrated logits.
            card: the model card, with at least `mean` and `std` of the training pixels, on the [0, 1] scale.
            name: the registered version, `NAME/VERSION`.
            content_sha256: the registered digest of weights and card.
        """
        self.card, self.name, self.content_sha256 = card, name, content_sha256
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Channels-last is 2.5 times as fast on a CPU as the default layout.
        self.network: nn.Module = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.facts = Facts.of(card)
        """Shape of the images, names of the classes, and how a picture becomes an image."""
        self.levels: NDArray[np.float32] = levels(card["mean"], card["std"])
        """Standardised value of each level, `(channels, 256)`, as `normalize` computes it."""

    @classmethod
    def load(cls, folder: Path, *, name: str = "", content_sha256: str = "") -> Classifier:
        """Load the model in `folder`.

        Raises:
            CorruptDataError: a file is missing or differs from the manifest, or the weights fit another architecture.
        """
        network, card = saved.load_model(folder)
        return cls(network, card=card, name=name, content_sha256=content_sha256)

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return list(self.facts.labels)

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Classify images made as those of the data set were: for MNIST uint8 `(N, 28, 28)`, light on dark.

        In colour, images are `(N, 3, height, width)`.

        Raises:
            InputError: the array has another shape or dtype.
            CorruptDataError: a logit is not finite.
        """
        probabilities, labels = self.probabilities(images), self.labels
        classes = probabilities.argmax(axis=1)
        return Predictions(
            classes=classes,
            labels=[labels[number] for number in classes],
            probability=probabilities.max(axis=1),
            probabilities=probabilities,
        )

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities of all classes, float32 `(N, classes)`, for images as `predict` takes them.

        Raises:
            InputError: the array has another shape or dtype.
            CorruptDataError: a logit is not finite.
        """
        return self.probabilities_of_standardised(self._standardised(images))

    def probabilities_of_standardised(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the same for images that are standardised already, float32 in the shape of `predict`'s.

        Raises:
            CorruptDataError: a logit is not finite.
        """
        logits = torch.from_numpy(forward.logits(self.network, images))
        if not logits.isfinite().all():
            raise CorruptDataError.invalid("the model", "every logit", "be finite", got=float(logits.sum()))
        probabilities: NDArray[np.float32] = logits.double().softmax(1).float().numpy()
        return probabilities

    def saliency(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return how strongly each pixel moves the winning logit: |gradient|, float32 `(height, width)`, in [0, 1].

        The gradient is taken with respect to the standardised image, and its largest channel counts (Simonyan et al.
        2014, section 3).

        Args:
            image: one of the images of `predict`.

        Raises:
            InputError: the array has another shape or dtype.
        """
        standardised = torch.tensor(self._standardised(image[np.newaxis]), device=self.device)
        pixels = standardised.view(-1, *self.facts.shape).requires_grad_()
        self.network(pixels).max().backward()
        assert pixels.grad is not None
        strength: NDArray[np.float32] = pixels.grad.abs()[0].amax(0).cpu().numpy()
        return strength / max(float(strength.max()), 1e-12)

    def _standardised(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        shape = self.facts.array_shape
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != shape:
            got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise InputError.invalid("images", "the array", f"be uint8 (N, {', '.join(map(str, shape))})", got=got)
        return standardise(images, self.levels)
