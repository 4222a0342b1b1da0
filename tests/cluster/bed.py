"""Test bed of a cluster: a client, a head, two Ray nodes and a storage host, each a network namespace.

All are joined by a bridge in its own namespace, so that this machine has no interface, route or listener of the bed.
Everything but PostgreSQL and S3 is started through `deploy/`. Every secret is a random word that a test can search for.

    with Bed.start() as bed:
        bed.run("client", ["dvc", "repro"], cwd=checkout)       # with bed.client_env; returns a CompletedProcess
        bed.link("node1", up=False)                             # disconnect node1 from the network
        bed.crash("node1")                                      # SIGKILL every process of node1
        bed.kill("worker"); bed.deploy("worker")                # restart the worker
        with bed.inside("client"): httpx.get(...)               # sockets made here belong to the client
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mnist_pipe import telemetry

ROOT = Path(__file__).parents[2]
HOSTS = ("client", "head", "node1", "node2", "storage")
NETWORK = "10.77.0"
INTERFACE = "mp0"
POOL = "cpu"
BUCKET = "mnist-pipe"
S3_PORT = 9000
SERVICES = {  # services that deploy/ starts, and their hosts
    "head": ("head", "head"),
    "node1": ("node1", "node"),
    "node2": ("node2", "node"),
    "prefect-server": ("head", "prefect-server"),
    "mlflow-server": ("head", "mlflow-server"),
    "worker": ("head", "worker"),
}
START_SECONDS = 180.0  # the whole bed needs 17 s on two idle cores

_PREFIX = "mnist-pipe"
_RESTARTS = 2
_BAD_INPUT = 2
_CLONE_NEWNET = 0x40000000


@dataclass(kw_only=True)
class Bed:
    """Running test bed; create it with `Bed.start()`, and end it with `stop()` or as a context manager."""

    folder: Path
    """Folder of all files: logs/, homes/, the settings file of each host and the database; `stop` removes it."""
    secrets: dict[str, str]
    """Planted secrets by the name of the variable that holds them."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """First process of everything that was spawned, by its name."""
    started: dict[str, float] = field(default_factory=dict)
    """Time at which each was last spawned, in seconds since 1970, by its name."""

    # --- lifecycle

    @classmethod
    def start(cls, *, services: bool = True) -> Bed:
        """Create the network, start every service, and return when all respond: about 17 s on two idle cores.

        Without `services` there are only the machines and their network.

        Raises:
            RuntimeError: a service did not start; the message ends with its output. The bed has been removed.
        """
        sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{os.getpid()}-", dir="/tmp"))
        folder.chmod(0o755)  # PostgreSQL's user must reach its own folder in it
        names = (
            *("RAY_AUTH_TOKEN", "PREFECT_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
            *("MNIST_PIPE_PREFECT_DATABASE_PASSWORD", "MNIST_PIPE_MLFLOW_DATABASE_PASSWORD", "MNIST_PIPE_SERVE_TOKEN"),
            *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        )
        bed = cls(folder=folder, secrets={name: f"planted{secrets.token_hex(20)}" for name in names})
        try:
            for part in ("logs", "homes"):
                (folder / part).mkdir()
            bed._lay_network()
            for host in HOSTS:
                (folder / "homes" / host).mkdir()
                bed.write_settings(bed.settings_file(host), bed.settings(host))
            if services:
                bed._start_services()
        except BaseException:
            bed.stop()
            raise
        return bed

    def stop(self) -> None:
        """End every process of the bed, and remove its namespaces and files; a second call does nothing."""
        if (database := self.processes.get("postgres")) and database.poll() is None:
            database.send_signal(signal.SIGINT)  # SIGKILL would leave its shared memory behind
            with suppress(subprocess.TimeoutExpired):
                database.wait(10)
        for host in (*HOSTS, "switch"):
            _remove(self.namespace(host))
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what a test reads

    @property
    def addresses(self) -> dict[str, str]:
        """IP address of each host, by its name."""
        return {host: f"{NETWORK}.{number}" for number, host in enumerate(HOSTS, start=1)}

    @property
    def storage(self) -> str:
        """Value of MNIST_PIPE_STORAGE."""
        return f"s3://{BUCKET}/bed"

    @property
    def ray_address(self) -> str:
        return f"{self.addresses['head']}:6379"

    @property
    def dashboard_url(self) -> str:
        return f"http://{self.addresses['head']}:8265"

    @property
    def prefect_url(self) -> str:
        return f"http://{self.addresses['head']}:4200"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.addresses['head']}:5000"

    @property
    def client_env(self) -> dict[str, str]:
        """Environment of a user's shell on the client: the two variables of the README, the storage and credentials."""
        return {
            **self._plain("client"),
            **self._storage_credentials(),
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_API_AUTH_STRING": f"mnist:{self.secrets['PREFECT_PASSWORD']}",
            "MNIST_PIPE_WORK_POOL": POOL,
            "MNIST_PIPE_STORAGE": self.storage,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_USERNAME": "mnist",
            "MLFLOW_TRACKING_PASSWORD": self.secrets["MLFLOW_TRACKING_PASSWORD"],
        }

    @property
    def driver_env(self) -> dict[str, str]:
        """Environment of a driver of the Ray cluster on the head, as the worker gives it to a flow run."""
        return {
            **self.client_env,
            "HOME": str(self.folder / "homes" / "head"),
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.secrets["RAY_AUTH_TOKEN"],
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }

    @property
    def ray_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets['RAY_AUTH_TOKEN']}"}

    @property
    def prefect_headers(self) -> dict[str, str]:
        return basic("mnist", self.secrets["PREFECT_PASSWORD"])

    @property
    def mlflow_headers(self) -> dict[str, str]:
        return basic("mnist", self.secrets["MLFLOW_TRACKING_PASSWORD"])

    def settings(self, host: str) -> dict[str, str]:
        """Return the content of a host's settings file; the nodes know neither database nor Prefect nor MLflow."""
        shared = {
            "MNIST_PIPE_HEAD": self.addresses["head"],
            "MNIST_PIPE_STORAGE": self.storage,
            "MNIST_PIPE_VENV": sys.prefix,
            "MNIST_PIPE_RAY_FOLDER": str(self.folder),
            "MNIST_PIPE_OBJECT_STORE_BYTES": str(300 * 10**6),
            "RAY_AUTH_TOKEN": self.secrets["RAY_AUTH_TOKEN"],
            **self._storage_credentials(),
        }
        if host != "head":
            return {**shared, "MNIST_PIPE_NODE_CPUS": "1"}
        own = {
            "MNIST_PIPE_HEAD_CPUS": "0",
            "MNIST_PIPE_DATABASE": self.addresses["head"],
            "MNIST_PIPE_WORK_POOL": POOL,
            "PREFECT_API_AUTH_STRING": f"mnist:{self.secrets['PREFECT_PASSWORD']}",
            "MLFLOW_TRACKING_USERNAME": "mnist",
        }
        passwords = [name for name in self.secrets if name.startswith(("MLFLOW_", "MNIST_PIPE_"))]
        return shared | own | {name: self.secrets[name] for name in passwords}

    def log(self, name: str) -> str:
        """Return what a process has printed so far."""
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    # --- what a test does

    def run(
        self,
        host: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host until it ends; `env` replaces `client_env`, except PATH, HOME and PYTHONPATH."""
        return subprocess.run(
            self._inside(host, command),
            env=self._plain(host) | dict(self.client_env if env is None else env),
            cwd=cwd or self.folder,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def script(
        self, name: str, *arguments: str | Path, cwd: Path | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the programs of `deploy/` on the head until it ends."""
        env = {"MNIST_PIPE_ENV": str(self.settings_file("head"))}
        return self.run("head", [ROOT / "deploy" / name, *arguments], env=env, cwd=cwd, timeout=timeout)

    def python(self, host: str, code: str, *, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> Any:
        """Run Python code on a host, and return the JSON of its last line of output.

        Without `env` the code is a driver of the Ray cluster.

        Raises:
            RuntimeError: the code failed; the message has its output.
        """
        done = self.run(
            host, [sys.executable, "-c", code], env=self.driver_env if env is None else env, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"{host}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def spawn(
        self,
        host: str,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host in its own session, and leave it running; it prints to logs/<name>.log."""
        self.started[name] = time.time()
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._inside(host, command),
                env=self._plain(host) | dict(self.client_env if env is None else env),
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name]

    def deploy(self, name: str, *, wait: bool = True) -> None:
        """Start one of SERVICES through its script in `deploy/`, and wait until it responds unless `wait` is false."""
        host, script = SERVICES[name]
        self.spawn(host, name, [ROOT / "deploy" / script], env={"MNIST_PIPE_ENV": str(self.settings_file(host))})
        if wait:
            self.await_ready(name)

    def kill(self, name: str, signal_: signal.Signals = signal.SIGKILL, *, wait: float = 60.0) -> None:
        """Send a signal to the first process spawned as `name`, not to its children, and wait until it ends."""
        self.processes[name].send_signal(signal_)
        self.processes[name].wait(wait)

    def crash(self, host: str) -> None:
        """SIGKILL every process of a host at once, as a power cut does, though its peers see closed connections."""
        _kill_all(self.namespace(host))

    def pids(self, host: str, *, of: str) -> list[int]:
        """Return the pids of a host's processes whose command line contains `of`."""
        listed = _pids(self.namespace(host))
        return [pid for pid in listed if of.encode() in Path("/proc", str(pid), "cmdline").read_bytes()]

    def link(self, host: str, *, up: bool) -> None:
        """Connect a host to the network or disconnect it; its peers get no reply, not even an error."""
        _ip("-n", self.namespace("switch"), "link", "set", host, "up" if up else "down")

    def storage_fails(self, fails: bool) -> None:
        """Make every S3 request fail with 503, or succeed again."""
        if fails:
            self._flag.touch()
        else:
            self._flag.unlink(missing_ok=True)

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Create this thread's new sockets in a host's namespace; other threads are not affected."""
        theirs = Path("/run/netns", self.namespace(host))
        with Path("/proc/thread-self/ns/net").open() as home, theirs.open() as other:
            _setns(other.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def fetch(
        self,
        url: str,
        *,
        host: str = "client",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float = 30.0,  # the machine may be busy
    ) -> tuple[int, str]:
        """Send a GET from a host, or a POST of `body` as JSON, and return the status and the text of the response.

        Raises:
            OSError: there is no response.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=dict(headers or {}))
        if data is not None:
            request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with self.inside(host):
            try:
                with opener.open(request, timeout=timeout) as reply:
                    return reply.status, reply.read().decode(errors="replace")
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode(errors="replace")

    def prefect(self, path: str, *, body: Any = None, host: str = "client") -> Any:
        """Send Prefect's API a GET, or a POST of `body`, and return its reply.

        For example: `bed.prefect("flow_runs/filter", body={})`.

        Raises:
            OSError: there is no response, or its status is 400 or more.
        """
        headers = dict(self.prefect_headers)
        if body is not None:
            token = self.prefect("csrf-token?client=bed", host=host)["token"]
            headers |= {"Prefect-Csrf-Client": "bed", "Prefect-Csrf-Token": token}
        status, text = self.fetch(f"{self.prefect_url}/api/{path}", host=host, headers=headers, body=body)
        if status >= 400:
            raise OSError(f"{path}: {status} {text[:300]}")
        return json.loads(text)

    def run_state(self, name: str) -> str:
        """Return the name of the state of the flow run `name`."""
        wanted = {"flow_runs": {"name": {"any_": [name]}}}
        return str(self.prefect("flow_runs/filter", body=wanted)[0]["state_name"])

    def ray_nodes(self) -> dict[str, str]:
        """Return ALIVE or DEAD by address, from the dashboard; the last of several nodes on one address counts."""
        nodes = sorted(self._ray_state("nodes"), key=lambda node: node["start_time_ms"])
        return {node["node_ip"]: node["state"] for node in nodes}

    def _ray_state(self, kind: str) -> list[dict[str, Any]]:
        url = f"{self.dashboard_url}/api/v0/{kind}?limit=1000&detail=1"
        status, text = self.fetch(url, headers=self.ray_headers)
        if status != 200:
            raise OSError(f"{status}: {text[:200]}")
        return json.loads(text)["data"]["result"]["result"]

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return the key and size in bytes of each object below `prefix` in MNIST_PIPE_STORAGE."""
        base = self.storage.removeprefix(f"s3://{BUCKET}/")
        with self.inside("client"):
            pages = self.s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{base}/{prefix}")
            found = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"].removeprefix(f"{base}/"): entry["Size"] for entry in found}

    def s3(self) -> Any:
        """Return a boto3 client, for use inside `with bed.inside("client")`."""
        import boto3

        credentials = self._storage_credentials()
        return boto3.client(
            "s3",
            endpoint_url=credentials["AWS_ENDPOINT_URL"],
            aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
            region_name=credentials["AWS_DEFAULT_REGION"],
        )

    def await_ready(self, name: str) -> None:
        """Wait until a service responds to a request with its secret.

        A service that ends meanwhile is restarted, as its supervisor would do: Ray gives up a start that takes 30 s,
        which happens on a busy machine.

        Raises:
            RuntimeError: the service refused its settings, ended three times, or did not respond within START_SECONDS;
                the message has its log.
        """
        restarts = iter(range(_RESTARTS))

        def supervise() -> None:
            code = self.processes[name].poll()
            if code is None:
                return
            if code == _BAD_INPUT or name not in SERVICES or next(restarts, None) is None:
                raise RuntimeError(f"{name} ended with {code}; it printed:\n{self.log(name)[-4000:]}")
            self.deploy(name, wait=False)

        wait_for(lambda: self._is_ready(name), name, during=supervise, timeout=START_SECONDS)

    # --- paths and names

    def namespace(self, host: str) -> str:
        return f"{_PREFIX}-{os.getpid()}-{host}"

    def settings_file(self, host: str) -> Path:
        return self.folder / f"{host}.env"

    @staticmethod
    def write_settings(path: Path, values: Mapping[str, str]) -> Path:
        """Write a settings file that only its owner can read, and return its path."""
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return path

    @property
    def _flag(self) -> Path:
        return self.folder / "storage-fails"

    def _plain(self, host: str) -> dict[str, str]:
        """Return the environment of every process, without this machine's own settings, proxies and homes."""
        return {
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "homes" / host),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),  # every host imports the code under test
            **telemetry.OFF,
        }

    def _storage_credentials(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.secrets["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{self.addresses['storage']}:{S3_PORT}",
        }

    def _inside(self, host: str, command: Sequence[str | Path]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(host), *map(str, command)]

    # --- starting

    def _lay_network(self) -> None:
        switch = self.namespace("switch")
        for host in (*HOSTS, "switch"):
            _ip("netns", "add", self.namespace(host))
            _ip("-n", self.namespace(host), "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host, address in self.addresses.items():
            # Created inside the switch's namespace, so that neither end ever appears on this machine.
            peer = ("peer", "name", INTERFACE, "netns", self.namespace(host))
            _ip("-n", switch, "link", "add", host, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            _ip("-n", self.namespace(host), "addr", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", self.namespace(host), "link", "set", INTERFACE, "up")

    def _start_services(self) -> None:
        def ray() -> None:
            self.deploy("head")
            self.deploy("node1", wait=False)
            self.deploy("node2", wait=False)
            self.await_ready("node1")
            self.await_ready("node2")

        def servers() -> None:
            self._start_database()
            self.deploy("prefect-server", wait=False)
            self.deploy("mlflow-server", wait=False)
            self.await_ready("prefect-server")
            self.deploy("worker")
            self.await_ready("mlflow-server")

        with ThreadPoolExecutor() as pool:
            tasks = [pool.submit(work) for work in (ray, servers, self._start_storage)]
            for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                if task.exception():
                    for host in HOSTS:
                        self.crash(host)  # ends the other starts, which would wait in vain
                task.result()

    def _start_storage(self) -> None:
        module = [sys.executable, "-m", "tests.cluster.s3"]
        self.spawn("storage", "s3", [*module, self.addresses["storage"], str(S3_PORT), self._flag])
        self.await_ready("s3")
        with self.inside("client"):
            self.s3().create_bucket(Bucket=BUCKET)

    def _start_database(self) -> None:
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
        if programs is None:
            raise RuntimeError("no PostgreSQL in /usr/lib/postgresql; `make test-cluster` installs it")
        data, sockets = self.folder / "postgres", self.folder / "postgres-sockets"
        for path in (data, sockets):
            path.mkdir()
            shutil.chown(path, "postgres", "postgres")
        # PostgreSQL refuses to run as root.
        become = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        access = ["--auth-local", "peer", "--auth-host", "scram-sha-256"]
        initdb: list[str | Path] = [
            programs / "initdb",
            "--pgdata",
            data,
            "--username",
            "postgres",
            "--no-sync",
            "--no-instructions",
        ]
        self._succeed("head", [*become, *initdb, *access])
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 scram-sha-256\n")
        options = {
            "listen_addresses": self.addresses["head"],
            "unix_socket_directories": sockets,
            "dynamic_shared_memory_type": "mmap",  # keeps its shared memory in its own folder, which is removed with it
            "fsync": "off",  # the database lives for one test session
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.spawn("head", "postgres", [*become, programs / "postgres", "-D", data, *flags], env={})
        self.await_ready("postgres")
        self.create_databases()

    def create_databases(self) -> None:
        """Run deploy/database."""
        env = {"MNIST_PIPE_ENV": str(self.settings_file("head")), "PGHOST": str(self.folder / "postgres-sockets")}
        self._succeed("head", [ROOT / "deploy/database"], env=env)

    def _succeed(self, host: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> None:
        done = self.run(host, command, env=env or {})
        if done.returncode:
            raise RuntimeError(f"{command[0]}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def _is_ready(self, name: str) -> bool:
        match name:
            case "postgres":
                return (self.folder / "postgres-sockets/.s.PGSQL.5432").exists()
            case "s3":
                return self.fetch(f"http://{self.addresses['storage']}:{S3_PORT}/")[0] == 200
            case "prefect-server":
                return bool(self.prefect("admin/version"))
            case "mlflow-server":
                return self.fetch(f"{self.mlflow_url}/version", headers=self.mlflow_headers)[0] == 200
            case "worker":
                return self._worker_is_ready()
            case "head" | "node1" | "node2":
                return self.ray_nodes().get(self.addresses[name]) == "ALIVE"
        raise ValueError(f"no probe for {name}")

    def _worker_is_ready(self) -> bool:
        workers = self.prefect(f"work_pools/{POOL}/workers/filter", body={})
        beats = [datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() for worker in workers]
        return any(beat > self.started["worker"] for beat in beats)


def wait_for(
    holds: Callable[[], bool],
    what: str,
    *,
    timeout: float = 120.0,
    during: Callable[[], None] = lambda: None,
    every: float = 0.2,
) -> float:
    """Wait until `holds()` is true, and return the seconds that it took.

    Args:
        holds: condition to poll; an OSError counts as false.
        what: description of the condition, for the error message.
        timeout: maximum seconds to wait.
        during: called after each failed poll; it may raise.
        every: seconds between polls.

    Raises:
        RuntimeError: the condition did not hold in time.
    """
    started = time.monotonic()

    def held() -> bool:
        try:
            return holds()
        except OSError:  # the service does not respond yet
            return False

    while not held():
        during()
        if time.monotonic() - started > timeout:
            raise RuntimeError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)
    return time.monotonic() - started


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of HTTP basic authentication."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def missing() -> str:
    """Return the reason why this machine cannot run a bed, or an empty string."""
    if os.geteuid() != 0:
        return "not root, and network namespaces need it"
    if not shutil.which("ip"):
        return "no program `ip` (Debian: iproute2)"
    name = f"{_PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"root here lacks the rights of root, as in a container: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def sweep() -> None:
    """Remove the processes, namespaces and files of beds whose test process no longer exists."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if line and _is_stale(line.split()[0]):
            _remove(line.split()[0])
    for folder in Path("/tmp").glob(f"{_PREFIX}-*-*"):
        if _is_stale(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(name: str) -> bool:
    made_by = re.match(rf"{_PREFIX}-(\d+)-", name)
    return made_by is not None and not Path("/proc", made_by[1]).exists()


def _remove(namespace: str) -> None:
    if Path("/run/netns", namespace).exists():
        _kill_all(namespace)
        _ip("netns", "delete", namespace)


def _kill_all(namespace: str) -> None:
    """Kill every process of a namespace, repeatedly, because a process may start another meanwhile."""
    while pids := _pids(namespace):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _pids(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _setns(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
