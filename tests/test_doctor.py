"""Test what `mnist-pipe doctor` finds, and the checks that a stage makes before it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest

from mnist_pipe import atomic, paths
from mnist_pipe.cluster import storage
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, UnavailableError
from mnist_pipe.local import doctor, services
from mnist_pipe.local.services import prefect_server
from tests.support import ROOT
from tests.support.services import dead_server

MiniMount = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Project without any problem."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / "inputs").mkdir()
    return tmp_path


@pytest.fixture
def mounted(tmp_path: Path) -> MiniMount:
    """Function that runs Python code in a folder on a private file system of 1 MiB."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def run(code: str, *, prepare: str) -> subprocess.CompletedProcess[str]:
        mount = f"mount -t tmpfs -o size=1m none {folder} && cd {folder} && {prepare}"
        probe = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"this user may not mount: {probe.stderr.strip()}")
        script = f'{mount}; exec "$0" -c "$1"'
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", script, sys.executable, code],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


FULL = "touch params.yaml dvc.yaml && ! dd if=/dev/zero of=filler bs=64k 2>/dev/null"
READ_ONLY = "touch params.yaml dvc.yaml && mount -o remount,ro ."


def error(name: str, root: Path) -> PipelineError:
    found = dict(doctor.examine(root))[name]
    assert isinstance(found, PipelineError), found
    return found


def test_a_healthy_project_passes_every_check(project: Path) -> None:
    errors = {name: str(found) for name, found in doctor.examine(project) if isinstance(found, PipelineError)}
    assert errors == {}


def test_this_checkout_has_the_locked_packages() -> None:
    assert dict(doctor.examine(ROOT))["packages"] == error_free_packages()


def error_free_packages() -> str:
    pinned = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line and line[0] != "#"]
    return f"{len(pinned)} packages pinned, none differs"


def test_another_version_than_the_locked_one_is_reported(project: Path) -> None:
    (project / "requirements.lock").write_text("# numpy==0 is a comment\nnumpy==1.0\nabsent-and-optional==3\n")
    assert str(error("packages", project)) == (
        f"requirements.lock: the packages must have the pinned versions, but got numpy {metadata.version('numpy')} "
        f"instead of 1.0; run: {sys.executable} -m pip install -c requirements.lock -e ."
    )


def test_a_build_of_the_locked_version_is_that_version(project: Path) -> None:
    public = metadata.version("torch").partition("+")[0]
    (project / "requirements.lock").write_text(f"torch=={public}\n")
    assert dict(doctor.examine(project))["packages"] == "1 packages pinned, none differs"


def test_params_are_checked_with_the_names_that_exist(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("dataset: mnist #", "dataset: mnits #"))
    found = error("params", project)
    assert isinstance(found, InputError)
    assert "ingest.dataset must be one of" in str(found)
    assert str(found).endswith("but got 'mnits'; did you mean 'mnist'?")


def test_doctor_says_how_to_get_prometheus(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    programs = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(programs))
    assert dict(doctor.examine(project))["metrics"] == (
        "Ray's metrics are not recorded: Prometheus is not installed; on Debian: "
        "apt-get install --no-install-recommends prometheus"
    )
    (programs / "prometheus").touch(mode=0o755)
    found = f"{programs}/prometheus records Ray's metrics once `mnist-pipe dashboards` has started it"
    assert dict(doctor.examine(project))["metrics"] == found


