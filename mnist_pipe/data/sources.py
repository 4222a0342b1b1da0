"""The data sets of sources.toml: fetching their published files and converting them to raw splits."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe import atomic, paths
from mnist_pipe.data import idx, normalization
from mnist_pipe.data.download import PublishedFile, fetch_published
from mnist_pipe.data.splits import NUM_CLASSES, SIDE, RawSplit, check_labels
from mnist_pipe.errors import CorruptDataError, InputError, unknown

DOWNLOADS = paths.STATE / "downloads"  # kept, so that a rerun after a failure fetches only missing files
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TABLE = Path(__file__).with_name("sources.toml")
_MAX_CONTENT_BYTES = 1 << 30  # about 1.4 million images

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images, uint8 `(N, 28, 28)`, and labels, uint8 `(N,)`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set of sources.toml."""

    title: str
    citation: str
    files: Mapping[str, PublishedFile] = field(default_factory=dict)
    """Published gzip files by IDX name, the four names in `SPLITS`; empty if nothing is downloaded."""
    mirrors: Sequence[str] = ()
    """The publisher's own base URLs, tried after those of `ingest.mirrors`."""
    labels: Sequence[str] = tuple(map(str, range(NUM_CLASSES)))
    """Names of the classes, in their order; the numbers themselves if they have no names."""
    picture: str = "resize"
    """How a user's picture becomes an image of the data set, one of `data.images.RULES`."""


def _read_table() -> dict[str, Source]:
    with _TABLE.open("rb") as stream:
        table = tomllib.load(stream)
    return {
        name: Source(**{**entry, "files": {file: PublishedFile(**one) for file, one in entry.get("files", {}).items()}})
        for name, entry in table.items()
    }


SOURCES = _read_table()
"""All data sets, by their name in `ingest.dataset`."""


def fetch(
    dataset: str,
    *,
    mirrors: Sequence[str],
    folder: str | None,
    timeout_seconds: float,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Return the paths of a data set's verified files by IDX name, after downloading to `DOWNLOADS` what is missing.

    Args:
        dataset: a key of `SOURCES`; `digits` has no files.
        mirrors: directories or http(s) base URLs, tried in order for each file, before the publisher's own mirrors.
        folder: the folder with the files of `local`; see `local_files`.
        timeout_seconds: the longest silence of all servers together, in equal shares; `fetch_published` derives the
            limit for a whole file from it.
        log: called with one line for each file that was found and for each mirror that did not supply it.

    Raises:
        InputError: there is no such data set, or `folder` lacks a file.
        NoMirrorError: no mirror supplied a file; the message names each mirror and the cause.
        UnavailableError: a download cannot be written to the disk.
    """
    if dataset not in SOURCES:
        raise unknown("ingest", "dataset", dataset, SOURCES)
    if dataset == "local":
        return local_files(folder)
    source = SOURCES[dataset]
    unreachable: dict[str, str] = {}
    places = [*mirrors, *source.mirrors]
    num_servers = sum("://" in place for place in places)
    return {
        name: fetch_published(
            DOWNLOADS / dataset / f"{name}.gz",
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
        found: the paths of the files by IDX name; not used for `digits`.
        fallback_for: the name of the data set that this one replaces, for the provenance.

    Raises:
        CorruptDataError: `idx.read` refuses a file, a label is above 9, or images and labels differ in number.
    """
    source = SOURCES[dataset]
    digests = {path.name: {"bytes": path.stat().st_size, "sha256": atomic.sha256(path)} for path in found.values()}
    provenance: dict[str, Any] = {
        "dataset": dataset,
        "title": source.title,
        "citation": source.citation,
        "files": digests,
        "fallback_for": fallback_for,
    }
    splits = {}
    for name, (images, labels) in (_digits() if dataset == "digits" else _read(found)).items():
        if len(images) != len(labels):
            got = f"{len(images)} images and {len(labels)} labels"
            raise CorruptDataError.invalid(name, "", "have one label per image", got=got)
        check_labels(name, labels)
        splits[name] = RawSplit(images=images, labels=labels, provenance=provenance)
    return splits


def _read(found: Mapping[str, Path]) -> dict[str, Arrays]:
    return {
        name: (
            idx.read(found[images], kind="images", max_bytes=_MAX_CONTENT_BYTES),
            idx.read(found[labels], kind="labels", max_bytes=_MAX_CONTENT_BYTES),
        )
        for name, (images, labels) in SPLITS.items()
    }


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
    images = np.zeros((len(grey), SIDE, SIDE), dtype=np.uint8)
    for canvas, scan in zip(images, grey, strict=True):
        large = np.asarray(Image.fromarray(scan).resize((20, 20), Image.Resampling.BICUBIC))
        canvas[:] = centred(large, centre=(SIDE - 1) / 2)
    test = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(normalization.quotas(labels, num_rows=360)):
        test[np.flatnonzero(labels == label)[-quota:]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def local_files(folder: str | None) -> dict[str, Path]:
    """Return the paths of the four files of `local` by IDX name.

    They lie in the folder or up to two below it, together or each in its own folder. Their names may be in upper case,
    end in `.gz`, and have a dot before `idx`, as Kaggle's have, or `test` for `t10k`.

    Raises:
        InputError: a file is missing, or several could be meant.
    """
    root = Path(folder or ".")
    found: dict[str, dict[Path, Path]] = {name: {} for pair in SPLITS.values() for name in pair}
    for pattern in ("*", "*/*", "*/*/*"):
        # Of a packed and an unpacked file in one folder, the packed one is taken.
        for path in sorted(root.glob(pattern), key=lambda path: (path.parent, path.suffix.lower() != ".gz", path)):
            name = re.sub(r"[._]", "-", path.name.lower().removesuffix(".gz")).replace("test-", "t10k-")
            if name in found and path.is_file():
                found[name].setdefault(path.parent, path)
        if all(found.values()):
            break
    together = set.intersection(*map(set, found.values()))
    if len(together) == 1:
        [parent] = together
        return {name: by_folder[parent] for name, by_folder in found.items()}
    for name, by_folder in found.items():
        if not by_folder:
            rule, got = f"hold {name}.gz or {name}", f"neither in {root} nor up to two folders below it"
            raise InputError.invalid("ingest", "folder", rule, got=got)
        if len(by_folder) > 1:
            got = " and ".join(str(path.relative_to(root)) for path in by_folder.values())
            raise InputError.invalid("ingest", "folder", f"hold one {name}", got=got, fix="name the right folder")
    return {name: path for name, by_folder in found.items() for path in by_folder.values()}
