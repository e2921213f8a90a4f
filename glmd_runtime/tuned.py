"""What a bundle says of the machine that it was tuned for, and which machine this is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmd_runtime.files.values import each, number, text, whole


@dataclass(frozen=True)
class TunedSpec:
    """How a bundle runs best on one machine, as `glmd-tune` measured it there.

    machine    `this_machine()` of then; on another one nothing of this is followed
    engine     file of the bundle, and the backend that runs it
    threads    CPU threads of the backend; None leaves it to the library
    budget_ms  milliseconds that a frame was allowed to take
    median_ms, p90_ms  milliseconds that it took, from frame to boxes
    ap, ap50   0..1, the mean over the sets of `data`
    """

    machine: str
    engine: str
    backend: str
    threads: int | None
    budget_ms: float
    median_ms: float
    p90_ms: float
    ap: float
    ap50: float
    data: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, or None; got {self.threads}")

    @property
    def here(self) -> bool:
        """Whether it speaks of this machine."""
        return self.machine == this_machine()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "data": list(self.data)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TunedSpec:
        """Raises: KeyError, TypeError or ValueError for values that `to_dict` does not give."""
        read: dict[str, Any] = {key: text(values[key]) for key in ("machine", "engine", "backend")}
        read |= {key: number(values[key], 0) for key in ("budget_ms", "median_ms", "p90_ms", "ap", "ap50")}
        threads = None if values["threads"] is None else whole(values["threads"], 1, 4096)
        return cls(**{**values, **read, "threads": threads, "data": each(text, values["data"])})


def this_machine() -> str:
    """Processor and cores, as in "AMD EPYC, 2 cores"."""
    return f"{processor()}, {cores()} cores"


def processor() -> str:
    """Its model, or that of the board that it is on, where the system tells; else its architecture."""
    info, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    if board.exists():
        models.append(board.read_text().strip("\0 \n"))
    return next(filter(None, models), platform.machine())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
