"""Accuracy against latency: what is worth having, and which of it a budget buys."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glmd_export.tuning.latency import Latency

Shape = tuple[int, tuple[int, int]]  # of a graph: proposals, size_hw

# Of two settings whose AP (0..1) is no further apart than this the faster one is taken: a change of library costs as
# much (accuracy.MAX_DROP).
AP_NOISE = 0.002


@dataclass(frozen=True)
class Setting:
    """One way to run a checkpoint's weights.

    proposals  R, that the graph keeps of an image
    size_hw    (height, width) of the canvas in pixels
    engine     file of the bundle, with its precision, and the backend that runs it
    threads    CPU threads of the backend; None leaves it to the library
    """

    proposals: int
    size_hw: tuple[int, int]
    precision: str
    engine: str
    backend: str
    threads: int | None

    @property
    def shape(self) -> Shape:
        return self.proposals, self.size_hw

    @property
    def network(self) -> tuple[Hashable, ...]:
        """What AP depends on. Not threads, and the library only in INT8, to which each rounds in its own way."""
        rounding = self.engine if self.precision == "int8" else self.precision
        return *self.shape, rounding

    def __str__(self) -> str:
        threads = f", threads {self.threads}" if self.threads else ""
        h, w = self.size_hw
        return f"R {self.proposals}, {h}x{w}, {self.precision} on {self.backend}{threads}"


@dataclass(frozen=True)
class Candidate:
    """A setting with what it costs and gives; AP and AP50 in 0..1, the mean over the sets."""

    setting: Setting
    latency: Latency
    ap: float
    ap50: float

    def to_dict(self) -> dict[str, Any]:
        setting = {**asdict(self.setting), "size_hw": list(self.setting.size_hw)}
        return {**setting, **self.latency.to_dict(), "ap": round(self.ap, 4), "ap50": round(self.ap50, 4)}


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is at least as good as `other` in both median latency and AP, and better in one of them."""
    a, b = (one.latency.median_ms, -one.ap), (other.latency.median_ms, -other.ap)
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing dominates, the fastest first."""
    best = [c for c in candidates if not any(dominates(other, c) for other in candidates)]
    return sorted(best, key=lambda c: c.latency.median_ms)


def choose(candidates: Sequence[Candidate], budget_ms: float) -> Candidate | None:
    """The most accurate within the budget (median), or a faster one that is less accurate by no more than AP_NOISE.

    Returns: None where nothing is within the budget; else one that no other dominates.
    """
    within = [c for c in candidates if c.latency.median_ms <= budget_ms]
    least = max((c.ap for c in within), default=0.0) - AP_NOISE
    alike = [c for c in within if c.ap >= least]
    return min(alike, key=lambda c: (c.latency.median_ms, -c.ap), default=None)
