"""Test the storage: a directory and an S3 bucket fulfil the same contract."""

from __future__ import annotations

import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_pipe.atomic import sha256
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.storage import Storage
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError
from mnist_pipe.waiting import LIMIT_SECONDS
from tests.support.bucket import SECRET, s3
from tests.support.services import dead_server

UNREACHABLE = r"MNIST_PIPE_STORAGE: s3://bucket/a at http://127.0.0.1:\d+ \(AWS_ENDPOINT_URL\) does not answer: "


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """S3 server with the bucket `bucket`, named by AWS_ENDPOINT_URL; it fails while the yielded file exists."""
    with s3(tmp_path_factory.mktemp("s3")) as flag:
        yield flag


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        return storage.open_uri(str(tmp_path))
    request.getfixturevalue("outage")
    return storage.open_uri(f"s3://bucket/{tmp_path.name}")


def test_written_names_are_read_and_unknown_names_are_none(place: Storage) -> None:
    place.check()
    place.write_json("runs/a/request.json", {"stage": "train"})
    place.write("runs/a/fetched", b"")
    assert place.read_json("runs/a/request.json") == {"stage": "train"}
    assert place.read("runs/a/fetched") == b""
    assert place.read("runs/b/fetched") is None
    assert place.read_json("runs/b/request.json") is None
    assert place.names("runs/a") == ["fetched", "request.json"]
    assert place.names("runs") == ["a"]
    assert place.names("nothing") == []


