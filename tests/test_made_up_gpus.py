"""Test Ray with GPUs that do not exist: what is refused before work starts, and which runs hold one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster as Nodes

from mnist_pipe import hardware
from mnist_pipe.cluster import storage
from mnist_pipe.cluster.ray_session import Cluster, connected
from mnist_pipe.errors import UnavailableError
from studies import STUDIES
from studies.common import catalogue
from studies.common.executor import run_all
from studies.common.ledger import Config, Result, ledger_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # `Nodes` leaves sockets open
    pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs of this machine exist"),
]


@pytest.fixture
def counted() -> Iterator[str]:
    """Address of a Ray that counts two GPUs."""
    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2})
    yield started.address
    started.shutdown()
    del started
    gc.collect()  # here, where the warning about its sockets is ignored


@pytest.fixture
def own() -> Iterator[Cluster]:
    """A Ray of our own on a machine on which torch can use one GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(hardware, "num_gpus", lambda: 1)
        with connected("a-test") as available:
            yield available


def test_a_ray_that_counts_gpus_which_torch_cannot_use_is_refused_before_work_starts(
    counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", counted)
    # Ray counts two, of which one has no CPU: that one is of no use, and is refused all the same.
    with pytest.raises(UnavailableError) as caught, connected("a-test"):
        pass
    assert f"the GPUs must be 2, as Ray counts them, but got 0 that torch {torch.__version__} can use" in str(
        caught.value
    )
    assert not ray.is_initialized()


def test_a_ray_of_our_own_has_the_gpus_that_torch_can_use(own: Cluster) -> None:
    assert own.num_gpus == 1
    assert ray.cluster_resources()["GPU"] == 1


def compute(config: Config, shared: Mapping[str, int]) -> Result:  # noqa: ARG001
    """Return the GPUs that this process holds and what torch may see."""
    return Result(
        metrics={
            "held": ray.get_gpu_ids(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "resources": ray.get_runtime_context().get_assigned_resources(),
        },
        intermediate={},
    )


def test_only_the_runs_of_a_study_that_compute_on_a_gpu_hold_one(own: Cluster, tmp_path: Path) -> None:
    configs: list[Config] = [{"number": number, "network": number % 2 == 0} for number in range(4)]
    runs = run_all(
        compute,
        configs,
        shared={},
        available=own,
        ledger=ledger_of("a-study", storage=storage.project_storage(tmp_path)),
        on_gpu=lambda config: bool(config["network"]),
    )
    for run in runs:
        assert len(run.result["held"]) == run.config["network"]
        assert run.result["resources"] == ({"CPU": 1.0, "GPU": 1.0} if run.config["network"] else {"CPU": 1.0})
        assert (run.result["visible"] == "-1") == (not run.config["network"])


def test_a_study_asks_for_a_gpu_where_it_trains_a_network_with_torch_alone() -> None:
    on_gpu = {name: catalogue.study_of(name).on_gpu for name in STUDIES}
    assert not on_gpu["gradient_descent"]({})
    assert all(on_gpu[name]({}) for name in ("cnn", "optimizers", "frontier"))
    methods = ("linear", "pairwise", "radial", "neighbours", "tangent", "virtual", "reduced", "quadratic")
    assert not any(on_gpu["lecun1998"]({"method": method}) for method in methods)
    assert all(on_gpu["lecun1998"]({"method": method}) for method in ("network", "LeNet-4", "boosted"))
    assert [task for task in ("classify", "few", "prototypes") if on_gpu["ladder"]({"task": task})] == [
        "classify",
        "few",
    ]
