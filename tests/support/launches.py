"""What stands in for a GPU: modes that watch the operations of a step, and a CUDA graph made up on a CPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import adadelta, adam, adamax, nadam, optimizer, rmsprop
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_pipe.tuning import vmapped

META = torch.device("meta")
_FROM_THE_HOST = ("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer", "new_tensor")
_TO_THE_HOST = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")


def is_launch(func: Any) -> bool:
    """Return whether an operation computes, rather than returning memory, a view of it, or a mark for a profiler."""
    name = func.overloadpacket.__name__
    return not func.is_view and not name.startswith(
        ("empty", "new_empty", "detach", "lift", "_unsafe_view", "_record_")
    )


class Launches(TorchDispatchMode):
    """Dispatch mode that counts the operations that launch a kernel on a GPU, and lists what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.forbidden: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        fused = name.startswith("_fused_") and "meta" in devices  # torch has no such operation for meta tensors
        result = None if fused else func(*args, **(kwargs or {}))
        devices |= {value.device.type for value in tree_leaves(result) if isinstance(value, Tensor)}
        if len(devices) > 1 or name in ("_local_scalar_dense", "_pin_memory"):
            self.forbidden.append(f"{name} on {sorted(devices)}")
        if is_launch(func):
            self.counts[name] += 1
        return result


class HostCalls(TorchFunctionMode):
    """Function mode that lists the calls that make a tensor of the host's values, or give the host a tensor's."""

    def __init__(self, *, skip_optimizers: bool) -> None:
        super().__init__()
        self._skip_optimizers = skip_optimizers
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in (*_FROM_THE_HOST, *_TO_THE_HOST):
            caller = sys._getframe(1).f_code.co_filename
            if not (self._skip_optimizers and "/torch/optim/" in caller):
                self.calls.append(f"{name} in {caller}")
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu(device: torch.device) -> Iterator[None]:
    """Take the paths of a GPU on `device`: torch's fused optimizers and those that can be recorded, and packs' own."""

    def devices(*_: Any, **__: Any) -> list[str]:
        return ["cuda", device.type]

    modules = (adam, adamax, adadelta, nadam, rmsprop)
    with ExitStack() as patches:
        for name in ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"):
            patches.enter_context(mock.patch.object(optimizer, name, devices))
        patches.enter_context(mock.patch.object(vmapped, "packs_convolutions", return_value=True))
        for module in modules:
            patches.enter_context(mock.patch.object(module, "_get_capturable_supported_devices", devices))
        yield


def launches_of(step: Callable[[], Any], *, skip_optimizers: bool = False) -> tuple[Counter[str], list[str]]:
    """Return how often a step launches each operation, and everything in it that a CUDA graph could not record.

    Args:
        step: function that runs the step.
        skip_optimizers: leave out what torch's optimizers do on a CPU, where they count their steps.
    """
    with Launches() as launches, HostCalls(skip_optimizers=skip_optimizers) as host:
        step()
    return launches.counts, launches.forbidden * (not skip_optimizers) + host.calls


class Tape(TorchDispatchMode):
    """CUDA graph of a CPU: it records the operations of a block, and does them again on the same memory.

    As a CUDA graph it bakes in every number that is no tensor. Unlike one it runs while it is recorded, so its first
    replay does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_launch(func):
            self._calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        for func, args, kwargs, result in self._calls if self.num_replays > 1 else ():
            for place, value in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if place is not value and isinstance(place, Tensor):
                    place.copy_(value)


@contextmanager
def made_up_graphs() -> Iterator[list[Tape]]:
    """Let `torch.cuda` make a `Tape` of each graph, and a stream of nothing; yield the tapes."""
    tapes: list[Tape] = []

    def graph() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    with ExitStack() as patches:
        for name, stub in {
            "CUDAGraph": graph,
            "graph": lambda tape, **_: tape,
            "Stream": mock.MagicMock(),
            "current_stream": mock.MagicMock(),
            "stream": mock.MagicMock(),
        }.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, stub))
        yield tapes
