"""How the CPU or the GPU computes: precision, MKL's kernels, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a recipe's precision; `auto` is bfloat16 only where the hardware computes in it."""
    bfloat16 = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is arithmetic here and not emulation, which is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_kernels() -> None:
    """Call every function that MKL computes for us once, in one thread.

    MKL chooses a function's kernel at its first call. When two threads make that call at once, one of them may compute
    its share with a less exact kernel (pytorch/pytorch#188792): the same seed then gives other bits, once in a while.
    """
    for function in (torch.sqrt, torch.tanh, torch.cos, torch.sin):
        function(torch.ones(1))


def keep_memory() -> None:
    """Have glibc keep what a step frees, which the next one needs.

    It gives the end of its heap back to the system, which then has to clear the pages again, when more than twice the
    largest block that was ever freed is free: so until the first large one is, at every step, and two epochs of the
    standard recipe cost 990,000 page errors. This one is never touched and costs nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # of more than 32 MB glibc takes no note
