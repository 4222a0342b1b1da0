"""Test the data sets: every entry of SOURCES, every way in which a mirror can fail, and the flow's fallback."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import http.server
import importlib
import logging
import re
import resource
import socket
import ssl
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mnist_pipe.data import idx, sources
from mnist_pipe.data.download import NoMirrorError, PublishedFile
from mnist_pipe.data.facts import Resize
from mnist_pipe.data.sources import SOURCES, Source
from mnist_pipe.data.splits import read_raw, write_raw
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError
from tests.support.data import ingest_params

NAMES = [name for pair in sources.SPLITS.values() for name in pair]
FIRST = f"{NAMES[0]}.gz"


def toy_files(rows: dict[str, int] | None = None) -> dict[str, bytes]:
    """Return four small gzipped IDX files by name, large enough that nearly every bit is pixel noise."""
    random = np.random.default_rng(3)
    files = {}
    for split, (images, labels) in sources.SPLITS.items():
        count = (rows or {"train": 20, "test": 10})[split]
        files[images] = gzip.compress(idx.encode(random.integers(0, 256, (count, 28, 28), np.uint8)), mtime=0)
        files[labels] = gzip.compress(idx.encode((np.arange(count) % 10).astype(np.uint8)), mtime=0)
    return files


TOY = toy_files()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Published data set of four small files, and an empty project to download it to."""
    published = {
        name: PublishedFile(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in TOY.items()
    }
    monkeypatch.setitem(SOURCES, "toy", Source(title="Toy", citation="-", licence="-", files=published))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Handler that serves the toy files well or badly; the first part of the path names the method that responds."""

    protocol_version = "HTTP/1.1"
    requests: list[str]
    released: threading.Event

    def do_GET(self) -> None:
        self.requests.append(self.path)
        behaviour, name = self.path.strip("/").split("/")
        with suppress(ConnectionError):  # the client may disconnect early
            getattr(self, behaviour.partition("-")[0])(TOY[name.removesuffix(".gz")], name)

    def answer(self, content: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Connection": "close", "Content_Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def good(self, content: bytes, _name: str) -> None:
        self.answer(content)

    def unannounced(self, content: bytes, _name: str) -> None:
        self.answer(content, Content_Length="")

    def truncated(self, content: bytes, _name: str) -> None:
        self.answer(content[:100], Content_Length=str(len(content)))

    def short(self, content: bytes, _name: str) -> None:
        self.answer(content[:100], Content_Length="")

    def flipped(self, content: bytes, _name: str) -> None:
        self.answer(content[:-1] + bytes([content[-1] ^ 1]))

    def wrong(self, _content: bytes, _name: str) -> None:
        self.answer(b"x" * 1000)

    def page(self, _content: bytes, _name: str) -> None:
        self.answer(b"<!DOCTYPE html><html>please log in</html>", Content_Type="text/html; charset=utf-8")

    def endless(self, content: bytes, _name: str) -> None:
        self.answer(content, Content_Length="")
        while not self.released.is_set():
            self.wfile.write(b"x" * 1000)

    def silent(self, _content: bytes, _name: str) -> None:
        self.released.wait(10)

    def drip(self, content: bytes, _name: str) -> None:
        self.answer(b"", Content_Length=str(len(content)))
        for byte in content:
            if not self.released.wait(0.05):
                self.wfile.write(bytes([byte]))

    def drip_headers(self, _content: bytes, _name: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Padding: ")
        while not self.released.wait(0.05):
            self.wfile.write(b"x")

    def unavailable(self, _content: bytes, _name: str) -> None:
        self.answer(b"", status=503)

    def loop(self, _content: bytes, name: str) -> None:
        self.answer(b"", status=302, Location=f"/loop/{name}")

    def hops(self, content: bytes, name: str) -> None:
        left = int(self.path.split("/")[1].removeprefix("hops-"))
        if left:
            self.answer(b"", status=302, Location=f"/hops-{left - 1}/{name}")
        else:
            self.answer(content)

    def downgrade(self, _content: bytes, name: str) -> None:
        self.answer(b"", status=302, Location=f"http://127.0.0.1:{self.connection.getsockname()[1]}/good/{name}")

    def private(self, content: bytes, _name: str) -> None:
        known = self.headers.get("Authorization") == "Basic dXNlcjpzZWNyZXQ="  # user:secret
        self.answer(content if known else b"", status=200 if known else 401)

    def log_message(self, *_arguments: object) -> None:
        pass


@dataclasses.dataclass
class Server:
    url: str
    requests: list[str]


def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    requests: list[str] = []
    released = threading.Event()
    handler = type("Handler", (Mirror,), {"requests": requests, "released": released})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        scheme = "https" if context else "http"
        yield Server(url=f"{scheme}://127.0.0.1:{server.server_address[1]}", requests=requests)
        released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving()


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {tmp_path}/key.pem -out {tmp_path}/cert.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/cert.pem")
    yield from serving(context)


def fetch(
    *mirrors: object, dataset: str = "toy", timeout_seconds: float = 30, log: Callable[[str], None] = print
) -> dict[str, Path]:
    """Call `sources.fetch` with a time-out that suffices for a good server on a busy machine."""
    found = [str(mirror) for mirror in mirrors]
    return sources.fetch(dataset, mirrors=found, timeout_seconds=timeout_seconds, log=log)


def assert_toy(found: dict[str, Path]) -> None:
    assert {name: path.read_bytes() for name, path in found.items()} == TOY


def no_mirror(*causes: str) -> str:
    return (
        f"toy: {FIRST} is not available from any mirror: {', '.join(causes) or 'none is set'}; "
        "check the network, add a mirror to ingest.mirrors or set ingest.dataset to digits"
    )


def leftovers() -> list[str]:
    return sorted(str(path.relative_to(sources.DOWNLOADS)) for path in sources.DOWNLOADS.rglob("*") if path.is_file())


def folder_of(parent: Path, files: dict[str, bytes], *, suffix: str = ".gz") -> Path:
    parent.mkdir(exist_ok=True)
    for name, content in files.items():
        (parent / f"{name}{suffix}").write_bytes(content)
    return parent


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "toy"])
def test_an_entry_is_well_formed(name: str) -> None:
    source = SOURCES[name]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)
    assert source.title
    assert source.citation
    assert source.licence
    named = {file for files in source.splits.values() for file in files}
    assert source.files.keys() in (set(), named, {"gzip.zip"})
    for file in source.files.values():
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) or re.fullmatch("[0-9a-f]{32}", file.md5)
        assert file.max_bytes > 1000
    assert all(re.fullmatch(r"https?://[a-zA-Z0-9./~_-]+[a-zA-Z0-9]", mirror) for mirror in source.mirrors)
    assert len(set(source.labels)) == len(source.labels) == source.facts.num_classes
    assert all(label == label.strip() != "?" for label in source.labels)
    assert source.resize in get_args(Resize)


def test_names_of_classes_agree_with_torchvision() -> None:
    importlib.import_module("benchmarks.vision")
    from torchvision.datasets import EMNIST, KMNIST, FashionMNIST

    assert SOURCES["fashion-mnist"].labels == FashionMNIST.classes
    assert SOURCES["kmnist"].labels == KMNIST.classes
    for name in ("mnist", "digits", "qmnist", "usps"):
        assert [*SOURCES[name].labels] == [*"0123456789"]
    for split, classes in EMNIST.classes_split_dict.items():
        source = SOURCES[f"emnist-{split}"]
        assert ["N/A"] * source.first_label + [*source.labels] == classes


def test_only_letters_and_digits_are_put_into_a_box() -> None:
    clothes = {"fashion-mnist", "kmnist", "usps", "toy"}
    assert {name for name, source in SOURCES.items() if source.resize != "digit_box"} == clothes


def md5_notes(dataset: str) -> dict[str, str]:
    """Return the MD5 of each file, from the notes in sources.toml or the entry itself."""
    table = (Path(sources.__file__).parent / "sources.toml").read_text()
    pattern = rf'^\[{dataset}\.files\."?([^"\]]+)"?\](?: # MD5 |\nmd5 = ")([0-9a-f]{{32}})'
    return dict(re.findall(pattern, table, re.MULTILINE))


def test_md5_and_mirrors_agree_with_torchvision() -> None:
    importlib.import_module("benchmarks.vision")  # makes torchvision importable
    from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, USPS, FashionMNIST

    peers = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "kmnist": KMNIST}
    for name, peer in peers.items():
        ours = {f"{file}.gz": md5 for file, md5 in md5_notes(name).items()}
        assert ours == dict(peer.resources)
        assert ours.keys() == {f"{file}.gz" for file in SOURCES[name].files}
        assert {f"{mirror}/" for mirror in SOURCES[name].mirrors} <= set(peer.mirrors)
    resources = {
        "qmnist": [*QMNIST.resources["train"], *QMNIST.resources["test"]],
        "usps": [(url, md5) for url, _, md5 in USPS.split_list.values()],
        **{f"emnist-{split}": [(EMNIST.url, EMNIST.md5)] for split in EMNIST.splits},
    }
    for name, known in resources.items():
        [mirror] = SOURCES[name].mirrors
        suffix = ".gz" if name == "qmnist" else ""
        assert {f"{mirror}/{file}{suffix}": md5 for file, md5 in md5_notes(name).items()} == dict(known)
        assert md5_notes(name).keys() == SOURCES[name].files.keys()


def test_no_two_published_files_have_a_digest_in_common() -> None:
    files = {
        (source.folder or name, key): file.sha256 or file.md5
        for name, source in SOURCES.items()
        if name != "toy"
        for key, file in source.files.items()
    }
    assert len(files) == len(set(files.values())) == 12 + 4 + 2 + 1


def test_every_split_of_emnist_is_delivered_upright_with_its_classes(tmp_path: Path) -> None:
    """The files are made as NIST specifies them: a zip file of gzipped IDX files with rows and columns exchanged."""
    random = np.random.default_rng(0)
    upright = random.integers(0, 256, (124, 28, 28), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for name in (name for name in SOURCES if name.startswith("emnist-")):
            source = SOURCES[name]
            labels = (np.arange(124) % source.facts.num_classes + source.first_label).astype(np.uint8)
            for files in source.splits.values():
                for file, array in zip(files, (upright.transpose(0, 2, 1), labels), strict=True):
                    archive.writestr(file, gzip.compress(idx.encode(np.ascontiguousarray(array))))
    for name in (name for name in SOURCES if name.startswith("emnist-")):
        splits = sources.load(name, {"gzip.zip": tmp_path / "gzip.zip"})
        assert splits.keys() == {"train", "test"}
        for split in splits.values():
            np.testing.assert_array_equal(split.images, upright)
            assert split.labels.tolist() == (np.arange(124) % SOURCES[name].facts.num_classes).tolist()
            assert split.facts.labels == tuple(SOURCES[name].labels)


def test_qmnist_is_read_with_the_first_of_its_eight_columns(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    columns = np.random.default_rng(1).integers(0, 300_000, (20, 8)).astype(">i4")
    columns[:, 0] = np.arange(20) % 10
    labels = struct.pack(">HBBII", 0, 0x0C, 2, 20, 8) + columns.tobytes()
    found = {}
    for files in SOURCES["qmnist"].splits.values():
        for file, content in zip(files, (idx.encode(images), labels), strict=True):
            found[file] = tmp_path / f"{file}.gz"
            found[file].write_bytes(gzip.compress(content))
    splits = sources.load("qmnist", found)
    np.testing.assert_array_equal(splits["test"].images, images)
    assert splits["train"].labels.tolist() == columns[:, 0].tolist()


def test_usps_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    importlib.import_module("benchmarks.vision")
    from torchvision.datasets import USPS

    values = np.random.default_rng(0).uniform(-1, 1, (12, 256)).round(4)
    lines = [
        f"{row % 10 + 1} " + " ".join(f"{place + 1}:{value}" for place, value in enumerate(line)) + " "
        for row, line in enumerate(values)
    ]
    for file in SOURCES["usps"].files:
        (tmp_path / file).write_bytes(bz2.compress("\n".join([*lines, ""]).encode()))
    splits = sources.load("usps", {file: tmp_path / file for file in SOURCES["usps"].files})
    for split, is_train in (("train", True), ("test", False)):
        oracle = USPS(tmp_path, train=is_train)
        np.testing.assert_array_equal(splits[split].images, oracle.data)
        assert splits[split].labels.tolist() == oracle.targets
        assert splits[split].facts.shape == (1, 16, 16)
    (tmp_path / "usps.bz2").write_bytes(b"BZh9 no")
    with pytest.raises(CorruptDataError, match=r"usps.bz2: the file must be bzip2 of LIBSVM's format, but got "):
        sources.load("usps", {file: tmp_path / file for file in SOURCES["usps"].files})


def test_mnist_is_the_published_one(mnist_mirror: Path) -> None:
    found = fetch("nowhere", mnist_mirror, dataset="mnist")
    splits = sources.load("mnist", found)
    assert {name: split.images.shape for name, split in splits.items()} == {
        "train": (60_000, 28, 28),
        "test": (10_000, 28, 28),
    }
    # MD5 of the uncompressed files, headers included, as others publish them.
    assert {name: hashlib.md5(idx.encode(split.images)).hexdigest() for name, split in splits.items()} == {
        "train": "6bbc9ace898e44ae57da46a324031adb",
        "test": "2646ac647ad5339dbf082846283269ea",
    }
    assert np.bincount(splits["test"].labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits["train"].provenance["files"]["train-images-idx3-ubyte.gz"] == {
        "bytes": 9_912_422,
        "sha256": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    }
    assert leftovers() == []


def test_digits_are_the_scans_of_scikit_learn_enlarged_and_centred() -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    splits = sources.load("digits", fetch(dataset="digits"))
    train, test = splits["train"], splits["test"]
    assert (train.images.shape, test.images.shape) == ((1437, 28, 28), (360, 28, 28))
    scans = load_digits()
    known = np.bincount(scans.target)
    assert np.array_equal(np.bincount(train.labels) + np.bincount(test.labels), known)
    assert np.abs(np.bincount(test.labels) - known / 5).max() < 1
    for images, labels in ((train.images, train.labels), (test.images, test.labels)):
        for label in range(10):
            mass = images[labels == label].astype(float)
            grid = np.arange(28)
            y = (mass.sum(2) @ grid) / mass.sum((1, 2))
            x = (mass.sum(1) @ grid) / mass.sum((1, 2))
            assert np.abs(y - 13.5).max() <= 0.5 + 1e-9
            assert np.abs(x - 13.5).max() <= 0.5 + 1e-9
    # The first zero of the scans is the first zero of the split: shrunk to 8x8 again, it equals that scan.
    zero = train.images[np.flatnonzero(train.labels == 0)[0]]
    windows = [zero[y : y + 20, x : x + 20] for y in range(9) for x in range(9)]
    shrunk = [np.asarray(Image.fromarray(window).resize((8, 8), Image.Resampling.BOX)) for window in windows]
    assert max(np.corrcoef(small.ravel(), scans.images[0].ravel())[0, 1] for small in shrunk) > 0.95


def test_digits_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_raw(tmp_path / name, sources.load("digits", {})["train"])
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        fetch(dataset="minst")
    assert str(caught.value) == (
        "ingest: dataset must be one of digits, emnist-balanced, emnist-byclass, emnist-bymerge, emnist-digits, "
        "emnist-letters, emnist-mnist, fashion-mnist, kmnist, mnist, qmnist, toy, usps, but got 'minst'; "
        "did you mean 'mnist'?"
    )


def test_images_and_labels_that_differ_in_number_are_refused(tmp_path: Path) -> None:
    files = TOY | {NAMES[1]: toy_files({"train": 19, "test": 10})[NAMES[1]]}
    folder = folder_of(tmp_path / "mine", files)
    with pytest.raises(CorruptDataError) as caught:
        sources.load("toy", {name: folder / f"{name}.gz" for name in NAMES})
    assert str(caught.value) == "train: must have one label per image, but got 20 images and 19 labels"


def test_a_label_above_nine_is_refused(tmp_path: Path) -> None:
    labels = gzip.compress(idx.encode(np.array([0, 1, 11, 3, 4, 5, 6, 255, 8, 9], np.uint8)))
    folder = folder_of(tmp_path / "mine", TOY | {NAMES[3]: labels})
    with pytest.raises(CorruptDataError) as caught:
        sources.load("toy", {name: folder / f"{name}.gz" for name in NAMES})
    assert str(caught.value) == "test: labels[2] must be 0 to 9, but got 11 (2 such labels)"


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", TOY | {NAMES[0]: TOY[NAMES[1]], NAMES[1]: TOY[NAMES[0]]})
    with pytest.raises(CorruptDataError) as caught:
        sources.load("toy", {name: folder / f"{name}.gz" for name in NAMES})
    assert str(caught.value) == (
        f"{folder}/{FIRST}: the shape must be NxHxW or NxHxWx3 (images), but got 20 (labels); are the files swapped?"
    )


def test_the_data_does_not_depend_on_the_mirror(tmp_path: Path, server: Server) -> None:
    directory = folder_of(tmp_path / "mirror", TOY)
    for name, mirror in (("a", directory), ("b", f"{server.url}/good/")):
        write_raw(tmp_path / name, sources.load("toy", fetch(mirror))["train"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_a_directory_mirror_are_verified_and_not_copied(tmp_path: Path) -> None:
    lines: list[str] = []
    directory = folder_of(tmp_path / "mirror", TOY)
    found = fetch("nowhere", directory, log=lines.append)
    assert_toy(found)
    assert found[NAMES[0]] == directory / FIRST
    assert lines == [
        f"{FIRST}: not available from nowhere (no such directory)",
        *(f"{name}.gz: found at {directory}" for name in NAMES),
    ]
    assert leftovers() == []


def test_an_invalid_directory_mirror_is_reported_with_its_cause(tmp_path: Path) -> None:
    content, published = TOY[NAMES[0]], SOURCES["toy"].files[NAMES[0]]
    other = content[:-1] + bytes([content[-1] ^ 1])
    cases = {
        "empty": ({}, "no such file"),
        "short": ({NAMES[0]: content[:-1]}, f"{len(content) - 1} bytes, not {len(content)}"),
        "other": (
            {NAMES[0]: other},
            f"sha256 {hashlib.sha256(other).hexdigest()[:12]}, not {published.sha256[:12]}",
        ),
    }
    causes = ["missing (no such directory)"]
    for name, (files, cause) in cases.items():
        folder_of(Path(name), files)
        causes.append(f"{name} ({cause})")
    with pytest.raises(NoMirrorError) as caught:
        fetch("missing", *cases)
    assert str(caught.value) == no_mirror(*causes)
    assert_toy(fetch(*cases, folder_of(tmp_path / "good", TOY)))


def test_every_bit_flip_and_truncation_of_a_mirrors_file_is_refused(tmp_path: Path) -> None:
    content = TOY[NAMES[0]]
    directory = folder_of(tmp_path / "mirror", TOY)
    random = np.random.default_rng(0)
    damaged = [content[:length] for length in random.integers(0, len(content), 50)]
    for bit in [*range(8 * 10), *random.integers(0, 8 * len(content), 300)]:  # the gzip header, then random bits
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << int(bit) % 8
        damaged.append(bytes(flipped))
    for wrong in damaged:
        (directory / FIRST).write_bytes(wrong)
        with pytest.raises(NoMirrorError):
            fetch(directory, log=lambda _line: None)


@pytest.mark.parametrize("way", ["good", "unannounced", "hops-3"])
def test_a_valid_server_supplies_every_file(server: Server, way: str) -> None:
    assert_toy(fetch(f"{server.url}/{way}"))
    assert leftovers() == sorted(f"toy/{name}.gz" for name in NAMES)


SIZE = len(TOY[NAMES[0]])
FLIPPED = hashlib.sha256(TOY[NAMES[0]][:-1] + bytes([TOY[NAMES[0]][-1] ^ 1])).hexdigest()
FAULTS = {
    "truncated": f"peer closed connection without sending complete message body (received 100 bytes, expected {SIZE})",
    "short": f"100 bytes, not {SIZE}",
    "flipped": f"sha256 {FLIPPED[:12]}, not {hashlib.sha256(TOY[NAMES[0]]).hexdigest()[:12]}",
    "wrong": f"1000 bytes, not {SIZE}",
    "page": f"41 bytes, a web page, not {SIZE}",
    "endless": f"more than {SIZE} bytes",
    "silent": "no data for 0.5 s",
    "drip": "only N bytes in N s",
    "drip_headers": "no data for 0.5 s",
    "unavailable": "HTTP 503 Service Unavailable",
    "loop": "more than 3 redirects",
    "hops-4": "more than 3 redirects",
    "private": "HTTP 401 Unauthorized",
}
SLOW = ("silent", "drip", "drip_headers")
"""The ways that only a time-out ends."""


@pytest.mark.parametrize("way", [pytest.param(w, marks=pytest.mark.services) if w in SLOW else w for w in FAULTS])
def test_a_failing_server_is_reported_and_the_next_mirror_tried(server: Server, way: str) -> None:
    timeout_seconds = 0.5 if way in SLOW else 30
    with pytest.raises(NoMirrorError) as caught:
        fetch(f"{server.url}/{way}", timeout_seconds=timeout_seconds)
    message = re.sub(r"only \d+ bytes in [\d.]+ s", "only N bytes in N s", str(caught.value))
    assert message == no_mirror(f"{server.url}/{way} ({FAULTS[way]})")
    assert leftovers() == []
    assert_toy(fetch(f"{server.url}/{way}", f"{server.url}/good", timeout_seconds=timeout_seconds))


@pytest.mark.timing
@pytest.mark.parametrize("way", FAULTS)
def test_a_failing_server_times_out_within_seconds(server: Server, way: str) -> None:
    started = time.monotonic()
    with pytest.raises(NoMirrorError):
        fetch(f"{server.url}/{way}", timeout_seconds=2 if way in SLOW else 30)
    assert time.monotonic() - started < 10


def test_the_error_names_each_mirror_in_one_line(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    mirrors = ["missing", "http://no-such-host.invalid/x", f"http://127.0.0.1:{port}"]
    with pytest.raises(NoMirrorError) as caught:
        fetch(*mirrors[:2])
    assert caught.value.exit_code == 3
    message = re.sub(r"(no-such-host.invalid/x \(no connection: )[^)]+", r"\1the resolver's words", str(caught.value))
    assert message == no_mirror(
        "missing (no such directory)",
        "http://no-such-host.invalid/x (no connection: the resolver's words)",
    )
    with pytest.raises(NoMirrorError) as caught:
        fetch(mirrors[2], f"{server.url}/unavailable", *(f"missing{number}" for number in range(9)))
    refused = f"http://127.0.0.1:{port} (no connection: Connection refused)"
    assert f"{refused}, {server.url}/unavailable (HTTP 503 Service Unavailable), missing0 (no " in str(caught.value)
    assert str(caught.value).endswith(f" …{message[message.rindex('; check') :]}")  # each mirror is in the log
    with pytest.raises(NoMirrorError) as caught:
        fetch()
    assert str(caught.value) == no_mirror()


def test_a_silent_mirror_is_tried_once_and_not_for_each_file(server: Server) -> None:
    assert_toy(fetch(f"{server.url}/silent", f"{server.url}/good", timeout_seconds=2))
    assert sum(path.startswith("/silent/") for path in server.requests) == 1


@pytest.mark.services
def test_silent_mirrors_share_the_time_and_are_announced(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(NoMirrorError, match=r"\(no data for 4 s\).*\(no data for 4 s\)"):
        fetch(f"{server.url}/silent", f"{server.url}/silent/", timeout_seconds=8)
    assert time.monotonic() - started < 10
    where = f"{server.url}/silent/{NAMES[0]}.gz, a mirror of ingest.mirrors or the publisher's"
    assert f"waiting for {where}\n" in capfd.readouterr().err


@pytest.mark.services
def test_a_trickling_mirror_is_left_long_before_its_file_is_complete(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, published = next(iter(SOURCES["toy"].files.items()))
    huge = dataclasses.replace(published, num_bytes=50_000_000)
    monkeypatch.setitem(SOURCES, "toy", dataclasses.replace(SOURCES["toy"], files={name: huge}))
    started = time.monotonic()
    with pytest.raises(NoMirrorError, match=r"no data for 0\.5 s"):
        fetch(f"{server.url}/drip_headers", timeout_seconds=0.5)
    assert time.monotonic() - started < 5


def test_the_publishers_own_mirror_comes_last(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    own = dataclasses.replace(SOURCES["toy"], mirrors=(f"{server.url}/good",))
    monkeypatch.setitem(SOURCES, "toy", own)
    assert_toy(fetch(f"{server.url}/unavailable"))
    assert [path.split("/")[1] for path in server.requests] == ["unavailable", "good"] * 4


def test_https_is_verified_and_a_redirect_to_http_refused(tls_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoMirrorError) as caught:
        fetch(f"{tls_server.url}/downgrade")
    assert str(caught.value) == no_mirror(f"{tls_server.url}/downgrade (a redirect from https to http)")
    assert_toy(fetch(f"{tls_server.url}/good"))
    (sources.DOWNLOADS / "toy" / FIRST).unlink()
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NoMirrorError, match="certificate verify failed: self-signed certificate"):
        fetch(f"{tls_server.url}/good")


def test_credentials_are_sent_to_the_mirror_and_not_logged(server: Server) -> None:
    lines: list[str] = []
    authority = server.url.removeprefix("http://")
    assert_toy(fetch(f"http://user:secret@{authority}/private", log=lines.append))
    assert lines == [f"{name}.gz: found at http://{authority}/private" for name in NAMES]
    (sources.DOWNLOADS / "toy" / FIRST).unlink()
    mirrors = [f"http://user:secret@{authority}/wrong", "http://user:secret@127.0.0.1:port", "http://user:secret@/"]
    with pytest.raises(NoMirrorError) as caught:
        fetch(*mirrors, log=lines.append)
    assert "secret" not in str(caught.value) + "".join(lines)


def test_a_rerun_downloads_only_missing_or_damaged_files(server: Server) -> None:
    fetch(f"{server.url}/good")
    (sources.DOWNLOADS / "toy" / f"{NAMES[1]}.gz").unlink()
    damaged = sources.DOWNLOADS / "toy" / f"{NAMES[2]}.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    server.requests.clear()
    assert_toy(fetch(f"{server.url}/good"))
    assert server.requests == [f"/good/{NAMES[1]}.gz", f"/good/{NAMES[2]}.gz"]


def test_a_full_disk_is_not_reported_as_a_mirrors_error(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UnavailableError) as caught:
            fetch(f"{server.url}/good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        str(caught.value)
        == f".state/downloads/toy: the folder must accept a file of {SIZE} bytes, but got File too large"
    )
    assert not isinstance(caught.value, NoMirrorError)
    assert leftovers() == []


@pytest.mark.services
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_falls_back_with_a_warning_or_fails_without_output(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.ingest import fetch as fetch_task
    from pipelines.ingest import ingest

    monkeypatch.setattr(fetch_task, "retry_delay_seconds", 0)
    params = ingest_params(dataset="toy", mirrors=["missing"], fallback="digits", timeout_seconds=1)
    with pytest.raises(NoMirrorError) as caught:
        ingest(params.model_copy(update={"fallback": None}))
    assert str(caught.value) == no_mirror("missing (no such directory)")
    assert not Path("data").exists()

    # Prefect keeps its records from the root logger, unless another library has configured logging since.
    logger = logging.getLogger("prefect.flow_runs")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
    caplog.clear()
    ingest(params)
    [warning] = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert warning == (
        "FALLBACK: all stages use digits instead of toy. "
        f"{no_mirror('missing (no such directory)')}. To retry, run: dvc repro --force ingest && dvc repro"
    )
    for name, rows in (("train", 1437), ("test", 360)):
        split = read_raw(Path(f"data/raw/{name}.parquet"))
        assert (len(split.labels), split.provenance["dataset"], split.provenance["fallback_for"]) == (
            rows,
            "digits",
            "toy",
        )

    ingest(params.model_copy(update={"mirrors": [str(folder_of(tmp_path / "mirror", TOY))]}))
    provenance = read_raw(Path("data/raw/train.parquet")).provenance
    assert (provenance["dataset"], provenance["fallback_for"]) == ("toy", None)
