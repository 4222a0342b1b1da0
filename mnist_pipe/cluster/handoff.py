"""Exchange a stage's inputs and outputs with a remote worker through the shared storage.

    runs/<name>/request.json           from the client: the stage, its inputs and outputs, the version of the code
    runs/<name>/<attempt>/outputs.json from the worker, written last: the outputs
    runs/<name>/<attempt>/error.json   from the worker, instead: why it failed
    runs/<name>/<attempt>/fetched      from the client: it has the outputs, so that the same request runs again

Contents are exchanged as `objects/<sha256>`: an input that is stored already is not uploaded again, and bytes with
another digest raise CorruptDataError.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_pipe import fingerprint, lineage, paths
from mnist_pipe.atomic import write_json
from mnist_pipe.cluster import dvc_stages
from mnist_pipe.cluster.storage import VARIABLE, Storage, open_uri
from mnist_pipe.errors import CorruptDataError, UnavailableError, message_and_code
from mnist_pipe.experiment import is_clone

REQUEST = "MNIST_PIPE_REQUEST"
"""The environment variable with the request of a run on a worker: `<storage>/runs/<name>/<attempt>`."""
WORK_POOL = "MNIST_PIPE_WORK_POOL"
"""The environment variable that names the work pool whose worker runs the stages; if unset, they run locally."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to run one stage, with everything that decides its outcome."""

    stage: str
    inputs: dict[str, str]
    """The SHA-256 of each input file by its path, including `params.yaml`."""
    outputs: list[str]
    """The paths of the files and folders that the stage must write."""
    code: str
    """The client's `fingerprint.source_version`."""
    revision: str
    """The client's commit, or the reason why there is none."""
    dirty: bool | None
    """Whether the client's tree differs from the commit; None without a commit."""


def run_name(stage: str, root: Path, *, params: Any) -> str:
    """Return the `fingerprint.run_name` of a stage, from its JSON-like `params` and the bytes of its inputs."""
    inputs = [root / path for path in _files(root, dvc_stages.read(root)[stage].inputs)]
    return fingerprint.run_name(stage, params=params, inputs=inputs)


def upload_request(stage: str, root: Path, *, name: str, storage: Storage) -> Request:
    """Upload the stage's inputs that the storage does not have yet, and write the request of the run `name`.

    Raises:
        CorruptDataError: an input is missing.
        UnavailableError: the storage does not answer.
    """
    data = dvc_stages.read(root)[stage]
    # The report shows the duration of each stage, which only the client knows.
    knows = not is_clone(root) and (root / paths.TIMINGS).exists()  # an experiment has its own
    timings = [paths.TIMINGS] if stage in ("register", "report") and knows else []
    files = [*_files(root, data.inputs), paths.PARAMS, paths.DVC_FILES[0], *timings]
    revision, dirty = lineage.source_revision(root)
    request = Request(
        stage=stage,
        inputs={str(path): storage.put(root / path) for path in files},
        outputs=[str(path) for path in data.outputs],
        code=fingerprint.source_version(),
        revision=revision,
        dirty=dirty,
    )
    storage.write_json(f"runs/{name}/request.json", asdict(request))
    return request


@contextmanager
def workspace() -> Iterator[None]:
    """Run the block of a stage's flow in the current folder or, on a worker, in a new one made from the request.

    Raises:
        CorruptDataError, UnavailableError: raised by `worker_workspace`.
    """
    with worker_workspace(os.environ[REQUEST]) if os.environ.get(REQUEST) else nullcontext():
        yield


