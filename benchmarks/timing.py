"""Subjects in turns within one run, A B A B, so that what else the machine does meets all alike; ratios by pairs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

Sample = dict[str, float]  # milliseconds of one call, by part
Samples = dict[str, list[Sample]]  # by subject; those of one index were taken in one round
WHOLE = "ms"


def pin(threads: int) -> None:
    """Keep this process on its first cores, and PyTorch and OpenCV to as many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


class Clock:
    """Milliseconds between `start` and `stop`. wait: what ends when the device has done its work."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.ms, self._began, self._wait = 0.0, 0.0, wait

    def start(self) -> None:
        self._wait()
        self._began = time.perf_counter()

    def stop(self) -> None:
        self._wait()
        self.ms = 1000 * (time.perf_counter() - self._began)


def milliseconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def whole(run: Callable[[], Any]) -> Callable[[], Sample]:
    """A subject of which nothing but the whole call is timed."""
    return lambda: {WHOLE: milliseconds(run)}


def in_turns(subjects: Mapping[str, Callable[[], Sample]], rounds: int) -> Samples:
    """Every subject three times a round, the first not counted: the threads of the subject before it still spin then.

    A round before the counted ones warms up.
    """
    taken: Samples = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, sample in subjects.items():
            calls = [sample() for _ in range(3)]
            taken[name] += calls[1:] if number else []
    return taken


def part(samples: Sequence[Sample], name: str = WHOLE) -> list[float]:
    return [sample[name] for sample in samples]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The usual, the slow and the slowest calls, and the fastest."""
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    named = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "fastest_ms": min(values)}
    return {name: round(float(value), 3) for name, value in named.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times as fast, call by call of one round: the median, and what eight in ten lie between."""
    p10, p50, p90 = np.percentile(np.divide(slow, fast), (10, 50, 90))
    return {"median": round(float(p50), 3), "p10": round(float(p10), 3), "p90": round(float(p90), 3)}


def measure(subjects: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and fastest whole call of each subject."""
    taken = in_turns({name: whole(run) for name, run in subjects.items()}, rounds)
    figures = {name: percentiles(part(samples)) for name, samples in taken.items()}
    return {name: {"median_ms": f["p50_ms"], "fastest_ms": f["fastest_ms"]} for name, f in figures.items()}
