"""Normalization of the raw splits: the validation split and the standardised images."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe.data.splits import NUM_CLASSES, PIXELS, SIDE, NormalizedSplit, RawSplit
from mnist_pipe.errors import CorruptDataError

_EXACT = 256  # number of pixels whose squares, each at most 255**2, add up to less than 2**24
_MAX_OVERLAP = 0.01  # share of the test images; measured on MNIST: none of 10,000 occurs in train


def normalize(
    train: RawSplit, test: RawSplit, *, validation_rows: int, seed: int
) -> tuple[dict[str, NormalizedSplit], dict[str, Any]]:
    """Split `train` into training and validation rows and standardise all images.

    Args:
        train: the raw training split, 5 rows or more.
        test: the raw test split.
        validation_rows: the number of rows to hold out, stratified by label; at most a fifth of `train` is taken.
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
        raise CorruptDataError.invalid("test", "", rule, got=got, fix="are the files swapped?")
    held_out = stratified(train.labels, num_rows=min(validation_rows, len(train.labels) // 5), seed=seed)
    rows = {
        "train": np.delete(np.arange(len(train.labels)), held_out),
        "validation": held_out,
        "test": np.arange(len(test.labels)),
    }
    images = {name: (test if name == "test" else train).images[index] for name, index in rows.items()}
    mean, std = mean_and_std(images["train"])
    # One value per grey level, computed in float64 and rounded once, gives the same bytes on every machine.
    standardised = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    carried = {name: train.provenance.get(name) for name in ("dataset", "fallback_for")}
    digests = {"train": content_sha256(train), "test": content_sha256(test)}
    digests["validation"] = digests["train"]
    splits = {}
    for name, index in rows.items():
        raw = test if name == "test" else train
        splits[name] = NormalizedSplit(
            images=_look_up(standardised, images[name]),
            labels=raw.labels[index],
            index=index.astype(np.uint32),
            provenance={
                **carried,
                "mean": mean,
                "std": std,
                "shape": [SIDE, SIDE],
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
            name: {str(label): int(count) for label, count in enumerate(_class_counts(split.labels))}
            for name, split in splits.items()
        },
    }
    return splits, report


def _look_up(values: NDArray[np.float32], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return `values[images]`, float32 in the shape of `images`, for float32 `(256,)` values by grey level.

    It takes 1,000 images at a time: `take` first makes indices of 8 bytes a pixel, which for all images at once are
    hundreds of megabytes of fresh memory, whose page faults take longer than the work.
    """
    found = np.empty(images.shape, dtype=values.dtype)
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        values.take(images[part], mode="clip", out=found[part])  # clip: numpy's fast path; a uint8 is in range
    return found


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
    """Return the number of rows of each class among `num_rows`, int64 `(10,)`, for labels uint8 `(N,)`.

    A class has its share of `labels`, rounded by largest remainder; of equal remainders the lower label is rounded up.
    """
    assert num_rows <= len(labels)
    parts, remainders = np.divmod(_class_counts(labels) * num_rows, len(labels))
    parts[np.argsort(-remainders, kind="stable")[: num_rows - parts.sum()]] += 1
    return parts


def mean_and_std(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Return mean and population standard deviation of all pixels on the [0, 1] scale, computed from exact sums.

    `images` is uint8 `(N, 28, 28)`.

    Raises:
        CorruptDataError: all pixels are equal.
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
    if variance_numerator == 0:
        got = f"{images.flat[0]} in every pixel"
        raise CorruptDataError.invalid("train", "the images", "have more than one grey level", got=got)
    return total / (255 * images.size), math.sqrt(variance_numerator) / (255 * images.size)


def count_common_images(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> int:
    """Count the images of `test` that occur, byte for byte, in `train`; both are uint8 `(N, 28, 28)`."""
    known = set(_as_bytes(train))
    return sum(image in known for image in _as_bytes(test))


def _as_bytes(images: NDArray[np.uint8]) -> list[bytes]:
    rows: list[bytes] = np.ascontiguousarray(images).reshape(-1, PIXELS).view(f"V{PIXELS}").ravel().tolist()
    return rows


def _class_counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(labels, minlength=NUM_CLASSES)
