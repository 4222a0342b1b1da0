"""Checks of this machine and this checkout, made before anything is started."""

from __future__ import annotations

import configparser
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from mnist_pipe import hardware, paths
from mnist_pipe.cluster import storage
from mnist_pipe.errors import PipelineError, UnavailableError, public_url
from mnist_pipe.fingerprint import PACKAGE
from mnist_pipe.local import configuration, dvc_files, services
from mnist_pipe.local.services import State, prefect_server, process, prometheus, ray_head

PYTHON = (3, 11)
"""Oldest version of Python, as in pyproject.toml."""
FREE_BYTES = 2_000_000_000
"""Minimum free disk space, in bytes: 0.2 GB for a run, the rest for Ray's sessions, MLflow and a second data set."""
OPEN_FILES = 1024
"""Minimum limit of open files per process; a Ray head alone opens some 300."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LOCK = Path("requirements.lock")
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", re.MULTILINE)


def examine(root: Path) -> Iterator[tuple[str, str | PipelineError]]:
    """Yield, for each of `CHECKS`, its name and what it found or the error that it raised."""
    for name, check in CHECKS.items():
        try:
            yield name, check(root)
        except PipelineError as error:
            yield name, error
        except OSError as error:
            yield name, UnavailableError.invalid(error.filename or name, "the path", "be usable", got=_reason(error))


def check_disk(root: Path, *, needed_bytes: int) -> str:
    """Check the free disk space under `root` and return it as text.

    Raises:
        UnavailableError: less than `needed_bytes` is free.
    """
    free = shutil.disk_usage(root).free
    if free < needed_bytes:
        rule, fix = f"be at least {_megabytes(needed_bytes)}", "free some space or move the project to a larger disk"
        raise UnavailableError.invalid(root, "free space", rule, got=_megabytes(free), fix=fix)
    return f"{_megabytes(free)} free"


def check_path(root: Path) -> str:
    """Check that the libraries can use the path of the project's folder, and return it as text.

    Raises:
        UnavailableError: it has a control character or bytes that are not UTF-8, which a URL and a log cannot hold.
    """
    if found := _UNPRINTABLE.search(str(root)):
        rule, fix = "hold only characters that can be printed", "rename or move the folder"
        raise UnavailableError.invalid(root, "the folder's path", rule, got=ascii(found[0]), fix=fix)
    return str(root)


def check_temporary_folder() -> str:
    """Check that the folder for temporary files is usable, and return it as text; a long path does no harm.

    Raises:
        UnavailableError: TMPDIR names no folder, the folder is not writable, or RAY_TMPDIR is too long for Ray.
    """
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    if not folder.is_dir():
        raise UnavailableError.missing(f"the folder {folder}", where="TMPDIR", fix="create it or unset the variable")
    own = os.environ.get("RAY_TMPDIR", "")
    if len(os.fsencode(own)) > ray_head.MAX_FOLDER_BYTES:
        rule = f"have at most {ray_head.MAX_FOLDER_BYTES} bytes, as Ray's sockets lie below it"
        raise UnavailableError.invalid("RAY_TMPDIR", "the path", rule, got=len(os.fsencode(own)), fix="unset it")
    return check_writable(folder)


def check_writable(folder: Path) -> str:
    """Check by writing a temporary file that `folder` is writable, and return a text that says so.

    Raises:
        UnavailableError: the folder belongs to another user, or the disk is read-only or full.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        fix = "free some space or use another folder"
        raise UnavailableError.invalid(folder, "the folder", "be writable", got=_reason(error), fix=fix) from error
    return f"{folder} is writable"


def check_cache(root: Path) -> str:
    """Check that DVC can keep a stage's outputs in its cache, and return a text that says so.

    DVC copies them there after the stage, whose work would be lost.

    Raises:
        UnavailableError: `cache.dir` of one of DVC's files names a folder that cannot be used.
    """
    folder, place = dvc_files.cache(root)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        check_writable(existing)
    except UnavailableError as error:
        if place:
            raise UnavailableError(f"{place}: {error}, or remove that setting") from error
        raise
    return f"{folder} is writable" + (f", as set in {place}" if place else "")


