"""What a process pays before its first boxes: import, opening a bundle, the first frame; and its peak memory.

    python -m benchmarks.startup --bundle models/thermal_lite0.glmd

Every sample is a process of its own; files are in the system's cache, as on a device that ran before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_rows
from benchmarks.latency import example_frame
from benchmarks.timing import percentiles, pin
from glmd_runtime import backends, open_bundle

FRAMES = 20
IMPORT = """
import time
began = time.perf_counter()
import glmd_runtime
print('{"import": %f}' % (1000 * (time.perf_counter() - began)))
"""
# VmHWM, as ru_maxrss begins with what the parent had.
FRAMES_OF_A_FRESH_PROCESS = """
import json, sys, time
import numpy as np
frame = np.load(sys.argv[1])
from glmd_runtime import Detector
times = [time.perf_counter()]
detector = Detector(sys.argv[2], backend=sys.argv[3], threads=int(sys.argv[4]))
times.append(time.perf_counter())
detector.run(frame)
times.append(time.perf_counter())
for _ in range(int(sys.argv[5]) - 1):
    detector.run(frame)
opened, first = (1000 * (b - a) for a, b in zip(times, times[1:]))
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
peak = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps({"open": opened, "first": first, "first_frame": opened + first, "peak_mib": peak}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    pin(given.threads)
    bundle = open_bundle(given.bundle)
    calls: dict[str, list[Any]] = {"import glmd_runtime": [IMPORT]}
    precisions = {"import glmd_runtime": ""}
    with tempfile.TemporaryDirectory() as scratch:
        frame = Path(scratch) / "frame.npy"
        np.save(frame, example_frame(bundle.manifest.preprocess))
        for engine, precision in bundle.manifest.engines.items():
            for backend in [name for name in backends.readers(engine) if name in backends.available()]:
                name = f"{backend} {engine}"
                calls[name] = [FRAMES_OF_A_FRESH_PROCESS, frame, given.bundle / engine, backend, given.threads, FRAMES]
                precisions[name] = precision
        samples = in_processes(calls, given.rounds)
    rows = [
        {"subject": name, "precision": precisions[name], "batch": 1, "threads": given.threads, **summary(samples[name])}
        for name in calls
    ]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.startup --bundle {given.bundle} --threads {given.threads}"
    print(write_rows(f"startup_{bundle.manifest.name}", command, rows))


def in_processes(calls: dict[str, list[Any]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Code and its arguments, in turns; a first round fills the caches."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, (code, *arguments) in calls.items():
            command = [sys.executable, "-c", code, *map(str, arguments)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if number:
                samples[name].append(json.loads(said.splitlines()[-1]))
    return samples


def summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Percentiles of every time; of memory the largest peak."""
    times = {name: percentiles([one[name] for one in samples]) for name in samples[0] if name != "peak_mib"}
    peak = max(one.get("peak_mib", 0.0) for one in samples)
    return {**times, **({"peak_mib": round(peak, 1)} if peak else {})}


if __name__ == "__main__":
    main()
