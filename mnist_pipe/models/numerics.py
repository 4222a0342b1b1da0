"""Numerical settings of the CPU or the GPU: precision, MKL's kernels, memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

_PRODUCTS = threading.RLock()  # the settings of cuDNN and cuBLAS are those of the process, and not of a thread


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return torch's autocast to bfloat16 if that is a recipe's precision, else a context that does nothing."""
    if resolved(precision, device) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def resolved(precision: str, device: torch.device) -> str:
    """Return the precision itself, and what `auto` stands for on the device.

    On a CPU it is bfloat16, if the CPU computes in it, else float32. On a GPU it is tf32: bfloat16 adds some 20 casts
    to a step that waits for the launch of each operation. That is reasoned and not measured, because no GPU was
    available.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "tf32"
    return "bfloat16" if computes_bfloat16(device) else "float32"


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply float32 on a GPU within the block as the precision says, and in the same way each time.

    By default cuDNN's convolutions round float32 to TF32, which has 10 bits, and take algorithms that add in any order.
    Here only `tf32` rounds, and the same inputs give the same bits, so that a run which resumes is the one that was
    never stopped. On a CPU, float32 is float32.
    """
    if device.type != "cuda":
        yield
        return
    is_tf32 = resolved(precision, device) == "tf32"
    with _PRODUCTS:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=is_tf32):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_kernels() -> None:
    """Call once, in one thread, every function for which PyTorch uses MKL here, so that results are reproducible.

    MKL chooses a function's kernel at its first call. If two threads make that call at the same time, one of them may
    compute its share with a less exact kernel (pytorch/pytorch#188792), so the same seed occasionally gives other bits.
    """
    for function in (torch.sqrt, torch.tanh, torch.cos, torch.sin):
        function(torch.ones(1))


def keep_memory() -> None:
    """Make glibc keep the memory that a step frees, because the next step needs it again.

    glibc returns the end of its heap to the system when more than twice the largest block that was ever freed is free,
    and the system must then clear the pages again. Until a large block has been freed, that happens at every step: two
    epochs of the standard recipe caused 990,000 page faults. The block that is freed here is never written to, so it
    costs nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # glibc ignores blocks of more than 32 MB here