def test_a_file_survives_the_round_trip_and_is_uploaded_once(place: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(os.urandom(3_000_000))
    assert place.put(source) == sha256(source)
    first = place.filesystem.get_file_info(place.path(f"objects/{sha256(source)}")).mtime
    place.put(source)
    assert place.filesystem.get_file_info(place.path(f"objects/{sha256(source)}")).mtime == first
    place.get(sha256(source), target)
    assert target.read_bytes() == source.read_bytes()


def test_bytes_that_do_not_match_their_digest_are_refused(place: Storage, tmp_path: Path) -> None:
    target = tmp_path / "target"
    place.write(f"objects/{'0' * 64}", b"forged")
    with pytest.raises(CorruptDataError, match="sha256 must be 000000000000, but got"):
        place.get("0" * 64, target)
    with pytest.raises(CorruptDataError, match="the object does not exist"):
        place.get("1" * 64, target)
    assert not target.exists()
    (tmp_path / "source").write_bytes(b"a file")
    digest = place.put(tmp_path / "source")
    place.write(f"objects/{digest}", b"a fool")
    with pytest.raises(CorruptDataError, match="the damaged object was deleted and is stored again"):
        place.get(digest, target)
    place.put(tmp_path / "source")
    place.get(digest, target)
    assert target.read_bytes() == b"a file"


def test_a_folder_can_be_downloaded_and_removed(place: Storage, tmp_path: Path) -> None:
    for name in ("a", "b"):
        place.write(f"ray/run/checkpoint_1/{name}", name.encode())
    place.fetch("ray/run/checkpoint_1", tmp_path / "into")
    assert {path.name: path.read_text() for path in (tmp_path / "into").iterdir()} == {"a": "a", "b": "b"}
    place.remove("ray/run")
    place.remove("ray/never")
    assert place.names("ray") == []


def test_a_pickled_storage_contains_no_credentials(place: Storage) -> None:
    place.write("x/y", b"1")
    content = pickle.dumps(place)
    assert SECRET.encode() not in content
    assert pickle.loads(content).names("x") == ["y"]


def test_an_open_storage_keeps_credentials_that_leave_the_environment(place: Storage) -> None:
    before = dict(os.environ)
    with storage.hidden_credentials():
        assert not {name for name, value in os.environ.items() if value == SECRET}
        place.write("hidden/key", b"content")
        assert place.read("hidden/key") == b"content"
    assert dict(os.environ) == before


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    place = storage.open_uri(str(tmp_path))
    content = (b"x" for _ in [1])
    with pytest.raises(TypeError):
        place.write("runs/a", content)  # type: ignore[arg-type]
    assert place.names("runs") == []


@pytest.mark.slow
def test_an_outage_of_half_a_minute_loses_nothing(outage: Path) -> None:
    place = storage.open_uri("s3://bucket/outage")
    outage.touch()
    threading.Timer(30, outage.unlink).start()
    place.write("a", b"1")
    assert not outage.exists()
    assert place.read("a") == b"1"


def test_a_missing_bucket_or_directory_is_reported(outage: Path, tmp_path: Path) -> None:
    assert not outage.exists()
    for uri, kind in (("s3://no-such-bucket/a", "bucket"), (f"{tmp_path}/none", "directory")):
        with pytest.raises(UnavailableError) as caught:
            storage.open_uri(uri).check()
        assert str(caught.value) == (f"MNIST_PIPE_STORAGE: the {kind} {uri} does not exist; create the {kind}")


@pytest.fixture
def failing(outage: Path) -> Iterator[None]:
    """Make the S3 server fail during the test."""
    outage.touch()
    yield
    outage.unlink()


@pytest.mark.usefixtures("failing")
def test_a_server_that_fails_is_reported() -> None:
    with pytest.raises(
        UnavailableError,
        match=UNREACHABLE,
    ):
        storage.open_uri("s3://bucket/a").check()


@pytest.mark.timing
def test_a_missing_or_failing_storage_is_reported_within_seconds(outage: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    for uri in ("s3://no-such-bucket/a", f"{tmp_path}/none", "s3://bucket/a"):
        if uri == "s3://bucket/a":
            outage.touch()
        with pytest.raises(UnavailableError):
            storage.open_uri(uri).check()
    outage.unlink()
    assert time.monotonic() - started < 20


def test_an_unreachable_server_is_reported(outage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not outage.exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        UnavailableError,
        match=UNREACHABLE,
    ):
        storage.open_uri("s3://bucket/a").check()


@pytest.mark.services
def test_a_silent_server_is_named_after_3_s_and_given_up_within_20(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with dead_server(silent=True) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        where = rf"s3://bucket/a at http://127.0.0.1:{port} \(AWS_ENDPOINT_URL_S3\)"
        with pytest.raises(UnavailableError, match=f"^MNIST_PIPE_STORAGE: {where} does not answer: "):
            storage.open_uri("s3://bucket/a").check()
        assert time.monotonic() - started < LIMIT_SECONDS
    assert re.fullmatch(f"waiting for {where}, the storage of MNIST_PIPE_STORAGE\n", capfd.readouterr().err)


@pytest.mark.parametrize(("profile", "section"), [("", "default"), ("lab", "profile lab")])
def test_the_endpoint_of_awss_own_file_is_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, section: str
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config"
    file.write_text(f"[{section}]\nendpoint_url = http://127.0.0.1:9\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(UnavailableError) as caught:
        storage.open_uri("s3://bucket/a").check()
    place = f"http://127.0.0.1:9 ({file}: endpoint_url of the profile {profile or 'default'!r})"
    assert str(caught.value).startswith(f"MNIST_PIPE_STORAGE: s3://bucket/a at {place} does not answer: ")


def test_a_profile_that_awss_files_do_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with pytest.raises(InputError, match=r"^AWS_PROFILE: the profile must be a profile of .*config or .*credentials"):
        storage.open_uri("s3://bucket/a")


def test_a_directory_that_cannot_be_written_is_reported() -> None:
    with pytest.raises(UnavailableError, match=r"^MNIST_PIPE_STORAGE: /sys does not answer: "):
        storage.open_uri("/sys").check()


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "relative/folder",
            "s3://",
            "s3://Bucket",
            "s3://b/../c",
            "s3://b?x=1",
            "gs://",
            "gs://b?retry=1",
            "gs://b/../c",
        ),
        *("abfss://container/a", "abfss://c@account.example.org/a", "ftp://host/a"),
    ],
)
def test_an_invalid_storage_address_is_refused(uri: str) -> None:
    with pytest.raises(
        InputError, match=r"the address must be s3://bucket/prefix, gs://\S+ or abfss://\S+, without cred"
    ):
        storage.open_uri(uri)


AZURE = "abfss://container@account.dfs.core.windows.net"


@pytest.mark.parametrize(
    ("uri", "kind", "root"),
    [
        ("gs://bucket/runs/a/", "gcs", "bucket/runs/a"),
        ("gs://bucket", "gcs", "bucket"),
        (f"{AZURE}/runs/a/", "abfs", "container/runs/a"),
        (AZURE, "abfs", "container"),
    ],
)
def test_addresses_of_google_and_azure_are_taken_without_a_connection(uri: str, kind: str, root: str) -> None:
    place = storage.open_uri(uri)
    assert (place.filesystem.type_name, place.root, place.uri) == (kind, root, uri.rstrip("/"))
    assert pickle.loads(pickle.dumps(place)) == place


@pytest.mark.services
@pytest.mark.parametrize("uri", ["gs://bucket/a", f"{AZURE}/a"])
def test_google_or_azure_without_a_network_or_credentials_is_reported_in_one_line(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        storage.open_uri(uri).check()
    assert time.monotonic() - started < LIMIT_SECONDS
    message = str(caught.value)
    assert message.startswith(f"MNIST_PIPE_STORAGE: {uri} does not answer: ")
    assert "\n" not in message
    assert len(message) <= 300


@pytest.mark.slow  # the whole limit
def test_a_silent_google_is_given_up_within_20_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_server(silent=True) as port:
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"^MNIST_PIPE_STORAGE: gs://bucket/a does not answer: "):
            storage.open_uri("gs://bucket/a").check()
        assert time.monotonic() - started < LIMIT_SECONDS


def test_credentials_in_the_address_are_refused_and_not_printed() -> None:
    with pytest.raises(InputError) as caught:
        storage.open_uri(f"s3://key:{SECRET}@bucket/a")
    assert SECRET not in str(caught.value)


def test_the_default_storage_is_the_projects_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNIST_PIPE_STORAGE", raising=False)
    assert storage.project_storage(tmp_path).root == str(tmp_path / ".state")
    monkeypatch.setenv("MNIST_PIPE_STORAGE", "s3://bucket/prefix/")
    assert storage.project_storage(tmp_path).root == "bucket/prefix"
