"""Numerical settings of the CPU or the GPU: precision, MKL's kernels, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast context of a recipe's precision; `auto` is bfloat16 if the hardware computes in it."""
    bfloat16 = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


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
