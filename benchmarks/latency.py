"""Milliseconds a frame of 640x512: PyTorch, compiled PyTorch and every engine of a bundle, in turns within one run.

    python -m benchmarks.latency --bundle models/thermal_lite0.glmd
    python -m benchmarks.latency --bundle models/thermal_lite0.glmd --device cuda

Of each: the whole of `Detector.run` from an 8-bit frame to boxes, the network within it, and what is not the network.
Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import write_rows
from benchmarks.timing import Clock, Sample, Samples, in_turns, milliseconds, part, percentiles, pin, ratio, whole
from glmd_runtime import Detector, PreprocessSpec, RawOutputs, backends, open_bundle, postprocess, preprocess
from glmd_runtime.backends import Backend, Tensors
from glmd_runtime.bundle import Bundle
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import GlmdError
from glmd_runtime.postprocess import split_outputs
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import DEFAULT_SCORE, load_checkpoint
from glmd_train.evaluate import torch_predict

EAGER, COMPILED = "PyTorch eager", "torch.compile"
RUN, NETWORK, OUTSIDE = "run", "network", "outside"


class Subject(NamedTuple):
    """Something that turns a frame into detections; engine is "" for PyTorch; accuracy in points, if known."""

    name: str
    precision: str
    engine: str
    sample: Callable[[], Sample]
    accuracy: dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=25)
    given = options.parse_args()
    pin(given.threads)
    bundle, frame = open_bundle(given.bundle), example_frame(load_checkpoint(given.checkpoint).preprocess)
    found, missing = subjects(bundle, given.checkpoint, frame, given.threads, given.device)
    parts = {name: whole(run) for name, run in host_parts(bundle, frame).items()}
    samples = in_turns({**{one.name: one.sample for one in found}, **parts}, given.rounds)
    setup = {"frame_hw": list(frame.shape), "batch": 1, "threads": given.threads}
    rows = [{**row, **setup} for row in [*subject_rows(found, samples), *part_rows(parts, samples), *missing]]
    for row in rows:
        print(row["subject"], {key: row[key] for key in ("status", RUN, NETWORK, OUTSIDE, "faster") if key in row})
    command = f"python -m benchmarks.latency --bundle {given.bundle} --device {given.device} --threads {given.threads}"
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    print(write_rows(f"latency_{given.checkpoint.stem}", command, rows, device))


def example_frame(spec: PreprocessSpec) -> np.ndarray:
    """(512, 640) uint8 of a simulated scene with people and cars in it."""
    return np.asarray(spec.intensity(snapshot("ground", 5).image))


def subjects(
    bundle: Bundle, checkpoint: Path, frame: np.ndarray, threads: int, device: str
) -> tuple[list[Subject], list[dict[str, Any]]]:
    """What runs here, PyTorch first, and a row for each that does not."""
    found, missing = [torch_subject(EAGER, checkpoint, frame, device, lambda model: model)], []
    makers = [(COMPILED, "fp32", "", lambda: torch_subject(COMPILED, checkpoint, frame, device, torch.compile))]
    for engine, precision in bundle.manifest.engines.items():
        for name in backends.readers(engine):
            makers.append((f"{name} {engine}", precision, engine,
                           lambda e=engine, n=name: engine_subject(bundle, e, n, frame, threads, device)))
    for name, precision, engine, make in makers:
        try:
            subject = make()
            subject.sample()  # what cannot be compiled or run says so at the first call
            found.append(subject)
        except (GlmdError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0]
            missing.append(
                {"subject": name, "precision": precision, "engine": engine, "status": "not_run", "reason": why}
            )
    return found, missing


class Clocked(nn.Module):
    """A network that is timed."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.model, self.clock = model, clock

    def forward(self, images: Tensor, valid_hw: Tensor) -> Any:
        self.clock.start()
        raw = self.model(images, valid_hw)
        self.clock.stop()
        return raw