def _python(root: Path) -> str:
    if sys.version_info[:2] < PYTHON:
        rule, fix = f"be {'.'.join(map(str, PYTHON))} or newer", "remove .venv and run: make run"
        raise UnavailableError.invalid(sys.executable, "Python", rule, got=platform.python_version(), fix=fix)
    if foreign := _foreign_packages(os.environ.get("PYTHONPATH", "")):
        rule = "not hide this environment's packages"
        raise UnavailableError.invalid("PYTHONPATH", "the path", rule, got=foreign, fix="unset the variable")
    if (root / PACKAGE.name).is_dir() and PACKAGE.parent != root:
        rule, fix = f"be that of {root}", f"unset PYTHONPATH and run: {root}/.venv/bin/mnist-pipe doctor"
        raise UnavailableError.invalid(PACKAGE.parent, "the code", rule, got="another checkout's", fix=fix)
    return f"Python {platform.python_version()}"


def _foreign_packages(path: str) -> str:
    """Return what of a search path comes before the packages of this environment and hides some, or nothing."""
    ours = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in metadata.requires("mnist-pipe") or ()}
    for folder in filter(None, path.split(os.pathsep)):
        found = [one.name for one in metadata.distributions(path=[folder]) if one.name.lower() in ours]
        modules = [name for name in sorted(ours) if (Path(folder) / name / "__init__.py").is_file()]
        if found or modules:
            return f"{folder}, which has {', '.join(sorted({*found, *modules})[:3])}"
    return ""


