"""The data sets, and how their files are obtained. `SOURCES` names them all; a new one of four IDX files is one entry.

A published file is trusted for its size and digests alone. Neither the mirror nor the connection has to be, which is
just as well: two of the publishers serve plain http.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_pipe import atomic, paths
from mnist_pipe.data import idx, normalization
from mnist_pipe.data.splits import SIDE, RawSplit, check_labels
from mnist_pipe.errors import (
    CorruptDataError,
    EnvironmentFault,
    InputError,
    describe,
    one_line,
    unknown,
    without_credentials,
)

DOWNLOADS = paths.STATE / "downloads"  # kept, so that a rerun after a cut fetches only what is missing
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_CONTENT_BYTES = 1 << 30  # 1.4 million images
MAX_REDIRECTS = 3
SLOWEST_BYTES_PER_SECOND = 50_000


class NoMirrorFault(EnvironmentFault):
    """No mirror supplied a file; the fault that `ingest.fallback` is for."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """What one gzip file must be."""

    num_bytes: int
    md5: str
    """As the publisher or torchvision prints it."""
    sha256: str
    """As TensorFlow Datasets records it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set."""

    title: str
    citation: str
    published: Mapping[str, PublishedFile] = field(default_factory=dict)
    """The gzip files by IDX name, the four names of SPLITS; empty where nothing is downloaded."""
    mirrors: Sequence[str] = ()
    """The publisher's own base URLs, tried after those of the params."""


