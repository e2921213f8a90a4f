"""Milliseconds a frame of one bundle: the network alone and `Detector.run` from frame to boxes, engines and PyTorch
in turns within one run, so that what else the machine does meets all alike.

    python -m benchmarks.latency --bundle models/thermal_lite0.glmd --checkpoint models/thermal_lite0.safetensors
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import conditions, write
from glmd_runtime import Detector, backends, preprocess
from glmd_runtime.bundle import open_bundle
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import load_checkpoint
from glmd_train.evaluate import torch_predict


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=20)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    frame = np.asarray(snapshot("ground", 5).image)
    subjects = {**torch_subjects(given.checkpoint, frame), **bundle_subjects(given.bundle, given.threads, frame)}
    rows = measure(subjects, given.rounds)
    for name, row in rows.items():
        print(f"{name:28s} median {row['median_ms']:7.1f} ms   fastest {row['fastest_ms']:7.1f} ms")
    command = f"python -m benchmarks.latency --bundle {given.bundle} --checkpoint {given.checkpoint}"
    setup = {"frame_hw": list(frame.shape), "batch": 1, "precision": "fp32", "threads": given.threads}
    eager = rows["pytorch Detector.run"]["median_ms"]
    ratios = {name: round(eager / row["median_ms"], 2) for name, row in rows.items() if name.endswith("Detector.run")}
    report = {**conditions(command), **setup, "rows": rows, "times_faster_than_pytorch": ratios}
    print(write(f"latency_{given.bundle.stem}", report))


def torch_subjects(path: Path, frame: np.ndarray) -> dict[str, Callable[[], Any]]:
    checkpoint = load_checkpoint(path)
    predict = torch_predict(checkpoint)
    image, geometry = preprocess(frame, checkpoint.preprocess)
    inputs = torch.from_numpy(image)[None], torch.tensor([geometry.valid_hw], dtype=torch.float32)

    def network() -> Any:
        with torch.inference_mode():
            return checkpoint.model(*inputs)

    return {"pytorch network": network, "pytorch Detector.run": lambda: predict(frame)}


def bundle_subjects(path: Path, threads: int, frame: np.ndarray) -> dict[str, Callable[[], Any]]:
    subjects: dict[str, Callable[[], Any]] = {}
    bundle = open_bundle(path)
    image, geometry = preprocess(frame, bundle.manifest.preprocess)
    inputs = {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}
    for name in backends.available():
        backend = backends.load(name, path / "model.onnx", threads)
        subjects[f"{name} network"] = partial(backend.run, inputs)
        subjects[f"{name} Detector.run"] = partial(Detector(path, backend=name, threads=threads).run, frame)
    return subjects


def measure(subjects: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Every subject three times a round, the first not counted: the threads of the subject before it still spin then.
    The first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds + 1):
        for name, run in subjects.items():
            run()
            times[name] += [_milliseconds(run) for _ in range(2)]
    kept = {name: values[2:] for name, values in times.items()}
    return {
        name: {"median_ms": round(statistics.median(v), 2), "fastest_ms": round(min(v), 2)} for name, v in kept.items()
    }


def _milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