def test_more_workers_than_cpus_are_refused(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    assert "num_workers: auto" in text
    (project / "params.yaml").write_text(text.replace("num_workers: auto", "num_workers: 999"))
    assert "train.num_workers must be at most" in str(error("params", project))


def test_too_little_disk_space_is_reported_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        doctor.check_disk(tmp_path, needed_bytes=10**18)
    free = f"{shutil.disk_usage(tmp_path).free / 1e6:,.0f} MB"
    assert str(caught.value).split(",000 MB")[0] == f"{tmp_path}: free space must be at least 1,000,000,000"
    assert str(caught.value).endswith("; free some space or move the project to a larger disk")
    assert free[:-6] in str(caught.value)
    assert doctor.check_disk(tmp_path, needed_bytes=1).endswith(" MB free")


CHECK = "from pathlib import Path; from mnist_pipe.local import doctor; doctor.check_writable(Path.cwd())"


@pytest.mark.parametrize(
    ("prepare", "reason"), [(READ_ONLY, "read-only file system"), (FULL, "no space left on device")]
)
def test_a_folder_that_is_not_writable_is_reported(
    mounted: MiniMount, tmp_path: Path, prepare: str, reason: str
) -> None:
    done = mounted(CHECK, prepare=prepare)
    assert done.stderr.splitlines()[-1] == (
        f"mnist_pipe.errors.UnavailableError: {tmp_path / 'mounted'}: the folder must be writable, but got {reason}; "
        "free some space or use another folder"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_another_users_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(UnavailableError, match="permission denied"):
        doctor.check_writable(tmp_path / "theirs")


def test_a_check_leaves_no_file(tmp_path: Path) -> None:
    doctor.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["up", "down"])
@pytest.mark.parametrize(
    ("prepare", "reason"), [(READ_ONLY, "read-only file system"), (FULL, "no space left on device")]
)
def test_services_in_an_unwritable_folder_are_one_line(
    mounted: MiniMount, command: str, prepare: str, reason: str
) -> None:
    if command == "down" and prepare == FULL:
        pytest.skip("nothing is written where nothing was started")
    done = mounted(f"import sys; from pipelines.cli import main; sys.exit(main([{command!r}]))", prepare=prepare)
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.endswith(f": the path must be readable and writable, but got {reason}")


def test_a_project_without_git_and_no_scm_is_an_error_with_its_remedy(project: Path) -> None:
    (project / ".git").rmdir()
    if any((parent / ".git").exists() for parent in project.parents):
        pytest.skip("the temporary folder lies in a Git repository")
    assert str(error("versioning", project)) == (
        f"{project}: the project is in no Git repository; run: dvc config --local core.no_scm true"
    )
    (project / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    assert dict(doctor.examine(project))["versioning"] == "DVC without Git; the lineage records this"


def test_missing_git_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    fix = "install it, or run: dvc config --local core.no_scm true"
    assert str(error("versioning", project)) == f"git is not installed; {fix}"


def test_a_missing_dvc_repository_is_an_error(project: Path) -> None:
    shutil.rmtree(project / ".dvc")
    assert str(error("versioning", project)) == (
        f"{project / '.dvc'}: the DVC repository does not exist; run: dvc init"
    )


@pytest.mark.parametrize("place", ["system", "global", "config", "config.local"])
def test_a_cache_that_cannot_be_written_is_named_with_the_file_that_sets_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for name in ("SYSTEM", "GLOBAL"):
        (project / name.lower()).mkdir()
        monkeypatch.setenv(f"DVC_{name}_CONFIG_DIR", str(project / name.lower()))
    assert doctor.check_cache(project) == f"{project}/.dvc/cache is writable"
    file = project / place / "config" if place in ("system", "global") else project / ".dvc" / place
    file.write_text("[cache]\n    dir = /proc/cache\n")
    with pytest.raises(UnavailableError, match=f"^{file}: cache.dir: /proc: the folder must be writable, but got "):
        doctor.check_cache(project)
    file.write_text(f"[cache]\n    dir = {project}/large\n")
    assert doctor.check_cache(project) == f"{project}/large is writable, as set in {file}: cache.dir"
    file.write_text("[cache\n")
    with pytest.raises(InputError, match=f"^{file}: the file must be an INI file, but got "):
        doctor.check_cache(project)


def test_a_missing_folder_of_own_images_is_an_error(project: Path) -> None:
    (project / "inputs").rmdir()
    rule = "be an existing file or folder, because DVC watches it"
    assert str(error("params", project)) == f"params.yaml: ingest.path must {rule}, but got 'inputs'; create it"


def test_a_server_that_a_file_names_is_checked(project: Path) -> None:
    assert dict(doctor.examine(project))["settings"] == "no server from elsewhere"
    with dead_server(silent=False) as port:
        (project / "prefect.toml").write_text(f'[api]\nurl = "http://127.0.0.1:{port}/api"\n')
        message = str(error("settings", project))
    assert message.startswith(f"{project}/prefect.toml: api.url: http://127.0.0.1:{port}/api does not answer: ")


def test_packages_that_pythonpath_puts_before_ours_are_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "site" / "torch").mkdir(parents=True)
    (project / "site" / "torch" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{project}:{project}/site")
    got = f"{project}/site, which has torch; unset the variable"
    assert (
        str(error("python", project))
        == f"PYTHONPATH: the path must not hide this environment's packages, but got {got}"
    )


def test_the_code_of_another_checkout_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (project / "mnist_pipe").mkdir()
    message = str(error("python", project))
    assert message.startswith(
        f"{ROOT}: the code must be that of {project}, but got another checkout's; unset PYTHONPATH"
    )


def test_a_registry_that_cannot_be_used_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert dict(doctor.examine(project))["registry"] == "sqlite:///.state/mlflow.db can be written"
    (project / paths.STATE).mkdir(exist_ok=True)
    (project / paths.MLFLOW_DB).write_text("not a database" * 100)
    assert isinstance(error("registry", project), CorruptDataError)


def test_a_taken_port_is_reported_without_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_server(silent=True) as port:
        monkeypatch.setattr(prefect_server, "PORT", port)
        found = dict(doctor.examine(project))["ports"]
    assert isinstance(found, str)
    assert str(port) in found
    assert found.endswith("in use by another program; `mnist-pipe up` uses the next free ones")


def test_a_service_that_died_is_an_error_with_its_log(project: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    service = services.Service(
        name="prefect", pid=ended.pid, created=0.0, port=1, address="", url="http://127.0.0.1:1", secret="",
        log="prefect.log", folder="",
    )  # fmt: skip
    atomic.write_json(project / paths.SERVICES, {"prefect": asdict(service)})
    log = project / paths.STATE / "logs" / "prefect.log"
    assert str(error("services", project)) == f"{log}: prefect does not answer: it died; run: mnist-pipe up"


def test_too_few_open_files_are_an_error(project: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from pathlib import Path; from mnist_pipe.local import doctor\n"
        f"print(dict(doctor.examine(Path({str(project)!r})))['open files'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "this shell: open files must be at least 1024, but got 256; run: ulimit -n 4096\n"


def test_a_missing_storage_is_reported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.VARIABLE, str(project / "none"))
    found = dict(doctor.examine(project))["storage"]
    assert str(found) == (f"MNIST_PIPE_STORAGE: the directory {project}/none does not exist; create the directory")
