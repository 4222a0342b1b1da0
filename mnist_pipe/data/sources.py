"""The published data sets of sources.toml: fetching their files and converting them to raw splits."""

from __future__ import annotations

import bz2
import io
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mnist_pipe import atomic, paths
from mnist_pipe.data import idx, normalization
from mnist_pipe.data.download import PublishedFile, fetch_published
from mnist_pipe.data.facts import MNIST, Facts, Resize, Shape
from mnist_pipe.data.splits import RawSplit, check_labels
from mnist_pipe.errors import CorruptDataError, one_line, unknown

DOWNLOADS = paths.STATE / "downloads"  # kept, so that a rerun after a failure fetches only missing files
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TABLE = Path(__file__).with_name("sources.toml")
MAX_CONTENT_BYTES = 1 << 30
"""Largest size of a decompressed file, in bytes: about 1.4 million images of MNIST's size."""

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images, uint8 `(N, height, width)`, and labels, uint8 `(N,)`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set of sources.toml."""

    title: str
    citation: str
    licence: str
    """The terms of the data, as their publisher states them."""
    files: Mapping[str, PublishedFile] = field(default_factory=dict)
    """Published files by name; of one with `idx` in its name, that without `.gz`. Empty if nothing is downloaded."""
    mirrors: Sequence[str] = ()
    """The publisher's own base URLs, tried after those of `ingest.mirrors`."""
    folder: str = ""
    """The folder of the downloads, if several data sets share their files; by default the data set's own."""
    splits: Mapping[str, Sequence[str]] = field(default_factory=lambda: SPLITS)
    """The files of each split: images and labels, or members of the one zip file that `files` has."""
    format: Literal["idx", "libsvm"] = "idx"
    transposed: bool = False
    """Whether rows and columns of the stored images are exchanged."""
    first_label: int = 0
    shape: Shape = MNIST.shape
    labels: Sequence[str] = MNIST.labels
    """Names of the classes, in their order; the numbers themselves if they have no names."""
    resize: Resize = "fit"
    """How a user's picture becomes an image of the data set."""

    @property
    def facts(self) -> Facts:
        """Facts about the data set."""
        return Facts(shape=self.shape, labels=tuple(self.labels), resize=self.resize)


def _read_table() -> dict[str, Source]:
    with _TABLE.open("rb") as stream:
        table = tomllib.load(stream)
    for entry in table.values():
        entry["files"] = {name: PublishedFile(**one) for name, one in entry.get("files", {}).items()}
        entry["shape"] = tuple(entry.get("shape", MNIST.shape))
    return {name: Source(**entry) for name, entry in table.items()}


SOURCES = _read_table()
"""All published data sets, by their name in `ingest.dataset`."""


