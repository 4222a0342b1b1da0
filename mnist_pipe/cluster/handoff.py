"""Exchange a stage's inputs and outputs with a remote worker through the shared storage.

    runs/<name>/request.json           from the client: the stage, its inputs and outputs, the version of the code
    runs/<name>/<attempt>/outputs.json from the worker, written last: the outputs
    runs/<name>/<attempt>/error.json   or why it failed
    runs/<name>/<attempt>/fetched      from the client: it has the outputs, so that the same request runs again

Contents travel as `objects/<sha256>`: an input that is there already is not sent again, and bytes that do not have the
named digest are refused.
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

REQUEST = "MNIST_PIPE_REQUEST"
"""The variable that tells a run on a worker which request is its own: `<storage>/runs/<name>/<attempt>`."""
WORK_POOL = "MNIST_PIPE_WORK_POOL"
"""The variable that names the pool whose worker runs the stages; without it they run here."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One stage with everything that decides its outcome."""

    stage: str
    inputs: dict[str, str]
    """SHA-256 of each file by its path, `params.yaml` included."""
    outputs: list[str]
    """Paths of the files and folders that it must make."""
    code: str
    """`fingerprint.source_version` of the client."""
    revision: str
    """The client's commit, or why there is none."""
    dirty: bool | None
    """Whether the client's tree differs from it."""


def run_name(stage: str, root: Path, *, params: Any) -> str:
    """`fingerprint.run_name` of a stage: of the JSON-like `params` that it takes and of the bytes of its inputs."""
    inputs = [root / path for path in _files(root, dvc_stages.read(root)[stage].inputs)]
    return fingerprint.run_name(stage, params=params, inputs=inputs)


def upload_request(stage: str, root: Path, *, name: str, storage: Storage) -> Request:
    """Bring the stage's inputs to the storage, as far as they are not there, and write the request of the run `name`.

    Raises:
        CorruptDataError: an input is missing.
        UnavailableError: the storage does not answer.
    """
    data = dvc_stages.read(root)[stage]
    # The report shows how long each stage took, which only the client knows.
    timings = [paths.TIMINGS] if stage == "report" and (root / paths.TIMINGS).exists() else []
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
    """Where a stage's flow works: the project's folder or, on a worker, a fresh one made from its request.

    Raises:
        CorruptDataError, UnavailableError: as `worker_workspace`.
    """
    with worker_workspace(os.environ[REQUEST]) if os.environ.get(REQUEST) else nullcontext():
        yield


@contextmanager
def worker_workspace(run: str) -> Iterator[None]:
    """On the worker: work in a fresh folder that holds the inputs, and store what was made in it.

    `run` is `<storage>/runs/<name>/<attempt>`. An error is stored too, as the line that the client shows.

    Raises:
        CorruptDataError: there is no such request, or an output was not made.
        UnavailableError: this machine has other code than the client, or no MLflow server to register with.
    """
    uri, _, key = run.partition("/runs/")
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
        raise CorruptDataError.missing("the request", where=f"{storage.uri}/{key}")
    request = Request(**content)
    if request.code != (found := fingerprint.source_version()):
        fix = "bring the worker's checkout to the client's commit, then restart deploy/worker"
        where = "the worker's mnist_pipe and pipelines"
        raise UnavailableError.invalid(
            where, "the code", f"be the client's, {request.code[:12]}", got=found[:12], fix=fix
        )
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        fix = "start deploy/mlflow-server and name it in the worker's settings"
        raise UnavailableError.missing("MLFLOW_TRACKING_URI", state="is not set on the worker", fix=fix)
    for path, content_sha256 in request.inputs.items():
        storage.get(content_sha256, folder / path)
    write_json(folder / paths.REVISION, {"revision": request.revision, "dirty": request.dirty})
    return request


def read_failure(storage: Storage, key: str) -> tuple[str, int] | None:
    """Why the run could not be completed, and the exit code; None where the worker could not say."""
    content = storage.read_json(f"{key}/error.json")
    return None if content is None else (content["line"], content["exit_code"])


def has_outputs(storage: Storage, key: str) -> bool:
    """Whether this attempt made outputs that no client has taken."""
    return storage.read(f"{key}/outputs.json") is not None and storage.read(f"{key}/fetched") is None


def download_outputs(request: Request, root: Path, *, storage: Storage, key: str) -> None:
    """On the client: put every output of the attempt in its place, each whole or not at all.

    Raises:
        CorruptDataError: an output is missing, is not one that was asked for, or has other bytes.
        UnavailableError: the storage does not answer.
    """
    made: Mapping[str, str] = storage.read_json(f"{key}/outputs.json") or {}
    for path in made:
        if ".." in Path(path).parts or not any(Path(path).is_relative_to(output) for output in request.outputs):
            raise CorruptDataError.invalid(f"{storage.uri}/{key}", "an output", "be asked for", got=repr(path))
    state = root / paths.STATE
    state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state) as folder:
        for path, content_sha256 in made.items():
            storage.get(content_sha256, Path(folder) / path)
        for output in request.outputs:
            source, target = Path(folder) / output, root / output
            if not source.exists():
                raise CorruptDataError.missing(output, state="was not made", where=f"{storage.uri}/{key}")
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    storage.write(f"{key}/fetched", b"")


def _files(root: Path, locations: Iterable[Path]) -> list[Path]:
    """Every file of the files and folders `locations`, relative to `root`."""
    found = []
    for path in locations:
        if not (root / path).exists():
            raise CorruptDataError.missing(path, fix="run: dvc repro")
        below = sorted((root / path).rglob("*")) if (root / path).is_dir() else [root / path]
        found += [file.relative_to(root) for file in below if file.is_file()]
    return found
