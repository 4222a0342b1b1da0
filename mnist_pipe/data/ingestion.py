"""A user's own images as raw splits: classes, order, shape, a test split, and what is said about them in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from mnist_pipe.atomic import digest
from mnist_pipe.data import sizing
from mnist_pipe.data.decoding import Chunk, Decode, Size, Wanted, decode_here, read_all
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.normalization import stratified
from mnist_pipe.data.parts import READERS, Part, Parts, Place
from mnist_pipe.data.splits import MAX_CLASSES, RawSplit
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.fingerprint import code_version
from mnist_pipe.params.schema import IngestParams

_LEAST_IN_CLASS = 2
_PLAIN = 32
"""Largest difference, in grey levels, of the corners of a picture on plain ground."""
_DRAWN = 0.9
"""Share of pictures on plain ground from which on a data set is of drawings, whose light ground is inverted."""
_MIXED = 0.5
"""Share of the changes of class from row to row that rows in random order have, below which rows are sorted."""
_LISTED = 20


def read(
    params: IngestParams,
    *,
    path: str,
    filesystem: fs.FileSystem | None = None,
    decode_chunks: Decode = decode_here,
    on_pictures: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, RawSplit]:
    """Return the raw splits `train` and `test` of the user's own images.

    A validation split that the user gave is the end of `train`, as long as `given_validation` in its provenance says.

    Args:
        params: the format, the name and what the images shall be.
        path: the file or folder.
        filesystem: the file system of `path`; None is this machine's.
        decode_chunks: how pictures are decoded.
        on_pictures: called with the number of pictures that were read so far, and of all.

    Raises:
        InputError: there is nothing to read, a class has fewer than two images, a label has no class, or too many
            pictures are unreadable.
        CorruptDataError: a file is damaged.
        UnavailableError: the file system does not answer.
    """
    parts, classes = checked(params, path=path, filesystem=filesystem)
    facts, pixels, unreadable = _pixels(
        parts, params, classes=classes, decode_chunks=decode_chunks, on_pictures=on_pictures
    )
    numbers = {name: number for number, name in enumerate(classes)}
    found = {}
    for split, part in parts.items():
        labels = np.array([numbers[name] for name in part.names], dtype=np.uint8)[pixels[split].kept]
        found[split] = Examples(pixels[split].images, labels)
    _check_counts(np.bincount(found["train"].labels, minlength=len(classes)).tolist(), classes, where=path)
    found["train"] = _mixed(found["train"], seed=params.seed)
    if "test" not in found:
        found["train"], found["test"] = _shared(found["train"], share=params.test_share, seed=params.seed)
    num_validation = len(found["validation"].labels) if "validation" in found else 0
    dropped = 0
    if params.drop_duplicates:
        others = [found[split].images for split in ("test", "validation") if split in found]
        found["train"], dropped = without_duplicates(found["train"], others)
    if num_validation:
        found["train"] = Examples(*map(np.concatenate, zip(found["train"], found["validation"], strict=True)))
    provenance = {
        "dataset": params.name,
        "title": params.name,
        "citation": "",
        "format": params.dataset,
        "fallback_for": None,
        **facts.to_dict(),
        **({"given_validation": num_validation} if num_validation else {}),
        **({"dropped_duplicates": dropped} if params.drop_duplicates else {}),
        **({"num_unreadable": len(unreadable), "unreadable": unreadable[:_LISTED]} if unreadable else {}),
    }
    return {
        split: RawSplit(
            images=sizing.channels_first(found[split].images), labels=found[split].labels, provenance=provenance
        )
        for split in ("train", "test")
    }


def checked(
    params: IngestParams, *, path: str, filesystem: fs.FileSystem | None = None
) -> tuple[Parts, tuple[str, ...]]:
    """Return the splits and the names of the classes, after each check that needs no picture decoded.

    Raises:
        InputError, CorruptDataError, UnavailableError: as `read`.
    """
    shape = None if params.shape == "auto" else (params.shape[0], params.shape[1], params.shape[2])
    parts = READERS[params.dataset](Place(path=path, filesystem=filesystem, shape=shape))
    classes = classes_of(parts, where=path)
    counts = Counter(parts["train"].names)
    _check_counts([counts[name] for name in classes], classes, where=path)
    have_channels = params.channels != "auto" or params.resize == "digit_box"  # other ones are converted
    sizes = {}
    for split, part in parts.items():
        if part.images is not None:
            sizes[split] = "x".join(map(str, part.images.shape[1 : 3 if have_channels else None]))
            if len(part.images) != len(part.names):
                got = f"{len(part.images)} images and {len(part.names)} labels"
                raise CorruptDataError.invalid(path, f"the split {split}", "have one label per image", got=got)
    if len(set(sizes.values())) > 1 and params.shape == "auto":
        got = ", ".join(f"{size} in {split}" for split, size in sizes.items())
        raise CorruptDataError.invalid(path, "the images", "have one shape in all splits", got=got)
    return parts, classes


class Examples(NamedTuple):
    """The images and labels of a split."""

    images: NDArray[np.uint8]
    """Grey `(N, height, width)`, or `(N, height, width, 3)`."""
    labels: NDArray[np.uint8]
    """Classes, `(N,)`."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The images of a split, without those that cannot be read."""

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    """Which of the split's images they are, `(N,)`."""


