"""What a training asks of the machine that it runs on."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int
_LARGEST_ONCE = 2**25  # of glibc's mmap threshold before it accepted any; one that is refused stays at 128 KiB for good


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees, for the next one.

    glibc hands large blocks back at once, and the system clears every page of them again, which is a good part of a
    training step's time on a CPU. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        if not mallopt(_M_MMAP_THRESHOLD, _LARGEST):
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_ONCE)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def compute_in_halves(*parts: nn.Module) -> None:
    """Have parts of a network, maps -> maps, train in bfloat16; weights and what they give stay float32.

    Of a detector these are the trunk and res5, where the time goes. Not Fabric's mixed precision: that has scores and
    boxes rounded as well, and of `losses` it is unaware in a run of one process.
    """
    for part in parts:
        part.forward = partial(_in_halves, part, part.forward)  # type: ignore[method-assign]


def _in_halves(part: nn.Module, forward: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    with torch.autocast(maps.device.type, torch.bfloat16, enabled=part.training):
        return forward(maps).float()