def _packages(root: Path) -> str:
    """Check that every direct dependency is installed and that no installed package differs from the lock file."""
    pinned = dict(_PINNED.findall(_text(root / _LOCK)))
    direct = {
        re.split(r"[^A-Za-z0-9._-]", line)[0] for line in metadata.requires("mnist-pipe") or () if ";" not in line
    }
    wrong = []
    for name in sorted(direct | pinned.keys()):
        try:
            # The local version is ignored: torch 2.13.0 may be installed as 2.13.0+cpu.
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            if name in direct:
                wrong.append(f"{name} missing")
            continue
        if found != pinned.get(name, found):
            wrong.append(f"{name} {found} instead of {pinned[name]}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        got = ", ".join(wrong[:5]) + more
        fix = f"run: {sys.executable} -m pip install -c {_LOCK} -e ."
        raise UnavailableError.invalid(_LOCK, "the packages", "have the pinned versions", got=got, fix=fix)
    return f"{len(pinned)} packages pinned, none differs" if pinned else f"no {_LOCK} to compare with"


def _gpu(_: Path) -> str:
    return hardware.check_gpus()


def _params(root: Path) -> str:
    from mnist_pipe import preflight

    params = preflight.load_params(root / paths.PARAMS)
    preflight.check_params(params)
    preflight.check_own(params, root=root)
    return f"{paths.PARAMS} is valid"


def _writable(root: Path) -> str:
    check_path(root)
    for folder in (root, root / paths.STATE):
        if folder.exists():
            check_writable(folder)
    return f"{root} is writable"


def _temporary(_: Path) -> str:
    return check_temporary_folder()


def _disk(root: Path) -> str:
    return check_disk(root, needed_bytes=FREE_BYTES)


def _shared_memory(_: Path) -> str:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "none; Ray keeps its objects in /tmp"
    total = shutil.disk_usage(folder).total
    if total < ray_head.OBJECT_STORE_BYTES:
        return f"{_megabytes(total)}: Ray keeps its objects in /tmp, which is slower; in Docker pass --shm-size=2g"
    return _megabytes(total)


def _versioning(root: Path) -> str:
    folder = root / ".dvc"
    if not folder.is_dir():
        fix = "run: dvc init" if _in_git(root) else "run: dvc init --no-scm"
        raise UnavailableError.missing("the DVC repository", where=folder, fix=fix)
    config = configparser.ConfigParser()
    config.read([folder / "config", folder / "config.local"])
    if config.getboolean("core", "no_scm", fallback=False):
        return "DVC without Git; the lineage records this"
    fix = "run: dvc config --local core.no_scm true"
    if not _in_git(root):
        raise UnavailableError.missing("the project", state="is in no Git repository", where=root, fix=fix)
    if shutil.which("git") is None:
        raise UnavailableError.missing("git", state="is not installed", fix=f"install it, or {fix}")
    return "DVC with Git"


def _in_git(root: Path) -> bool:
    return any((parent / ".git").exists() for parent in (root, *root.parents))


def _ports(root: Path) -> str:
    """Report which preferred ports are taken; this is no error, because `up` uses the next free ones."""
    ours = {port for _, service in services.status(root).values() if service for port in service.ports}
    wanted = (prefect_server.PORT, ray_head.PORT, ray_head.DASHBOARD_PORT)
    taken = [port for port in wanted if port not in ours and not process.is_free(port)]
    if taken:
        return f"{', '.join(map(str, taken))} in use by another program; `mnist-pipe up` uses the next free ones"
    return f"{', '.join(map(str, wanted))} free or used by this project"


def _services(root: Path) -> str:
    found = services.status(root)
    for name, (state, service) in found.items():
        if service and state is not State.RUNNING:
            fix = f"run: {services.start_command(name, state)}"
            raise UnavailableError.unreachable(name, where=service.log, cause=f"it {state}", fix=fix)
    return ", ".join(f"{name} {state}" for name, (state, _) in found.items())


def _metrics(_: Path) -> str:
    found = prometheus.program()
    if found is None:
        return f"Ray's metrics are not recorded: Prometheus is not installed; on Debian: {prometheus.INSTALL}"
    return f"{found} records Ray's metrics once `mnist-pipe dashboards` has started it"


def _storage(root: Path) -> str:
    if not os.environ.get(storage.VARIABLE):
        return f"{storage.VARIABLE} is not set: everything stays in {paths.STATE}"
    storage.project_storage(root).check()
    return f"{storage.project_storage(root).uri} answers"


def _registry(root: Path) -> str:
    from mnist_pipe.registry import store

    store.check(root)
    return f"{store.public_uri(root)} can be written"


def _settings(root: Path) -> str:
    """Check the servers that the settings of Prefect and Ray name, in whatever place."""
    services.environment(root)
    named = (
        configuration.prefect_setting(root, configuration.PREFECT_URL, "api", "url"),
        configuration.ray_address(),
    )
    found = [f"{public_url(setting.value)} ({setting.place})" for setting in named if setting]
    return ", ".join(found) + (" answers" if len(found) == 1 else " answer") if found else "no server from elsewhere"


def _open_files(_: Path) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        rule = f"be at least {OPEN_FILES}"
        raise UnavailableError.invalid("this shell", "open files", rule, got=limit, fix="run: ulimit -n 4096")
    return "no limit" if limit == resource.RLIM_INFINITY else f"{limit} allowed"


CHECKS: dict[str, Callable[[Path], str]] = {
    "python": _python,
    "packages": _packages,
    "gpu": _gpu,
    "params": _params,
    "folder": _writable,
    "temporary": _temporary,
    "disk": _disk,
    "shared memory": _shared_memory,
    "versioning": _versioning,
    "dvc's lock": dvc_files.check,
    "dvc's cache": check_cache,
    "dvc's objects": dvc_files.check_objects,
    "ports": _ports,
    "services": _services,
    "metrics": _metrics,
    "settings": _settings,
    "storage": _storage,
    "registry": _registry,
    "open files": _open_files,
}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _reason(error: OSError) -> str:
    return str(error.strerror or error).lower()
