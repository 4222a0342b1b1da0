"""Test how many GPUs there are to compute with: what torch, Ray's nodes and the settings allow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mnist_pipe import hardware, preflight
from mnist_pipe.cluster.ray_session import Cluster, Scale, scale, usable
from mnist_pipe.errors import InputError, UnavailableError
from mnist_pipe.local import doctor
from mnist_pipe.training import process_group
from tests.support import ROOT
from tests.support.ray_runs import workers

OLD, NEW = (12, 2), (13, 0)  # drivers, by the newest CUDA that they support
INDEX = "https://download.pytorch.org/whl"


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cuda: str | None,
    driver: tuple[int, int] | None,
    visible: str | None = None,
    starts: bool = True,
) -> None:
    """Make up a machine with two GPUs: torch's build, the driver, CUDA_VISIBLE_DEVICES, and whether a device starts."""
    works = cuda is not None and driver is not None and driver >= (int(cuda.partition(".")[0]), 0) and starts
    shown = [number for number in (visible or "0,1").split(",") if number in ("0", "1")] if visible != "" else []
    monkeypatch.setattr(hardware, "driver_cuda", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu" if cuda is None else "2.13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: works and bool(shown))
    # As torch's own, this counts what the driver has, whether the build can use it or not.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(shown))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ["H200", "H100"][number])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("facts", "number", "text"),
    [
        ({"cuda": "13.0", "driver": NEW}, 2, "2 x H200, torch 2.13.0"),
        ({"cuda": "12.6", "driver": NEW}, 2, "2 x H200, torch 2.13.0"),
        ({"cuda": "12.6", "driver": OLD}, 2, "2 x H200, torch 2.13.0"),
        ({"cuda": "13.0", "driver": NEW, "visible": "1"}, 1, "1 x H200, torch 2.13.0"),
        ({"cuda": "13.0", "driver": None}, 0, "no NVIDIA driver: the CPUs compute"),
        ({"cuda": None, "driver": None}, 0, "no NVIDIA driver: the CPUs compute"),
        (
            {"cuda": "13.0", "driver": NEW, "visible": "-1"},
            0,
            "hidden by CUDA_VISIBLE_DEVICES=-1: the CPUs compute",
        ),
        ({"cuda": "13.0", "driver": OLD, "visible": ""}, 0, "hidden by CUDA_VISIBLE_DEVICES=: the CPUs compute"),
        (
            {"cuda": None, "driver": OLD},
            0,
            "torch 2.13.0+cpu is built without CUDA: the CPUs compute; with CUDA: run: "
            f"{sys.executable} -m pip install torch==2.13.0+cu126 --index-url {INDEX}/cu126",
        ),
    ],
)
def test_the_gpus_are_those_that_torch_can_use(
    facts: dict[str, Any], number: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **facts)
    assert hardware.num_gpus() == number
    assert hardware.check_gpus() == text


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            {"cuda": "13.0", "driver": OLD},
            "gpu: the NVIDIA driver must support CUDA 13.0, as torch 2.13.0 needs, but got 12.2; "
            f"run: {sys.executable} -m pip install torch==2.13.0+cu126 --index-url {INDEX}/cu126, "
            "or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs",
        ),
        (
            {"cuda": "13.0", "driver": (11, 4)},
            "gpu: the NVIDIA driver must support CUDA 13.0, as torch 2.13.0 needs, but got 11.4; "
            "update the NVIDIA driver, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs",
        ),
        (
            {"cuda": "13.0", "driver": NEW, "visible": "7"},
            "gpu: CUDA_VISIBLE_DEVICES must name GPUs of this machine, but got '7'; correct it, or unset it",
        ),
        (
            {"cuda": "13.0", "driver": NEW, "starts": False},
            "gpu: the NVIDIA driver does not answer: torch finds none; "
            "set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs",
        ),
    ],
)
def test_a_gpu_that_torch_should_use_but_cannot_is_one_line_with_a_remedy(
    facts: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **facts)
    assert hardware.num_gpus() == 0
    with pytest.raises(UnavailableError) as caught:
        hardware.check_gpus()
    assert str(caught.value) == line
    # The remedy works: the variable hides the device, and nothing is wrong any more.
    machine(monkeypatch, **{**facts, "visible": "-1"})
    assert hardware.check_gpus().startswith("hidden")