def classes_of(parts: Parts, *, where: str) -> tuple[str, ...]:
    """Return the names of the classes: those of the format, or else of `train` in the order of numbers or of text.

    Raises:
        InputError: there are fewer than two or more than `MAX_CLASSES`, or another split has a label without a class.
    """
    present = set(parts["train"].names)
    known = [name for name in parts["train"].classes if name in present] or ordered(present)
    if not 2 <= len(known) <= MAX_CLASSES:
        rule = f"have 2 to {MAX_CLASSES} classes"
        raise InputError.invalid(where, "the images", rule, got=len(known))
    for split, part in parts.items():
        strange = next((name for name in part.names if name not in known), None)
        if strange is not None:
            rule = f"have one of the {len(known)} classes of train"
            raise InputError.invalid(where, f"every image of {split}", rule, got=repr(strange))
    return tuple(known)


def ordered(names: set[str]) -> list[str]:
    """Return names of classes in their order: by value if all are whole numbers."""
    are_numbers = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int) if are_numbers and len(set(map(int, names))) == len(names) else sorted(names)


def _check_counts(counts: Sequence[int], classes: Sequence[str], *, where: str) -> None:
    few = [number for number, count in enumerate(counts) if count < _LEAST_IN_CLASS]
    if few:
        rule = f"have {_LEAST_IN_CLASS} images or more for training"
        got = f"{counts[few[0]]}" + (f", and {len(few) - 1} other classes have as few" if len(few) > 1 else "")
        raise InputError.invalid(where, f"the class {classes[few[0]]}", rule, got=got, fix="add images or remove it")


def _pixels(
    parts: Parts,
    params: IngestParams,
    *,
    classes: Sequence[str],
    decode_chunks: Decode,
    on_pictures: Callable[[int, int], None],
) -> tuple[Facts, dict[str, Pixels], list[str]]:
    """Return the facts about the images, those of each split in one shape, and a message for each unreadable one."""
    channels: int | None = None if params.channels == "auto" else params.channels
    size: Size | None = None
    if params.shape != "auto":
        channels, *sides = params.shape
        size = (sides[0], sides[1])
    chunks: list[Chunk] = [chunk for part in parts.values() for chunk in part.chunks]
    if params.resize == "digit_box":
        channels = 1
        size = size or (MNIST.shape[1:] if chunks else None)
    wanted = Wanted(channels=channels, size=size, resize=params.resize)
    if chunks:
        total = sum(map(len, chunks))
        reading = read_all(
            chunks,
            wanted,
            key=digest([[part.identity for part in parts.values()], repr(wanted), code_version()])[:16],
            decode_chunks=decode_chunks,
            max_unreadable=params.max_unreadable,
            on_pictures=lambda done: on_pictures(done, total),
        )
        ends = np.cumsum([len(part.names) for part in parts.values()]).tolist()
        found, start = {}, 0
        for split, end in zip(parts, ends, strict=True):
            own = (reading.kept >= start) & (reading.kept < end)
            found[split] = Pixels(images=reading.images[own], kept=reading.kept[own] - start)
            start = end
        unreadable = reading.unreadable
    else:
        unreadable = []
        found = {
            split: Pixels(images=_converted(part, wanted), kept=np.arange(len(part.names)))
            for split, part in parts.items()
        }
    return *_finished(found, params, classes=classes), unreadable