SOURCES = {
    "mnist": Source(
        title="MNIST",
        citation="LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998",
        published={
            "train-images-idx3-ubyte": PublishedFile(
                num_bytes=9_912_422,
                md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
                sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "train-labels-idx1-ubyte": PublishedFile(
                num_bytes=28_881,
                md5="d53e105ee54ea40749a09fcbcd1e9432",
                sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            "t10k-images-idx3-ubyte": PublishedFile(
                num_bytes=1_648_877,
                md5="9fb629c4189551a2d022fa330f9573f3",
                sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "t10k-labels-idx1-ubyte": PublishedFile(
                num_bytes=4_542,
                md5="ec29112dd5afa0611ce80d1b7f02629c",
                sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        },
    ),
    "fashion-mnist": Source(
        title="Fashion-MNIST",
        citation="Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
        "Algorithms, 2017, arXiv:1708.07747",
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
        published={
            "train-images-idx3-ubyte": PublishedFile(
                num_bytes=26_421_880,
                md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            "train-labels-idx1-ubyte": PublishedFile(
                num_bytes=29_515,
                md5="25c81989df183df01b3e8a0aad5dffbe",
                sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            "t10k-images-idx3-ubyte": PublishedFile(
                num_bytes=4_422_102,
                md5="bef4ecab320f06d8554ea6380940ec79",
                sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            "t10k-labels-idx1-ubyte": PublishedFile(
                num_bytes=5_148,
                md5="bb300cfdad3c16e7a12a480ee83cd310",
                sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        },
    ),
    "kmnist": Source(
        title="Kuzushiji-MNIST",
        citation="Clanuwat, Bober-Irizar, Kitamoto, Lamb, Yamamoto, Ha: Deep Learning for Classical Japanese "
        "Literature, 2018, arXiv:1812.01718",
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
        published={
            "train-images-idx3-ubyte": PublishedFile(
                num_bytes=18_165_135,
                md5="bdb82020997e1d708af4cf47b453dcf7",
                sha256="51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            ),
            "train-labels-idx1-ubyte": PublishedFile(
                num_bytes=29_497,
                md5="e144d726b3acfaa3e44228e80efcd344",
                sha256="e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            ),
            "t10k-images-idx3-ubyte": PublishedFile(
                num_bytes=3_041_136,
                md5="5c965bf0a639b31b8f53240b1b52f4d7",
                sha256="edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            ),
            "t10k-labels-idx1-ubyte": PublishedFile(
                num_bytes=5_120,
                md5="7320c461ea6c1c855c0b718fb2a4b134",
                sha256="20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            ),
        },
    ),
    "digits": Source(
        title="Optical Recognition of Handwritten Digits, resampled from 8x8 to 28x28",
        citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
    ),
    "local": Source(title="four IDX files of the user's", citation=""),
}


def fetch(
    dataset: str,
    *,
    mirrors: Sequence[str],
    folder: str | None,
    timeout_seconds: float,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """The verified files of a data set by IDX name: a directory's own, or downloaded to DOWNLOADS.

    Args:
        dataset: a key of SOURCES; `digits` has no files.
        mirrors: tried in order, file by file, and then the publisher's own: a directory, or an http(s) base URL.
        folder: holds the files of `local`, under their IDX names, with or without `.gz`.
        timeout_seconds: the longest silence of a server. A file may also take no longer than that and its size at
            SLOWEST_BYTES_PER_SECOND together.
        log: gets a line for each file that was found and for each mirror that did not have it.

    Raises:
        InputError: no such data set, or `folder` lacks a file.
        NoMirrorFault: a file came from no mirror; the message names each and its cause.
        EnvironmentFault: the disk does not take a download.
    """
    if dataset not in SOURCES:
        raise unknown("ingest", "dataset", dataset, SOURCES)
    if dataset == "local":
        return _local_files(folder)
    source = SOURCES[dataset]
    unreachable: dict[str, str] = {}
    return {
        name: _fetch_one(
            DOWNLOADS / dataset / f"{name}.gz",
            published,
            mirrors=[*mirrors, *source.mirrors],
            unreachable=unreachable,
            timeout_seconds=timeout_seconds,
            log=log,
        )
        for name, published in source.published.items()
    }


def load(dataset: str, found: Mapping[str, Path], *, fallback_for: str | None = None) -> dict[str, RawSplit]:
    """The raw splits `train` and `test` from the files that `fetch` found.

    The provenance names the data set and each file's digest, never a mirror or a time: same files, same bytes.

    Raises:
        CorruptDataError: a file that `idx.read` refuses, a label above 9, images and labels that differ in number.
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
            raise CorruptDataError(describe(name, "", "have one label per image", got=got))
        check_labels(name, labels)
        splits[name] = RawSplit(images=images, labels=labels, provenance=provenance)
    return splits


Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _read(found: Mapping[str, Path]) -> dict[str, Arrays]:
    return {
        name: (
            idx.read(found[images], kind="images", max_bytes=MAX_CONTENT_BYTES),
            idx.read(found[labels], kind="labels", max_bytes=MAX_CONTENT_BYTES),
        )
        for name, (images, labels) in SPLITS.items()
    }


def _digits() -> dict[str, Arrays]:
    """scikit-learn's 1,797 scans the way MNIST was made: scaled to 20x20, centred in 28x28 by mass.

    The last fifth of each class is the test split: the scans are in order of their writers, so it has other writers.
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


def _local_files(folder: str | None) -> dict[str, Path]:
    found = {}
    for name in (name for pair in SPLITS.values() for name in pair):
        candidates = (Path(folder or ".") / f"{name}.gz", Path(folder or ".") / name)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise InputError(describe("ingest", "folder", f"hold {name}.gz or {name}", got=f"neither in {folder}"))
        found[name] = path
    return found


class _MirrorError(Exception):
    """Why one mirror did not supply one file."""


class _UnreachableError(_MirrorError):
    """The mirror would keep the next file waiting just as long, so it is not asked again."""


def _fetch_one(
    target: Path,
    published: PublishedFile,
    *,
    mirrors: Sequence[str],
    unreachable: dict[str, str],
    timeout_seconds: float,
    log: Callable[[str], None],
) -> Path:
    try:
        _verify(target, published)
    except _MirrorError:
        pass
    else:
        log(f"{target.name}: downloaded before, in {target.parent}")
        return target
    causes = []
    for mirror in mirrors:
        shown = without_credentials(mirror) if "://" in mirror else mirror
        if mirror in unreachable:
            causes.append(f"{shown} ({unreachable[mirror]})")
            continue
        try:
            if "://" in mirror:
                path = target
                _download(f"{mirror.rstrip('/')}/{target.name}", target, published, timeout_seconds=timeout_seconds)
            else:
                path = Path(mirror) / target.name
                _verify(path, published)
        except _MirrorError as fault:
            if isinstance(fault, _UnreachableError):
                unreachable[mirror] = str(fault)
            causes.append(f"{shown} ({fault})")
            log(f"{target.name}: not from {causes[-1]}")
        else:
            log(f"{target.name}: from {shown}")
            return path
    fix = "check the network, name another in ingest.mirrors or set ingest.dataset to digits"
    raise NoMirrorFault(
        describe(target.parent.name, target.name, "come from a mirror", got=", ".join(causes) or "no mirror", fix=fix)
    )


def _verify(path: Path, published: PublishedFile) -> None:
    try:
        if not path.parent.is_dir():
            raise _UnreachableError("no such directory")
        if not path.is_file():
            raise _MirrorError("no such file")
        if path.stat().st_size != published.num_bytes:
            raise _MirrorError(f"{path.stat().st_size} bytes, not {published.num_bytes}")
        digests = _Digests()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digests.update(chunk)
    except OSError as fault:
        raise _MirrorError(fault.strerror) from fault
    digests.check(published)


class _Digests:
    """The size and digests of bytes as they pass."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._md5 = hashlib.md5(usedforsecurity=False)  # what the publishers print; SHA-256 is what is trusted
        self._sha256 = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        self.num_bytes += len(chunk)
        self._md5.update(chunk)
        self._sha256.update(chunk)

    def check(self, published: PublishedFile) -> None:
        if self.num_bytes != published.num_bytes:
            raise _MirrorError(f"{self.num_bytes} bytes, not {published.num_bytes}")
        for found, expected in ((self._sha256, published.sha256), (self._md5, published.md5)):
            if found.hexdigest() != expected:
                raise _MirrorError(f"{found.name} {found.hexdigest()[:12]}, not {expected[:12]}")


def _download(url: str, target: Path, published: PublishedFile, *, timeout_seconds: float) -> None:
    """Download `url` to `target`, whole and verified or not at all."""
    import httpx

    limit_seconds = timeout_seconds + published.num_bytes / SLOWEST_BYTES_PER_SECOND

    async def bounded(temporary: Path) -> None:
        # httpx bounds each silence; only the loop can bound the whole, whatever a server drips.
        async with asyncio.timeout(limit_seconds):
            await _stream(url, temporary, published, timeout_seconds=timeout_seconds)

    try:
        with atomic.atomic_file(target) as temporary:
            asyncio.run(bounded(temporary))
    except TimeoutError as fault:
        raise _UnreachableError(f"not done in {limit_seconds:.1f} s") from fault
    except httpx.TimeoutException as fault:
        raise _UnreachableError(f"silent for {timeout_seconds:g} s") from fault
    except httpx.ConnectError as fault:
        raise _UnreachableError(f"no connection: {_root_cause(fault)}") from fault
    except httpx.TooManyRedirects as fault:
        raise _MirrorError(f"more than {MAX_REDIRECTS} redirects") from fault
    except httpx.InvalidURL as fault:  # its text may quote a password
        raise _MirrorError("not a valid URL") from fault
    except httpx.HTTPError as fault:
        raise _MirrorError(one_line(fault) or type(fault).__name__) from fault
    except OSError as fault:
        rule = f"take {published.num_bytes} bytes"
        raise EnvironmentFault(describe(target.parent, "the folder", rule, got=fault.strerror)) from fault


async def _stream(url: str, temporary: Path, published: PublishedFile, *, timeout_seconds: float) -> None:
    import httpx
    from tqdm import tqdm

    async def refuse_downgrade(request: httpx.Request) -> None:
        if url.startswith("https:") and request.url.scheme != "https":
            raise _MirrorError("a redirect from https to http")

    client = httpx.AsyncClient(
        # A server that unpacks or packs on the way would change the bytes that the digest is of.
        headers={"Accept-Encoding": "identity"},
        timeout=timeout_seconds,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        event_hooks={"request": [refuse_downgrade]},
    )
    async with client, client.stream("GET", url) as response:
        if response.status_code != httpx.codes.OK:
            raise _MirrorError(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
        announced = response.headers.get("Content-Length", str(published.num_bytes))
        if announced != str(published.num_bytes):
            page = ", a web page" if response.headers.get("Content-Type", "").startswith("text/html") else ""
            raise _MirrorError(f"{announced[:20]} bytes{page}, not {published.num_bytes}")
        digests = _Digests()
        progress = tqdm(
            total=published.num_bytes, desc=url.rpartition("/")[2], unit="B", unit_scale=True, leave=False, disable=None
        )
        with temporary.open("wb") as stream, progress:
            async for chunk in response.aiter_raw():
                digests.update(chunk)
                if digests.num_bytes > published.num_bytes:
                    raise _MirrorError(f"more than {published.num_bytes} bytes")
                stream.write(chunk)
                progress.update(len(chunk))
        digests.check(published)


def _root_cause(fault: BaseException) -> str:
    """The operating system's own words, which httpx and anyio wrap two or three times."""
    while (inner := fault.__cause__ or fault.__context__) is not None:
        fault = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner
    if isinstance(fault, OSError) and fault.errno and fault.errno > 0 and not isinstance(fault, ssl.SSLError):
        return os.strerror(fault.errno)  # asyncio puts "Connect call failed" and the address in its place
    return (fault.strerror if isinstance(fault, OSError) else None) or one_line(fault)