def test_the_doctor_and_every_stage_check_the_gpus_before_work_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine(monkeypatch, cuda="13.0", driver=OLD)
    for check in (lambda: doctor.CHECKS["gpu"](ROOT), lambda: preflight.check_gpus("ingest")):
        with pytest.raises(UnavailableError, match=r"the NVIDIA driver must support CUDA 13\.0"):
            check()
    # A build without CUDA was chosen: nothing is refused, and a stage that trains says what it does.
    machine(monkeypatch, cuda=None, driver=NEW)
    preflight.check_gpus("ingest")
    assert capsys.readouterr().err == ""
    preflight.check_gpus("train")
    assert capsys.readouterr().err.startswith("gpu: torch 2.13.0+cpu is built without CUDA: the CPUs compute; ")
    assert doctor.CHECKS["gpu"](ROOT).startswith("torch 2.13.0+cpu is built without CUDA")
    machine(monkeypatch, cuda="13.0", driver=NEW)
    preflight.check_gpus("train")
    assert capsys.readouterr().err == ""
    # The GPUs of a cluster are those of its nodes, which are asked when it is joined.
    machine(monkeypatch, cuda="13.0", driver=OLD)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    preflight.check_gpus("train")


def test_a_node_whose_torch_can_use_fewer_gpus_than_ray_counts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda="13.0", driver=NEW)
    hardware.check_gpus_of_ray(2, where="10.0.0.7")
    with pytest.raises(UnavailableError) as caught:
        hardware.check_gpus_of_ray(3, where="10.0.0.7")
    assert str(caught.value) == (
        "10.0.0.7: the GPUs must be 3, as Ray counts them, but got 2 that torch 2.13.0 can use; "
        "start Ray there with --num-gpus 2"
    )
    machine(monkeypatch, cuda=None, driver=NEW)
    with pytest.raises(UnavailableError) as caught:
        hardware.check_gpus_of_ray(2, where="10.0.0.7")
    assert str(caught.value) == (
        "10.0.0.7: the GPUs must be 2, as Ray counts them, but got 0 that torch 2.13.0+cpu can use; "
        "start Ray there with --num-gpus 0, or "
        f"run: {sys.executable} -m pip install torch==2.13.0+cu130 --index-url {INDEX}/cu130"
    )


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    """Return a node as `ray.nodes()` has it; Ray leaves out a resource of which there is none."""
    resources = {"memory": 1e9, "CPU": cpus, "GPU": gpus}
    return {"Alive": alive, "Resources": {name: number for name, number in resources.items() if number}}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus"),
    [
        ([node(8)], (8,), 0),
        ([node(16, 8)], (16,), 8),
        ([node(0, 1), node(16, 8)], (16,), 8),  # the head, whose CPUs are kept off training
        ([node(4, 8)], (4,), 4),  # a container with fewer CPUs than GPUs
        ([node(0.5, 1), node(2, 0.5)], (2,), 0),
        ([node(16, 8), node(16, 8, alive=False)], (16,), 8),
    ],
)
def test_only_gpus_that_can_have_a_worker_count(nodes: list[dict[str, Any]], cpus: tuple[int, ...], gpus: int) -> None:
    assert usable(nodes) == (cpus, gpus)


@pytest.mark.parametrize(
    ("nodes", "gpus", "grows", "asked", "batch_size", "expected"),
    [
        ((8,), 0, False, ("auto", "auto"), 128, workers(1, cpus_per_worker=2)),
        ((8,), 0, False, (0, "auto"), 128, workers(0, cpus_per_worker=2)),
        ((8,), 0, False, ([1, 9], "auto"), 128, workers(1, 8)),
        ((8,), 0, True, ([1, 9], "auto"), 128, workers(1, 9)),
        ((8,), 0, True, ("auto", "auto"), 128, workers(1, cpus_per_worker=8)),
        ((8, 4), 0, True, ("auto", "auto"), 128, workers(1, 2, cpus_per_worker=4, num_nodes=2)),
        ((8, 4), 0, True, (2, "auto"), 128, workers(2, cpus_per_worker=4, num_nodes=2)),
        ((1,) * 9, 0, True, ("auto", "auto"), 8, workers(1, 8, num_nodes=9)),
        # On GPUs, as many as have 1,024 images each; a number is that number.
        ((64,), 4, False, ("auto", "auto"), 128, workers(1, use_gpu=True)),
        ((64,), 4, False, ("auto", "auto"), 1, workers(1, use_gpu=True)),
        ((64,), 4, False, ("auto", "auto"), 2047, workers(1, use_gpu=True)),
        ((64,), 4, False, ("auto", "auto"), 2048, workers(2, use_gpu=True)),
        ((64,), 4, False, ("auto", "auto"), 65_536, workers(4, use_gpu=True)),
        ((64,), 4, False, (4, "auto"), 128, workers(4, use_gpu=True)),
        ((64,), 4, False, ([1, 9], "auto"), 128, workers(1, 4, use_gpu=True)),
        ((8,), 4, False, (2, False), 128, workers(2)),
        ((8,) * 17, 136, False, ("auto", "auto"), 128, workers(1, use_gpu=True, num_nodes=17)),
        ((8, 8), 6, True, ("auto", "auto"), 4096, workers(1, 4, use_gpu=True, num_nodes=2)),
    ],
)
def test_auto_is_a_gpu_for_each_thousand_images_or_every_node(
    nodes: tuple[int, ...],
    gpus: int,
    grows: bool,
    asked: tuple[Any, Any],
    batch_size: int,
    expected: Scale,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "num_cpus", lambda: 2)
    available = Cluster(num_cpus=sum(nodes), num_gpus=gpus, nodes=nodes, grows=grows, address="")
    found = scale(available, num_workers=asked[0], use_gpu=asked[1], batch_size=batch_size)
    assert found == expected
    assert asked[0] != "auto" or found.max_workers <= batch_size


