"""What a process holds: memory, threads, open files."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from benchmarks.soak import resident

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """memory: MiB, as in `used`; threads: of Python and of libraries; files: open files, sockets and pipes."""

    memory: float
    threads: int
    files: int


def held() -> Held:
    """What this process holds now, as Linux says it."""
    return Held(used(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


def used() -> float:
    """MiB of resident memory in use: what is garbage, or free and not yet given back to the system, does not count."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    return resident()


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in a process of its own, which has no memory and no threads of what ran before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()
