"""Normalization of the raw splits: the validation split and the standardised images."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.facts import levels, standardise
from mnist_pipe.data.splits import NormalizedSplit, RawSplit
from mnist_pipe.errors import CorruptDataError

_EXACT = 256  # number of pixels whose squares, each at most 255**2, add up to less than 2**24
_FORMAT = "format"  # in the provenance of the user's own images
_OF_READING = (_FORMAT, "given_validation", "dropped_duplicates", "num_unreadable", "unreadable")
_MAX_OVERLAP = 0.01  # share of the test images; measured on MNIST: none of 10,000 occurs in train


def normalize(
    train: RawSplit, test: RawSplit, *, validation_rows: int, seed: int
) -> tuple[dict[str, NormalizedSplit], dict[str, Any]]:
    """Split `train` into training and validation rows and standardise all images.

    Args:
        train: the raw training split, 5 rows or more; it may end with a validation split that the user gave.
        test: the raw test split.
        validation_rows: the number of rows to hold out, stratified by label, if no validation split was given; at most
            a fifth of `train` is taken.
        seed: the seed of the choice of these rows.

    Returns:
        The splits `train`, `validation` and `test`, with their rows in the order of the raw split, and the report of
        `reports/data.json`: rows by split and class, mean and standard deviation, the overlap of train and test.

    Raises:
        CorruptDataError: there are too few rows, all pixels are equal, or more than 1 % of the test images occur in
            train.
    """
    if len(train.labels) < 5:
        rule = "have 5 rows or more, a fifth of them for validation"
        raise CorruptDataError.invalid("train", "", rule, got=len(train.labels))
    overlap = count_common_images(train.images, test.images)
    if overlap > _MAX_OVERLAP * len(test.labels):
        rule = f"share at most {_MAX_OVERLAP:.0%} of its images with train"
        got = f"{overlap} of {len(test.labels)}"
        fix = "set ingest.drop_duplicates to true" if _FORMAT in train.provenance else "are the files swapped?"
        raise CorruptDataError.invalid("test", "", rule, got=got, fix=fix)
    if num_given := train.provenance.get("given_validation", 0):
        held_out = np.arange(len(train.labels) - num_given, len(train.labels))
    else:
        held_out = stratified(train.labels, num_rows=min(validation_rows, len(train.labels) // 5), seed=seed)
    rows = {
        "train": np.delete(np.arange(len(train.labels)), held_out),
        "validation": held_out,
        "test": np.arange(len(test.labels)),
    }
    images = {name: (test if name == "test" else train).images[index] for name, index in rows.items()}
    facts = train.facts
    mean, std = by_channel(images["train"], num_channels=facts.shape[0])
    values = levels(mean, std)
    carried = {name: train.provenance.get(name) for name in ("dataset", "fallback_for")}
    travelling = {name: train.provenance[name] for name in facts.to_dict() if name in train.provenance}
    digests = {"train": content_sha256(train), "test": content_sha256(test)}
    digests["validation"] = digests["train"]
    splits = {}
    for name, index in rows.items():
        raw = test if name == "test" else train
        splits[name] = NormalizedSplit(
            images=standardise(images[name], values),
            labels=raw.labels[index],
            index=index.astype(np.uint32),
            provenance={
                **carried,
                **travelling,
                "mean": mean,
                "std": std,
                "shape": list(facts.array_shape),
                "dtype": "float32",
                "source_sha256": digests[name],
            },
        )
    report = {
        **carried,
        "mean": mean,
        "std": std,
        "test_images_in_train": overlap,
        "rows": {name: len(split.labels) for name, split in splits.items()},
        "rows_by_class": {
            name: dict(zip(facts.labels, np.bincount(split.labels, minlength=facts.num_classes).tolist(), strict=True))
            for name, split in splits.items()
        },
    }
    if _FORMAT in train.provenance:
        report["validation_images_in_train"] = count_common_images(images["train"], images["validation"])
        report |= {name: train.provenance[name] for name in _OF_READING if name in train.provenance}
    return splits, report


def content_sha256(raw: RawSplit) -> str:
    """Return the hexadecimal SHA-256 of a split's images and labels, whatever program wrote its file."""
    content = hashlib.sha256(np.ascontiguousarray(raw.images).data)
    content.update(np.ascontiguousarray(raw.labels).data)
    return content.hexdigest()


def stratified(labels: NDArray[np.uint8], *, num_rows: int, seed: int) -> NDArray[np.int64]:
    """Draw rows such that each class keeps its share of `labels`, as `quotas` rounds it.

    Args:
        labels: uint8 `(N,)`.
        num_rows: the number of rows to draw, at most N.
        seed: the seed of the draw.

    Returns:
        Distinct row numbers, int64 `(num_rows,)`, ascending.
    """
    random = np.random.default_rng(seed)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in enumerate(quotas(labels, num_rows=num_rows))
    ]
    return np.sort(np.concatenate(chosen))


def quotas(labels: NDArray[np.uint8], *, num_rows: int) -> NDArray[np.int64]:
    """Return the number of rows of each class among `num_rows`, int64 `(classes,)`, for labels uint8 `(N,)`.

    A class has its share of `labels`, rounded by largest remainder; of equal remainders the lower label is rounded up.
    """
    assert num_rows <= len(labels)
    parts, remainders = np.divmod(np.bincount(labels) * num_rows, len(labels))
    parts[np.argsort(-remainders, kind="stable")[: num_rows - parts.sum()]] += 1
    return parts


def by_channel(images: NDArray[np.uint8], *, num_channels: int) -> tuple[Any, Any]:
    """Return `mean_and_std` of each channel: two numbers for grey images, two lists for others.

    A channel whose pixels are all equal has a standard deviation of 1, by which they can be divided.

    Raises:
        CorruptDataError: all pixels are equal in every channel.
    """
    channels = [images] if num_channels == 1 else [images[:, channel] for channel in range(num_channels)]
    means, stds = zip(*map(mean_and_std, channels), strict=True)
    if not any(stds):
        got = f"{', '.join(str(channel.flat[0]) for channel in channels)} in every pixel"
        raise CorruptDataError.invalid("train", "the images", "have more than one grey level", got=got)
    return (means[0], stds[0]) if num_channels == 1 else (list(means), [std or 1.0 for std in stds])


def mean_and_std(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Return mean and population standard deviation of all pixels on the [0, 1] scale, computed from exact sums.

    `images` is uint8 of any shape.
    """
    total = total_of_squares = 0
    pixels = images.reshape(-1)
    for start in range(0, len(pixels), 1000 * _EXACT):
        part = pixels[start : start + 1000 * _EXACT].astype(np.float32)
        part.resize((math.ceil(len(part) / _EXACT), _EXACT))  # pads with zeros, which change no sum
        # Sums of integers below 2**24 are exact in float32 in any order, so the number of threads changes no bit.
        total += int(part.sum(axis=1).sum(dtype=np.float64))
        total_of_squares += int(np.vecdot(part, part).sum(dtype=np.float64))
    variance_numerator = images.size * total_of_squares - total**2
    return total / (255 * images.size), math.sqrt(variance_numerator) / (255 * images.size)


def count_common_images(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> int:
    """Count the images of `test` that occur, byte for byte, in `train`; both are uint8, `(N, ...)`."""
    known = set(_as_bytes(train))
    return sum(image in known for image in _as_bytes(test))


def _as_bytes(images: NDArray[np.uint8]) -> list[bytes]:
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    rows: list[bytes] = flat.view(f"V{flat.shape[1]}").ravel().tolist()
    return rows