@contextmanager
def worker_workspace(run: str) -> Iterator[None]:
    """On the worker, run the block in a new folder that holds the inputs, and upload the outputs.

    `run` is `<storage>/runs/<name>/<attempt>`. If anything fails, upload the one-line error that the client prints.

    Raises:
        CorruptDataError: there is no such request, it names a path outside its folder, or an output was not written.
        UnavailableError: the worker has other code than the client, or no MLflow server to register with.
    """
    uri, _, key = run.rpartition("/runs/")
    storage, key = open_uri(uri), f"runs/{key}"
    with tempfile.TemporaryDirectory(prefix="mnist-pipe-") as folder:
        try:
            request = _receive(storage, key, Path(folder))
            with chdir(folder), _environment(VARIABLE, uri):
                yield
                outputs = {str(path): storage.put(path) for path in _files(Path(), map(Path, request.outputs))}
            storage.write_json(f"{key}/outputs.json", outputs)
        except Exception as error:
            text, exit_code = message_and_code(error)
            storage.write_json(f"{key}/error.json", {"line": text, "exit_code": exit_code})
            raise


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def _receive(storage: Storage, key: str, folder: Path) -> Request:
    content = storage.read_json(f"{key.rpartition('/')[0]}/request.json")
    if content is None:
        raise CorruptDataError.missing("the request", where=f"{storage.uri}/{key}", fix="start the stage from a client")
    request = Request(**content)
    # Whoever can write to the storage must not choose where the worker writes, nor which of its files it uploads.
    for path in (*request.inputs, *request.outputs):
        if Path(path).is_absolute() or ".." in Path(path).parts or not Path(path).parts:
            rule, where = "be below the stage's folder", f"{storage.uri}/{key}"
            raise CorruptDataError.invalid(where, "a path of the request", rule, got=repr(path))
    if request.code != (found := fingerprint.source_version()):
        fix = "check out the client's commit on the worker, then restart deploy/worker"
        rule = f"be version {request.code[:12]}, as on the client"
        raise UnavailableError.invalid("the worker", "the code", rule, got=found[:12], fix=fix)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        fix = "start deploy/mlflow-server and set the variable in the worker's settings file"
        raise UnavailableError.missing("MLFLOW_TRACKING_URI", state="is not set on the worker", fix=fix)
    for path, content_sha256 in request.inputs.items():
        storage.get(content_sha256, folder / path)
    write_json(folder / paths.REVISION, {"revision": request.revision, "dirty": request.dirty})
    return request


def read_failure(storage: Storage, key: str) -> tuple[str, int] | None:
    """Return the error of a failed run as one line, and its exit code; None if the worker could not write it."""
    content = storage.read_json(f"{key}/error.json")
    return None if content is None else (content["line"], content["exit_code"])


def has_outputs(storage: Storage, key: str) -> bool:
    """Return whether the attempt has outputs that no client has downloaded yet."""
    return storage.read(f"{key}/outputs.json") is not None and storage.read(f"{key}/fetched") is None


def download_outputs(request: Request, root: Path, *, storage: Storage, key: str) -> None:
    """On the client, download every output of the attempt to its path under `root`, each whole or not at all.

    Raises:
        CorruptDataError: an output is missing, was not requested, or has other bytes.
        UnavailableError: the storage does not answer.
    """
    uploaded: Mapping[str, str] = storage.read_json(f"{key}/outputs.json") or {}
    for path in uploaded:
        if ".." in Path(path).parts or not any(Path(path).is_relative_to(output) for output in request.outputs):
            raise CorruptDataError.invalid(f"{storage.uri}/{key}", "an output", "be requested", got=repr(path))
    state = root / paths.STATE
    state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state) as folder:
        for path, content_sha256 in uploaded.items():
            storage.get(content_sha256, Path(folder) / path)
        for output in request.outputs:
            source, target = Path(folder) / output, root / output
            if not source.exists():
                raise CorruptDataError.missing(output, state="was not written", where=f"{storage.uri}/{key}")
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    storage.write(f"{key}/fetched", b"")


def _files(root: Path, locations: Iterable[Path]) -> list[Path]:
    """Return the paths of the files at or below each of `locations`, relative to `root`."""
    found = []
    for path in locations:
        if not (root / path).exists():
            raise CorruptDataError.missing(path, fix="run: dvc repro")
        below = sorted((root / path).rglob("*")) if (root / path).is_dir() else [root / path]
        found += [file.relative_to(root) for file in below if file.is_file()]
    return found
