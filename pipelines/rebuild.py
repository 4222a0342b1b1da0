"""Run the whole `dvc repro` on a fresh checkout, on a schedule or on demand, and push its `dvc.lock` to a branch."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from prefect import flow, get_run_logger, task

from mnist_pipe import atomic, paths
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.handoff import WORK_POOL
from mnist_pipe.errors import PipelineError, without_credentials
from mnist_pipe.fingerprint import PACKAGE

_AUTHOR = ("-c", "user.name=mnist-pipe", "-c", "user.email=rebuild@mnist-pipe.invalid")


@task
def check_out(repository: str, revision: str, folder: Path) -> None:
    """Clone `repository` at `revision` into `folder`, and add a DVC remote in the storage if it has none."""
    _run("git", "clone", "--quiet", repository, str(folder), cwd=Path.cwd())
    _run("git", "checkout", "--quiet", "--detach", revision, cwd=folder)
    if "['remote " not in (folder / ".dvc" / "config").read_text() and os.environ.get(storage.VARIABLE):
        _run("dvc", "remote", "add", "--local", "-d", "storage", f"{os.environ[storage.VARIABLE]}/dvc", cwd=folder)
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            _run("dvc", "remote", "modify", "--local", "storage", "endpointurl", endpoint, cwd=folder)


@task
def pull(folder: Path) -> None:
    """Fetch the outputs that earlier rebuilds pushed, as far as they exist."""
    _run("dvc", "pull", "--quiet", "--run-cache", "--allow-missing", cwd=folder, must=False)


@task
def reproduce(folder: Path) -> None:
    """Run every stage that is out of date on this machine, as a driver of the Ray cluster."""
    _run("dvc", "repro", cwd=folder)


@task
def push(folder: Path) -> None:
    """Push the outputs to the DVC remote, for the next rebuild and for other users' `dvc pull`."""
    _run("dvc", "push", "--quiet", "--run-cache", cwd=folder)


@task
def publish(folder: Path) -> str | None:
    """Commit and push `dvc.lock` and the reports in Git, and return the branch, or None if nothing has changed.

    The branch is named after the digest of `dvc.lock`.
    """
    _run("git", "add", "dvc.lock", str(paths.REPORTS), cwd=folder)
    if subprocess.run(["git", "diff", "--cached", "--quiet"], cwd=folder, check=False).returncode == 0:
        return None
    branch = f"rebuild/{atomic.sha256(folder / 'dvc.lock')[:12]}"
    _run("git", *_AUTHOR, "commit", "--quiet", "-m", "[rebuild] Record what dvc repro made", cwd=folder)
    _run("git", "push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}", cwd=folder)
    return branch


@flow(name="rebuild")
def rebuild(repository: str | None = None, revision: str = "HEAD") -> None:
    """Rebuild `revision` of `repository`; the default repository is the worker's own checkout."""
    with tempfile.TemporaryDirectory(prefix="mnist-pipe-") as parent:
        folder = Path(parent) / "main"
        check_out(repository or str(PACKAGE.parent), revision, folder)
        pull(folder)
        reproduce(folder)
        push(folder)
        branch = publish(folder)
    get_run_logger().info("pushed branch %s" if branch else "nothing has changed%s", branch or "")


def _run(*command: str, cwd: Path, must: bool = True) -> None:
    """Run a command and write its output to the task's log.

    Raises:
        PipelineError: the command failed although it `must` succeed.
    """
    log, last = get_run_logger(), ""
    inherited = {name: value for name, value in os.environ.items() if name != WORK_POOL}
    process = subprocess.Popen(
        command, cwd=cwd, env=inherited, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last = without_credentials(line.rstrip()) or last
            log.info("%s", without_credentials(line.rstrip()))
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code and must:
        raise PipelineError.missing(
            " ".join(command[:2]), state=f"failed with exit code {code}: {last}", where="rebuild"
        )
