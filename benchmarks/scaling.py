"""How a frame's time grows with the work: proposals, pixels, cameras.

    python -m benchmarks.scaling

Each number of proposals and each canvas is an export of the same weights; cameras share one engine in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import write_rows
from benchmarks.latency import example_frame
from benchmarks.proposals import network_inputs
from benchmarks.timing import in_turns, part, percentiles, pin, whole
from glmd_export.onnx_export import export_onnx
from glmd_runtime import Detector, backends
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_train.checkpoint import Checkpoint, load_checkpoint, reshape

BACKEND = "openvino"
PROPOSALS = (50, 100, 150, 200, 300)
CANVASES = ((256, 320), (384, 480), (512, 640), (768, 960))
STREAMS = (1, 2, 3, 4)
FRAMES = 25  # of each camera


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    pin(given.threads)
    checkpoint = load_checkpoint(given.checkpoint)
    frame = example_frame(checkpoint.preprocess)
    models = {("proposals", str(n)): reshape(checkpoint, proposals=n) for n in PROPOSALS}
    models |= {("pixels", f"{w}x{h}"): reshape(checkpoint, size_hw=(h, w)) for h, w in CANVASES}
    taken = growing_models(models, frame, given.threads, given.rounds)
    rows = [row(*key, "fp32", f"{BACKEND} model.onnx", values, given.threads) for key, values in taken.items()]
    with Detector(given.bundle, threads=given.threads) as detector:
        info = detector.info()
        for count in STREAMS:
            values = cameras(detector, frame, count)
            engine = f"{info['backend']} {info['engine']}"
            rows.append(row("cameras", str(count), info["precision"], engine, values, given.threads))
    for one in rows:
        print(one)
    command = f"python -m benchmarks.scaling --bundle {given.bundle} --threads {given.threads}"
    print(write_rows(f"scaling_{given.checkpoint.stem}", command, rows))


def row(grows: str, to: str, precision: str, engine: str, values: Sequence[float], threads: int) -> dict[str, Any]:
    named = {"grows": grows, "subject": to, "engine": engine}
    return {**named, "precision": precision, "batch": 1, "threads": threads, "run": percentiles(values)}


def growing_models(
    models: dict[tuple[str, str], Checkpoint], frame: np.ndarray, threads: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of the network of each, all in turns."""
    subjects = {}
    with tempfile.TemporaryDirectory() as scratch:
        for (grows, to), checkpoint in models.items():
            model = export_onnx(checkpoint, Path(scratch) / f"{grows}{to}.onnx")
            engine = backends.load(BACKEND, model, threads)
            subjects[grows, to] = whole(partial(engine.run, network_inputs(frame, checkpoint)))
        return {key: part(samples) for key, samples in in_turns(subjects, rounds).items()}


def cameras(detector: Detector, frame: np.ndarray, count: int) -> list[float]:
    """Milliseconds from result to result of one of `count` cameras that always have a frame ready."""
    arrived: list[float] = []
    sources = [Source(f"camera {i}", 30.0, FRAMES, iter(_frames(frame))) for i in range(count)]

    def on_result(result: Any) -> None:
        if result.stream == sources[0].name:
            arrived.append(perf_counter())

    with Pipeline(sources, detector, on_result=on_result) as pipeline:
        pipeline.run()
    return list(1000 * np.diff(arrived[1:]))  # the first ones find the others starting


def _frames(frame: np.ndarray) -> list[Frame]:
    """The scene moved by a pixel a frame: one that stands still is a closed shutter's."""
    return [Frame(np.roll(frame, i, axis=1), i, i / 30) for i in range(FRAMES)]


if __name__ == "__main__":
    main()
