"""How a live source lasts: a day of an unsteady camera by a fast clock, or hours against a real server that is cut.

    python -m benchmarks.soak                       a simulated day at 30 frames a second, in minutes
    python -m benchmarks.soak --source rtsp://127.0.0.1:8554/camera --minutes 60

Prints a line every so often: frames, drops by cause, states, resident memory; at its end the growth of that memory.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from glmd_runtime.video.live import LiveSource
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import open_source
from glmd_runtime.video.status import Status
from tests.streams.cameras import FastClock, ScriptedCamera, unsteady

STEADY = 0.1  # the share of a run after which memory should grow no more


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", help="a real camera (default: the simulated day)")
    options.add_argument("--minutes", type=float, default=60, help="how long a real camera is read (default: 60)")
    options.add_argument("--hours", type=float, default=24, help="how long the simulated day is (default: 24)")
    options.add_argument("--fps", type=int, default=30, help="of the simulated day (default: 30)")
    given = options.parse_args()
    if given.source:
        soak_camera(given.source, given.minutes * 60)
    else:
        soak_day(given.hours, given.fps)


def soak_day(hours: float, fps: int) -> None:
    clock, states = FastClock(), Counter[str]()
    camera = ScriptedCamera(*unsteady(hours, fps, random.Random(0), (120, 160)), clock=clock, fps=fps)
    listen = partial(_count, states)
    with LiveSource(camera, policy="every", clock=clock, on_status=listen) as source:
        report(source, states, clock.now, hours * 3600)


def soak_camera(uri: str, seconds: float) -> None:
    states = Counter[str]()
    with open_source(uri, on_status=partial(_count, states)) as source:
        began = time.monotonic()
        report(source, states, lambda: time.monotonic() - began, seconds)


def _count(states: Counter[str], status: Status) -> None:
    states[status.state] += 1


def report(source: Source, states: Counter[str], now: Any, seconds: float) -> None:
    """Read until `seconds` have passed; a line every tenth."""
    began, memory = time.monotonic(), list[tuple[float, float]]()
    for count, _ in enumerate(source, 1):
        if now() < seconds * STEADY * (len(memory) + 1) and now() < seconds:
            continue
        memory.append((now(), resident()))
        drops = ", ".join(f"{number} {cause}" for cause, number in source.drops.items())
        print(f"{now() / 3600:6.2f} h  {count} frames  {drops}  {dict(states)}  {memory[-1][1]:.1f} MiB", flush=True)
        if now() >= seconds:
            break
    grown = memory[-1][1] - memory[0][1] if len(memory) > 1 else float("nan")
    print(f"grew by {grown:.1f} MiB after the first tenth; took {time.monotonic() - began:.0f} s")


def resident() -> float:
    """This process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
