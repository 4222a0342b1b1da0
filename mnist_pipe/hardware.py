"""The CPUs and GPUs of this machine: how many there are to compute with, and why a GPU cannot be used."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from pathlib import Path

from mnist_pipe.errors import UnavailableError, one_line

HIDDEN = ("", "-1")
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU."""
_DRIVERS = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))  # Linux's, and that of WSL2
_BUILDS = {13: "cu130", 12: "cu126"}
"""PyTorch's index for a driver, by the major version of CUDA; each index has the versions of torch that we lock."""


def num_cpus() -> int:
    """Return the number of CPU cores that this process may use, by its affinity and the quota of its container.

    Where joblib is not installed, the quota is not known.
    """
    try:
        from joblib import cpu_count  # its import takes 0.3 s
    except ImportError:
        return len(os.sched_getaffinity(0))
    found: int = cpu_count()
    return found


def limit_threads() -> None:
    """Let torch use at most as many threads in this process as it may use CPUs; torch itself ignores a quota."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), num_cpus()))


def num_gpus() -> int:
    """Return the number of GPUs that torch can use in this process: the number that Ray is told.

    Ray itself counts the devices of the driver, whether torch can use them or not.
    """
    if driver_cuda() is None:  # saves the second that importing torch takes
        return 0
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `check_gpus` reports why there are none
        # The count alone would be the driver's too.
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest version of CUDA that the NVIDIA driver supports, `(0, 0)` if unknown; None without a driver."""
    if not any(path.exists() for path in _DRIVERS):
        return None
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0, 0
    return version.value // 1000, version.value % 1000 // 10


def check_gpus() -> str:
    """Check that torch can use this machine's GPUs, and return what it uses, as text.

    A build of torch without CUDA is no error, because somebody chose it; the text then has the command for another.

    Raises:
        UnavailableError: torch is built with CUDA, but the driver is too old for it, or the devices do not start, or
            CUDA_VISIBLE_DEVICES names none of them.
    """
    driver, visible = driver_cuda(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver is None:
        return "no NVIDIA driver: the CPUs compute"
    import torch

    if visible in HIDDEN:
        return f"hidden by CUDA_VISIBLE_DEVICES={visible}: the CPUs compute"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: the CPUs compute; with CUDA: {_install(driver)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
            return f"{len(names)} x {names[0]}, torch {torch.__version__}"
    if driver[0] < int(torch.version.cuda.partition(".")[0]):
        rule, got = f"support CUDA {torch.version.cuda}, as torch {torch.__version__} needs", ".".join(map(str, driver))
        raise UnavailableError.invalid("gpu", "the NVIDIA driver", rule, got=got, fix=_remedy(driver))
    if visible is not None:
        rule, fix = "name GPUs of this machine", "correct it, or unset it"
        raise UnavailableError.invalid("gpu", "CUDA_VISIBLE_DEVICES", rule, got=repr(visible), fix=fix)
    cause = one_line(caught[0].message) if caught else "torch finds none"
    fix = "set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs"
    raise UnavailableError.unreachable("the NVIDIA driver", where="gpu", cause=cause, fix=fix)


def check_gpus_of_ray(number: int, *, where: str) -> None:
    """Check that torch can use the GPUs that Ray counts on this machine.

    Args:
        number: the number of GPUs by Ray's count.
        where: the address of this machine, for the message.

    Raises:
        UnavailableError: it can use none, or fewer.
    """
    found = num_gpus()
    if found >= number:
        return
    import torch

    fix = f"start Ray there with --num-gpus {found}"
    if not found:
        fix += f", or {_install(driver_cuda() or (0, 0))}"
    got = f"{found} that torch {torch.__version__} can use"
    raise UnavailableError.invalid(where, "the GPUs", f"be {number}, as Ray counts them", got=got, fix=fix)


def _remedy(driver: tuple[int, int]) -> str:
    return f"{_install(driver)}, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPUs"


def _install(driver: tuple[int, int]) -> str:
    """Return the remedy that gives torch a build for this driver."""
    build = _BUILDS.get(min(driver[0], max(_BUILDS)))
    if build is None:
        return "update the NVIDIA driver"
    import torch

    version = f"{torch.__version__.partition('+')[0]}+{build}"
    index = f"https://download.pytorch.org/whl/{build}"
    return f"run: {sys.executable} -m pip install torch=={version} --index-url {index}"


def cpu_name() -> str:
    """Return the model name of the CPU from `/proc/cpuinfo`, or as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
