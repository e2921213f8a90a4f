"""What a training asks of the machine that it runs on."""

from __future__ import annotations

import ctypes

import torch

from glmd_train.config import Precision

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees, for the next one.

    glibc hands large blocks back at once, and the system clears every page of them again: a fifth to a third of a
    training step's time on a CPU. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def fast_precision() -> Precision:
    """What a step takes least time in: bfloat16 where the CPU multiplies it. A GPU was not tried."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16-mixed" if supported and not torch.cuda.is_available() else "32-true"
