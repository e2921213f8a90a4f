"""Milliseconds of a call, of several things in turns, so that what else the machine does meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key")
Runs = Mapping[Key, Callable[[], Any]]


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call."""

    median_ms: float
    p90_ms: float
    fastest_ms: float

    def to_dict(self) -> dict[str, float]:
        return {key: round(value, 2) for key, value in vars(self).items()}


def measure(runs: Runs[Key], rounds: int, *, step: Callable[[int], None] = lambda _: None) -> dict[Key, Latency]:
    """Each one three times a round, the first not counted: the threads of the one before it still spin then.

    One more round comes first, as a warm-up. Args: step, told the number of each round as it begins.
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        step(number)
        for key, run in runs.items():
            run()
            times[key] += [_milliseconds(run) for _ in range(2)]
    return {key: _latency(values[2:]) for key, values in times.items()}


def _milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _latency(times: list[float]) -> Latency:
    return Latency(float(np.median(times)), float(np.quantile(times, 0.9)), min(times))
