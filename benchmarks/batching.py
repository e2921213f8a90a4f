"""Whether it pays to give a graph the frames of several streams at once: milliseconds a frame, by batch and engine.

    python -m benchmarks.batching --batches 1 2 4

Each bundle gets as many frames as it takes, and one alone, which costs it a whole call; the settings take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import conditions, write
from glmd_runtime import Detector, backends
from glmd_runtime.video.simulator import snapshot

ENGINES = ("openvino", "onnxruntime")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    engines = [name for name in ENGINES if name in backends.available()]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        bundles = {batch: export(given.checkpoint, batch, Path(scratch)) for batch in given.batches}
        detectors = {
            (name, batch): stack.enter_context(Detector(bundle, backend=name, threads=given.threads))
            for name in engines for batch, bundle in bundles.items()
        }
        rows = measure(detectors, given.rounds)
    for row in rows:
        print(row)
    batches = " ".join(map(str, given.batches))
    command = f"python -m benchmarks.batching --batches {batches} --threads {given.threads} --rounds {given.rounds}"
    setup = {"checkpoint": given.checkpoint.stem, "precision": "fp32", "threads": given.threads}
    print(write("batching", {**conditions(command), **setup, "rows": rows}))


def export(checkpoint: Path, batch: int, folder: Path) -> Path:
    bundle = folder / f"batch{batch}.glmd"
    call = "import sys; from glmd_export.cli import main; sys.exit(main())"
    arguments = ["--ckpt", checkpoint, "--batch", batch, "--engines", "onnxruntime", "-o", bundle]
    subprocess.run([sys.executable, "-c", call, *map(str, arguments)], check=True)
    return bundle


def measure(detectors: dict[tuple[str, int], Detector], rounds: int) -> list[dict[str, object]]:
    """Medians over the rounds, of which a first one warms up."""
    frames = [np.asarray(snapshot("ground", seed).image) for seed in range(max(batch for _, batch in detectors))]
    times: dict[tuple[str, int, int], list[float]] = {}
    for number in range(rounds + 1):
        for (name, batch), detector in detectors.items():
            for count in sorted({1, batch}):
                detector.run_all(frames[:count])  # the threads of the one before still spin
                spent = milliseconds(detector, frames[:count])
                if number:
                    times.setdefault((name, batch, count), []).append(spent / count)
    return [
        {"engine": name, "batch": batch, "frames": count, "ms_a_frame": round(statistics.median(ms), 2)}
        for (name, batch, count), ms in times.items()
    ]


def milliseconds(detector: Detector, frames: list[NDArray[np.uint16]]) -> float:
    start = time.perf_counter()
    detector.run_all(frames)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
