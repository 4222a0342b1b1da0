"""The process group of torch in which Ray Train's workers exchange gradients, on the nodes' own addresses.

Ray's default lets torch listen on every interface, without a secret, for one worker too. Here a single worker has no
group, and several listen on the address by which Ray knows their node: on one machine, loopback.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

TIMEOUT = timedelta(seconds=60)
"""The wait for a hung worker; Ray's default is 1800 s."""
_SHUTDOWN_SECONDS = 5.0  # Ray's default is 30 s, lost if a worker of the group hangs


class _NodeBackend(Backend):  # type: ignore[misc]
    """Start and end of the group; Ray calls it for each set of workers, with an object that runs functions in them."""

    share_cuda_visible_devices = True  # nccl needs to see the GPUs of the other workers of its node

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Set up the group of the workers that Ray has just started."""
        if (size := len(worker_group)) == 1:
            return
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        address, port, listener = worker_group.execute_single(0, _listen)
        group = {"backend": backend, "address": address, "port": port, "world_size": size}
        ranks = [
            worker_group.execute_single_async(
                rank, _join, **group, world_rank=rank, listener=None if rank else listener
            )
            for rank in range(size)
        ]
        ray.get(ranks)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Let the workers leave the group; Ray ends their processes next."""
        ranks = worker_group.execute_async(_leave)
        ray.wait(ranks, num_returns=len(ranks), timeout=_SHUTDOWN_SECONDS)


@dataclass
class NodeConfig(TorchConfig):  # type: ignore[misc]
    """Configuration of `TorchTrainer` under which the workers listen on their nodes' addresses."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class whose methods Ray calls."""
        return _NodeBackend


def _listen() -> tuple[str, int, int]:
    """Return the address and port of a new listener on this node's address, and its file descriptor."""
    address = ray.util.get_node_ip_address()
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    return address, listener.getsockname()[1], listener.detach()


def _join(*, backend: str, address: str, port: int, world_size: int, world_rank: int, listener: int | None) -> None:
    """Join the group whose store is at `address:port`; rank 0 serves it on the file descriptor `listener`."""
    if interface := _interface(ray.util.get_node_ip_address()):
        os.environ.update(interfaces(interface))
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        world_size,
        is_master=world_rank == 0,
        master_listen_fd=listener,
        timeout=TIMEOUT,
        wait_for_workers=False,
    )
    dist.init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=TIMEOUT)


def interfaces(default: str) -> dict[str, str]:
    """Return the variables that name the interface of gloo and of NCCL: what the environment has, or the default.

    NCCL skips only `lo` and `docker*`, so that it may take another interface on each node, and hang.
    """
    gloo = os.environ.get("GLOO_SOCKET_IFNAME", default)
    return {"GLOO_SOCKET_IFNAME": gloo, "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", gloo)}


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _interface(address: str) -> str | None:
    """Return the name of the network interface that has `address`."""
    for name, found in psutil.net_if_addrs().items():
        if address in (entry.address for entry in found):
            return name
    return None