def _converted(part: Part, wanted: Wanted) -> NDArray[np.uint8]:
    """Return the images of a part that are an array, with the wanted channels and size."""
    assert part.images is not None
    own = part.images
    channels = wanted.channels or (1 if own.ndim == 3 else 3)
    size = wanted.size or own.shape[1:3]
    if (own.ndim == 3) == (channels == 1) and size == own.shape[1:3]:
        return own
    shape = (channels, size[0], size[1])
    return np.stack([np.asarray(sizing.sized(Image.fromarray(one), shape=shape, resize=wanted.resize)) for one in own])


def _finished(
    found: dict[str, Pixels], params: IngestParams, *, classes: Sequence[str]
) -> tuple[Facts, dict[str, Pixels]]:
    """Return the facts, and the images inverted as `ingest.invert` says.

    `auto` inverts the images of drawings whose ground is light: of grey images nearly all of which have plain ground.
    """
    pixels = found["train"].images
    ground = sizing.corners(pixels)
    invert = params.invert
    if params.resize == "digit_box":
        invert = "auto"  # a digit is light on dark already
    elif invert == "auto":
        four = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(pixels), 4, -1)
        is_plain = np.ptp(four.astype(np.int16), axis=(1, 2)) <= _PLAIN
        invert = "auto" if pixels.ndim == 3 and is_plain.mean() >= _DRAWN else False
    if params.resize != "digit_box":
        found = {split: replace(one, images=sizing.inverted(one.images, invert=invert)) for split, one in found.items()}
        ground = sizing.corners(found["train"].images)
    else:
        ground = np.zeros_like(ground)
    shape = pixels.shape[1:] if pixels.ndim == 4 else (*pixels.shape[1:], 1)
    facts = Facts(
        shape=(shape[2], shape[0], shape[1]),
        labels=tuple(classes),
        resize=params.resize,
        invert=invert,
        background=tuple(np.median(ground, axis=0).round().astype(int).tolist()),
    )
    return facts, found


def _mixed(examples: Examples, *, seed: int) -> Examples:
    """Return examples in random order if they are sorted by class: of sorted rows, the first ones have few classes."""
    shares = np.bincount(examples.labels) / len(examples.labels)
    expected = (1 - (shares**2).sum()) * (len(examples.labels) - 1)
    if (np.diff(examples.labels.astype(int)) != 0).sum() >= _MIXED * expected:
        return examples
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    return Examples(examples.images[order], examples.labels[order])


def _shared(examples: Examples, *, share: float, seed: int) -> tuple[Examples, Examples]:
    """Return examples without a stratified share, and that share."""
    rows = stratified(examples.labels, num_rows=round(share * len(examples.labels)), seed=seed)
    rest = np.delete(np.arange(len(examples.labels)), rows)
    return Examples(examples.images[rest], examples.labels[rest]), Examples(
        examples.images[rows], examples.labels[rows]
    )


def without_duplicates(train: Examples, others: Sequence[NDArray[np.uint8]]) -> tuple[Examples, int]:
    """Return `train` without images that are in `others` or earlier in it, byte for byte, and how many those were."""
    seen = {one.tobytes() for images in others for one in images}
    kept = []
    for row, image in enumerate(train.images):
        content = image.tobytes()
        if content not in seen:
            kept.append(row)
            seen.add(content)
    return Examples(train.images[kept], train.labels[kept]), len(train.labels) - len(kept)


def sentence(split: RawSplit) -> str:
    """Return what was read, as a sentence for the log."""
    facts, provenance = split.facts, split.provenance
    counts = Counter(split.labels.tolist())
    kind = "grey" if facts.shape[0] == 1 else "colour"
    text = f"{provenance['dataset']}: {len(facts.labels)} classes, {facts.shape[1]}x{facts.shape[2]}, {kind}"
    text += f"; {min(counts.values()):,} to {max(counts.values()):,} training images a class"
    if number := provenance.get("num_unreadable"):
        text += f"; {number} unreadable"
    return text