def torch_subject(
    name: str, path: Path, frame: np.ndarray, device: str, transform: Callable[[nn.Module], Any]
) -> Subject:
    clock = Clock(torch.cuda.synchronize if device == "cuda" else lambda: None)
    checkpoint = load_checkpoint(path)
    model = Clocked(transform(checkpoint.model.to(device)), clock)
    predict = torch_predict(replace(checkpoint, model=model), DEFAULT_SCORE)
    return Subject(name, "fp32", "", clocked(lambda: predict(frame), clock), {})


class ClockedBackend:
    """A backend that is timed; its answers are in host memory, so that it has done its work when it returns."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend, self._clock = backend, clock

    def run(self, inputs: Tensors) -> Tensors:
        self._clock.start()
        outputs = self._backend.run(inputs)
        self._clock.stop()
        return outputs

    def close(self) -> None:
        self._backend.close()


def accuracy(bundle: Bundle, engine: str, backend: str) -> dict[str, Any]:
    """In points, as the bundle's own verification measured them: means over its sets, and AP50 of each; else empty."""
    rows = [row for row in bundle.verify["rows"] if (row["engine"], row["backend"]) == (engine, backend)]
    sets = {row["stage"].split()[1]: row["metrics"] for row in rows if row["stage"].startswith("accuracy")}
    if not sets:
        return {}
    means = {key: round(sum(one[key] for one in sets.values()) / len(sets), 2) for key in ("ap", "ap50")}
    return {**means, "sets": {name: round(one["ap50"], 2) for name, one in sets.items()}}


def engine_subject(
    bundle: Bundle, engine: str, name: str, frame: np.ndarray, threads: int, device: str
) -> Subject:
    clock = Clock()
    backend = ClockedBackend(open_engine(bundle, engine, name, threads=threads, device=device), clock)
    detector = Detector(bundle.path / engine, backend=backend)
    precision, points = bundle.manifest.engines[engine], accuracy(bundle, engine, name)
    return Subject(f"{name} {engine}", precision, engine, clocked(lambda: detector.run(frame), clock), points)


def clocked(run: Callable[[], Any], clock: Clock) -> Callable[[], Sample]:
    """A call as a whole, the network within it by its clock, and the difference."""
    def sample() -> Sample:
        total = milliseconds(run)
        return {RUN: total, NETWORK: clock.ms, OUTSIDE: total - clock.ms}

    return sample


def host_parts(bundle: Bundle, frame: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What a Detector does beside the network, each alone; postprocessing as for the bundle's first reference frame."""
    manifest, reference = bundle.manifest, bundle.reference
    geometry = preprocess(reference.frames[0], manifest.preprocess)[1]
    raw: RawOutputs = split_outputs({n: getattr(reference, n)[:1] for n in ("boxes", "scores", "valid")})[0]
    return {
        "preprocess": lambda: preprocess(frame, manifest.preprocess),
        "postprocess": lambda: postprocess(raw, geometry, manifest.postprocess, manifest.class_names),
    }


def subject_rows(found: list[Subject], samples: Samples) -> list[dict[str, Any]]:
    eager = samples[EAGER]
    rows = []
    for one in found:
        own = samples[one.name]
        parts: dict[str, Any] = {name: percentiles(part(own, name)) for name in (RUN, NETWORK, OUTSIDE)}
        faster = {name: ratio(part(eager, name), part(own, name)) for name in (RUN, NETWORK)}
        share = ratio(part(own, OUTSIDE), part(own, RUN))
        named = {"subject": one.name, "precision": one.precision, "engine": one.engine, "status": "run"}
        rows.append({**named, **parts, "faster": faster, "outside_share": share, "accuracy": one.accuracy})
    return rows


def part_rows(parts: dict[str, Any], samples: Samples) -> list[dict[str, Any]]:
    return [
        {"subject": name, "precision": "fp32", "engine": "", "status": "run", RUN: percentiles(part(samples[name]))}
        for name in parts
    ]


if __name__ == "__main__":
    main()