def test_more_workers_than_gpus_and_cpus_are_refused() -> None:
    check = preflight.check_workers
    check("train.num_workers", 4, num_cpus=4, num_gpus=8)
    with pytest.raises(InputError) as caught:
        check("train.num_workers", 5, num_cpus=4, num_gpus=8)
    assert str(caught.value) == (
        "params.yaml: train.num_workers must be at most 4, the number of GPUs of this machine, but got 5; lower it or "
        "connect a larger cluster with RAY_ADDRESS, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs"
    )
    check("train.num_workers", 5, num_cpus=8, num_gpus=4, use_gpu=False)
    with pytest.raises(InputError, match=r"use_gpu must be auto or false without a GPU.*doctor"):
        check("train.num_workers", 1, num_cpus=4, num_gpus=0, use_gpu=True)


@pytest.mark.parametrize(
    ("given", "interface", "expected"),
    [
        ({}, "eth3", ("eth3", "eth3")),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, "eth3", ("ib0", "ib0")),
        ({"NCCL_SOCKET_IFNAME": "ib0"}, "eth3", ("eth3", "ib0")),
    ],
)
def test_nccls_interface_follows_gloos(
    given: dict[str, str], interface: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tuple(process_group.interfaces(interface)[name] for name in names) == expected


SETTINGS = """MNIST_PIPE_HEAD=127.0.0.1
RAY_AUTH_TOKEN=secret
MNIST_PIPE_STORAGE=/tmp
MNIST_PIPE_VENV={venv}
MLFLOW_TRACKING_PASSWORD=another
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ["GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo"]),
        (["GLOO_SOCKET_IFNAME=ib0"], ["GLOO_SOCKET_IFNAME=ib0", "NCCL_SOCKET_IFNAME=ib0"]),
        (
            ["NCCL_SOCKET_IFNAME=ib0", "NCCL_IB_HCA=mlx5_0", "NCCL_IB_DISABLE=1", "NCCL_DEBUG=INFO"],
            ["GLOO_SOCKET_IFNAME=lo", "NCCL_DEBUG=INFO", "NCCL_IB_DISABLE=1", "NCCL_IB_HCA=mlx5_0",
             "NCCL_SOCKET_IFNAME=ib0"],
        ),
        (
            ["CUDA_VISIBLE_DEVICES=-1"],
            ["CUDA_VISIBLE_DEVICES=-1", "GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo"],
        ),
    ],
)  # fmt: skip
def test_every_nccl_variable_of_the_settings_reaches_the_processes_of_ray(
    lines: list[str], expected: list[str], tmp_path: Any
) -> None:
    settings = tmp_path / "cluster.env"
    settings.write_text(SETTINGS.format(venv=sys.prefix) + "\n".join([*lines, ""]))
    settings.chmod(0o600)
    script = (
        f"""cd {ROOT}/deploy; set -- ; . ./settings; here=$PWD; . ./ray-settings; bind_interface 127.0.0.1; exec env"""
    )
    done = subprocess.run(
        ["bash", "-c", script, f"{ROOT}/deploy/node"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MNIST_PIPE_ENV": str(settings)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = ("NCCL_", "GLOO_", "CUDA_", "MLFLOW_TRACKING")
    assert sorted(line for line in done.stdout.splitlines() if line.startswith(names)) == expected


def test_ray_nodes_are_started_with_the_gpus_that_torch_can_use() -> None:
    for name in ("head", "node"):
        script = (ROOT / "deploy" / name).read_text()
        assert 'gpus=$(python "$here/num_gpus.py")' in script
        assert '--num-gpus "$gpus"' in script
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/num_gpus.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{hardware.num_gpus()}\n"