def fetch(
    dataset: str,
    *,
    mirrors: Sequence[str],
    timeout_seconds: float,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Return the paths of a data set's verified files by name, after downloading to `DOWNLOADS` what is missing.

    Args:
        dataset: a key of `SOURCES`; `digits` has no files.
        mirrors: directories or http(s) base URLs, tried in order for each file, before the publisher's own mirrors.
        timeout_seconds: the longest silence of all servers together, in equal shares; `fetch_published` derives the
            limit for a whole file from it.
        log: called with one line for each file that was found and for each mirror that did not supply it.

    Raises:
        InputError: there is no such data set.
        NoMirrorError: no mirror supplied a file; the message names each mirror and the cause.
        UnavailableError: a download cannot be written to the disk.
    """
    if dataset not in SOURCES:
        raise unknown("ingest", "dataset", dataset, SOURCES)
    source = SOURCES[dataset]
    unreachable: dict[str, str] = {}
    places = [*mirrors, *source.mirrors]
    num_servers = sum("://" in place for place in places)
    return {
        name: fetch_published(
            DOWNLOADS / (source.folder or dataset) / (f"{name}.gz" if "-idx" in name else name),
            published,
            mirrors=places,
            unreachable=unreachable,
            timeout_seconds=timeout_seconds / max(1, num_servers),
            log=log,
        )
        for name, published in source.files.items()
    }


def load(dataset: str, found: Mapping[str, Path], *, fallback_for: str | None = None) -> dict[str, RawSplit]:
    """Return the raw splits `train` and `test` from the files that `fetch` returned.

    The provenance names the data set and each file's digest but no mirror or time, so the same files give the same
    bytes.

    Args:
        dataset: a key of `SOURCES`.
        found: the paths of the files by name; not used for `digits`.
        fallback_for: the name of the data set that this one replaces, for the provenance.

    Raises:
        CorruptDataError: a file is damaged or of another format, an image has another shape than the data set's, a
            label has no class, or images and labels differ in number.
    """
    source = SOURCES[dataset]
    digests = {path.name: {"bytes": path.stat().st_size, "sha256": atomic.sha256(path)} for path in found.values()}
    provenance: dict[str, Any] = {
        "dataset": dataset,
        "title": source.title,
        "citation": source.citation,
        "files": digests,
        "fallback_for": fallback_for,
        **source.facts.to_provenance(),
    }
    splits = {}
    for name, (images, labels) in (_digits() if dataset == "digits" else _read(source, found)).items():
        if images.shape[1:] != source.facts.array_shape:
            expected, got = ("x".join(map(str, shape)) for shape in (source.facts.array_shape, images.shape[1:]))
            raise CorruptDataError.invalid(name, "every image", f"be {expected}", got=got)
        if len(images) != len(labels):
            got = f"{len(images)} images and {len(labels)} labels"
            raise CorruptDataError.invalid(name, "", "have one label per image", got=got)
        check_labels(name, labels, num_classes=source.facts.num_classes)
        splits[name] = RawSplit(images=images, labels=labels.astype(np.uint8), provenance=provenance)
    return splits


def _read(source: Source, found: Mapping[str, Path]) -> dict[str, Arrays]:
    if source.format == "libsvm":
        return {name: _read_libsvm(found[file], shape=source.shape) for name, [file] in source.splits.items()}
    splits = {}
    for name, files in source.splits.items():
        kinds: tuple[idx.Kind, idx.Kind] = ("images", "labels")
        images, labels = (
            idx.read(found[file], kind=kind, max_bytes=MAX_CONTENT_BYTES)
            if file in found
            else idx.read(next(iter(found.values())), member=file, kind=kind, max_bytes=MAX_CONTENT_BYTES)
            for file, kind in zip(files, kinds, strict=True)
        )
        splits[name] = (images.transpose(0, 2, 1) if source.transposed else images, labels - source.first_label)
    return splits


def _digits() -> dict[str, Arrays]:
    """Return scikit-learn's 1,797 scans made like MNIST: scaled to 20x20, then centred in 28x28 by mass.

    The last fifth of each class is the test split. The scans are in order of their writers, so the two splits have
    different writers.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    from mnist_pipe.data.images import centred

    scans = load_digits()
    grey = (scans.images * 255 / 16).round().astype(np.uint8)
    labels = scans.target.astype(np.uint8)
    height, width = MNIST.array_shape
    images = np.zeros((len(grey), height, width), dtype=np.uint8)
    for canvas, scan in zip(images, grey, strict=True):
        large = np.asarray(Image.fromarray(scan).resize((20, 20), Image.Resampling.BICUBIC))
        canvas[:] = centred(large, shape=(height, width), back=0.5)
    test = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(normalization.quotas(labels, num_rows=360)):
        test[np.flatnonzero(labels == label)[-quota:]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _read_libsvm(path: Path, *, shape: Shape) -> Arrays:
    """Return the images and labels in a bzip2 file of LIBSVM's format, whose values are from -1 to 1.

    As torchvision reads USPS: a level is the whole part of (value + 1) / 2 * 255, and the first label is 1.

    Raises:
        CorruptDataError: the file is damaged or of another format.
    """
    from sklearn.datasets import load_svmlight_file

    try:
        with bz2.open(path) as stream:
            content = stream.read(MAX_CONTENT_BYTES)
        values, labels = load_svmlight_file(io.BytesIO(content), n_features=shape[1] * shape[2], zero_based=False)
        levels = (values.toarray().astype(np.float32) + 1) / 2 * 255
        is_valid = len(labels) and levels.min() >= 0 and levels.max() <= 255 and (labels % 1 == 0).all()
    except (ValueError, OSError, EOFError) as error:
        raise CorruptDataError.invalid(path, "the file", "be bzip2 of LIBSVM's format", got=one_line(error)) from error
    if not is_valid:
        raise CorruptDataError.invalid(path, "every value", "be from -1 to 1, and every label whole", got="others")
    return levels.astype(np.uint8).reshape(-1, *shape[1:]), labels.astype(np.int64) - 1
