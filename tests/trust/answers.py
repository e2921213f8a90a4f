"""The same answers whoever asks: in many threads, in two processes, while the detector is closed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np

from glmd_runtime import Detections, Detector, GlmdError
from glmd_runtime.backends import load, run_padded
from glmd_runtime.bundle import open_bundle
from glmd_runtime.video.sources import open_source
from tests.resources import apart
from tests.trust.parts import BrokenPromiseError, Figures, Form, require

SHIPPED = Path(__file__).parents[2] / "models" / "thermal_lite0.glmd"
ENGINES = (("onnxruntime", "model.onnx"), ("openvino", "openvino.fp32.xml"), ("openvino", "openvino.int8.xml"))
THREADS = 16


def pictures() -> list[np.ndarray]:
    """Thermal scenes of several sizes: 16-bit counts, 8-bit and colour."""
    scenes = []
    for seed, size in enumerate(("640x512", "320x256", "512x640", "250x130")):
        with open_source(f"sim://{'air' if seed % 2 else 'ground'}?seed={seed}&size={size}&frames=1") as source:
            scenes += [frame.image for frame in source]
    grey = [(255.0 * (s - s.min()) / np.ptp(s)).astype(np.uint8) for s in scenes]
    return [*scenes, *grey[:2], np.dstack([grey[2]] * 3)]


def same(one: Detections, other: Detections) -> bool:
    """To the bit."""
    mine, theirs = ((d.xyxy, d.scores, d.class_ids) for d in (one, other))
    return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def threads(form: Form) -> Figures:
    each, tiled = (1, ENGINES[-1:]) if form == "short" else (len(pictures()), ENGINES)
    figures = {f"{name} {engine}": apart(_threads, name, engine, each, None) for name, engine in ENGINES}
    tiles = {f"{name} {engine} in tiles": apart(_threads, name, engine, each, (2, 1)) for name, engine in tiled}
    return {"frames_compared": sum((figures | tiles).values()), "cases": len(figures | tiles), "different": 0}


def _threads(backend: str, engine: str, each: int, tiles: Sequence[int] | None) -> int:
    """How many frames were run in threads that began at once, `each` in every one."""
    frames, start = pictures(), Barrier(THREADS)
    with Detector(SHIPPED / engine, backend=backend, tiles=tiles, score_threshold=0.05) as one:
        alone = [one.run(frame) for frame in frames]
        require(sum(map(len, alone)) > 0, "Nothing was found, so nothing can be compared")

        def work(number: int) -> int:
            start.wait()
            turns = [(number + i) % len(frames) for i in range(each)]
            return sum(same(one.run(frames[turn]), alone[turn]) for turn in turns)

        with ThreadPoolExecutor(THREADS) as pool:
            right = sum(pool.map(work, range(THREADS)))
    require(right == THREADS * each, f"{engine}: {THREADS * each - right} of {THREADS * each} answers differ")
    return right


def close_race(form: Form) -> Figures:
    rounds = 1 if form == "short" else 30
    done = [apart(_close_race, backend, engine, rounds) for backend, engine in ENGINES]
    answered = {"answers_before_the_close": sum(done), "different": 0}
    return {"engines": len(ENGINES), "rounds": rounds * len(ENGINES), **answered}


def _close_race(backend: str, engine: str, rounds: int) -> int:
    """How many right answers came before each thread was told that the detector is closed."""
    frame = pictures()[1]
    with Detector(SHIPPED / engine, backend=backend) as one:
        alone = one.run(frame)
    return sum(_closed_at_once(Detector(SHIPPED / engine, backend=backend), frame, alone) for _ in range(rounds))


def _closed_at_once(one: Detector, frame: np.ndarray, expected: Detections) -> int:
    """Threads run until they hear that it is closed, each fourth one closes it after its first answer."""

    def work(number: int) -> int:
        for done in range(1_000):
            try:
                found = one.run(frame)
            except GlmdError as error:
                require("closed" in str(error), f"Expected to hear that the detector is closed; got: {error}")
                return done
            require(same(found, expected), "An answer beside a close differs")
            if number % 4 == 0:
                one.close()
        raise BrokenPromiseError("The detector runs on though it is closed")

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def two_processes(form: Form) -> Figures:
    """Two processes of each number of threads, and all of these numbers: the same bits."""
    counts = (1,) if form == "short" else (1, 2, 3, 4)
    for backend, engine in ENGINES:
        first = apart(_answers, backend, engine, counts[0])
        for count in (*counts, *counts[1:]):  # of the first number there is one already
            other = apart(_answers, backend, engine, count)
            said = f"{engine} on {backend}: {counts[0]} and {count} threads, in two processes, differ by"
            require(_bits(first) == _bits(other), f"{said} {_difference(first, other)}")
    return {"threads": list(counts), "engines": len(ENGINES), "different": 0}


Answers = dict[str, np.ndarray]


def _answers(backend: str, engine: str, count: int) -> Answers:
    """What the graph says of the bundle's reference frames, and the detections of other frames, as arrays by name."""
    bundle = open_bundle(SHIPPED)
    loaded = load(backend, SHIPPED / engine, threads=count)
    raw = run_padded(loaded, 1, {"images": bundle.reference.images, "valid_hw": bundle.reference.valid_hw})
    loaded.close()
    with Detector(SHIPPED / engine, backend=backend, threads=count, score_threshold=0.05) as one:
        found = one.run_all(pictures())
    rows = {f"{name} {i}": getattr(d, name) for i, d in enumerate(found) for name in ("xyxy", "scores", "class_ids")}
    return {**raw, **rows}


def _bits(answers: Answers) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in answers.items()}


def _difference(one: Answers, other: Answers) -> float:
    """The largest, over all arrays; infinite where they are not of one shape."""
    if any(one[name].shape != other[name].shape for name in one):
        return float("inf")
    return max(float(np.abs(one[name].astype(float) - other[name]).max(initial=0)) for name in one)
