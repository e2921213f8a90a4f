"""Cameras that lie, clocks that jump, engines that fail: one clear error or a counted drop, and the others go on."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np

from glmd_runtime import Detector
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.camera.front_end import Camera
from glmd_runtime.errors import EngineError, GlmdError
from glmd_runtime.pipeline import FAILED_IN_A_ROW, Pipeline
from glmd_runtime.streams import Result
from glmd_runtime.tracking import Tracker
from glmd_runtime.video import cameras
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.live import LiveSource, Shot
from glmd_runtime.video.source import Source
from tests import tiny
from tests.runtime.streams import ROWS, clip, detector
from tests.streams.cameras import FakeCapture, FastClock, ScriptedCamera
from tests.trust.parts import Figures, Form, Part, require

SOON = 120.0  # seconds, after which a pipeline hangs
GOOD = np.tile(np.linspace(28000, 29500, 80), (64, 1)).astype(np.uint16)

SHOTS = 40  # fewer than those without a picture after which a camera is connected again

# What a camera of 16-bit pictures, 80 by 64, may hand on instead.
LIES: dict[str, Any] = {
    "no picture": None,
    "another size": GOOD[:32, :40],
    "one pixel": GOOD[:1, :1],
    "one row": GOOD[:1],
    "no pixels": GOOD[:0, :0],
    "no rows": GOOD[:0],
    "eight bits": (GOOD >> 8).astype(np.uint8),
    "colour": np.zeros((64, 80, 3), np.uint8),
    "YUYV": np.zeros((64, 80, 2), np.uint8),
    "four channels": np.zeros((64, 80, 4), np.uint8),
    "16-bit colour": np.zeros((64, 80, 3), np.uint16),
    "signed": GOOD.astype(np.int16),
    "floats": GOOD.astype(np.float32),
    "not a number": np.full((64, 80), np.nan, np.float32),
    "one dimension": GOOD.ravel(),
    "a truncated buffer": GOOD.ravel()[:-7],
    "bytes": GOOD.tobytes(),
    "another stride": np.lib.stride_tricks.as_strided(GOOD, (64, 40), (160, 4)),
    "upside down": GOOD[::-1, ::-1],
    "read-only": np.frombuffer(GOOD.tobytes(), np.uint16).reshape(64, 80),
    "constant": np.zeros((64, 80), np.uint16),
    "saturated": np.full((64, 80), 65535, np.uint16),
    "both ends": np.where(GOOD > 28700, 65535, 0).astype(np.uint16),
}
STAMPS: dict[str, Callable[[int], float]] = {
    "backwards": lambda i: -i / 30,
    "the same": lambda i: 5.0,
    "hours back": lambda i: i / 30 - (7200 if i > 20 else 0),
    "hours on": lambda i: i / 30 + (7200 if i > 20 else 0),
    "to and fro": lambda i: i / 30 + 3600 * (-1) ** (i // 10),
    "since 1970": lambda i: 1.7e9 + i / 30,
}


def lying_camera(form: Form) -> Figures:
    """Every lie, alone and among good pictures, of one camera beside another that tells the truth."""
    times = 40 if form == "long" else 1
    rng, ended, dropped = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny.bundle(Path(folder) / "tiny.glmd").path
        scripts = [[lie] * SHOTS for lie in LIES.values()]
        scripts += [rng.choices([GOOD, *LIES.values()], [20, *[1] * len(LIES)], k=SHOTS) for _ in range(times)]
        for script in scripts:
            results, error, liar = _beside_a_good_one(bundle, script)
            require(len(results["good"]) == 30, f"the other camera must go on; {len(results['good'])} of 30 frames")
            require(error is None or isinstance(error, GlmdError), f"one clear error; got {error!r}")
            given = len(results.get("scripted", ()))
            require(error is not None or given + sum(liar.drops.values()) == SHOTS, f"{given} frames, {liar.drops}")
            ended, dropped = ended + (error is not None), dropped + sum(liar.drops.values())
        devices = sum(_device(lie) for lie in LIES.values())
    said = {"drops counted": dropped, "clear errors": ended, "the same of V4L2": devices}
    return {"lies": len(LIES), "streams": len(scripts), **said}


def _beside_a_good_one(bundle: Path, script: list[Any]) -> tuple[dict[str, list[Result]], Exception | None, LiveSource]:
    results: dict[str, list[Result]] = {}
    liar = LiveSource(ScriptedCamera(script), policy="every", clock=FastClock())
    with detector(bundle) as one:
        pipeline = Pipeline(
            [clip("good", 30), liar], one, tracker=lambda _: Tracker(), camera=Camera(damping=0.5), policy="every",
            on_result=lambda result: results.setdefault(result.stream, []).append(result),
        )
        return results, _run(pipeline), liar


def _run(pipeline: Pipeline) -> Exception | None:
    """What `run` raises; it may not hang."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            with pipeline:
                pipeline.run()
        except Exception as error:
            raised.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON)
    require(not thread.is_alive(), f"a pipeline hangs; its streams are {[s.status for s in pipeline.streams]}")
    return raised[0] if raised else None


def _device(lie: Any) -> bool:
    """Whether a V4L2 device that lies is a clear error; else its picture is handed on or is none."""
    FakeCapture.pictures, real = [lie if isinstance(lie, np.ndarray) else GOOD[:0]], cv2.VideoCapture
    cv2.VideoCapture = FakeCapture  # type: ignore[misc,assignment]
    try:
        shots = cameras.DeviceCamera("/dev/null", "device", format="Y16").shots()
        shot = next(shots)
    except GlmdError:
        return True
    finally:
        cv2.VideoCapture = real  # type: ignore[misc]
    image = shot.image
    require(image is None or (image.ndim, image.dtype) == (2, np.uint16), f"got {image!r}")
    return False


def clock_jumps(form: Form) -> Figures:
    """Stamps of a camera, and times of a file's frames, that jump; the picture of each must be looked at, once."""
    frames, clocks = 300 if form == "long" else 60, 0
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny.bundle(Path(folder) / "tiny.glmd").path
        for name, stamp in STAMPS.items():
            fresh = _fresh(stamp, frames)
            require(fresh >= frames - 32, f"{name}: a camera's frames are fresh; {fresh} of {frames} were given")
            times = _times_of_results(bundle, [stamp(i) for i in range(frames)])
            require(len(times) == frames, f"{name}: {len(times)} of {frames} frames of a file have a result")
            clocks += 1
    return {"clocks": clocks, "frames of each": frames}


def _fresh(stamp: Callable[[int], float], frames: int) -> int:
    """How many frames, that all come at once when they are taken, a live source hands on as fresh."""
    clock, given = FastClock(), 0
    script: list[Any] = [item for i in range(frames) for item in (1 / 30, Shot(GOOD + i, stamp(i)))]
    source = LiveSource(ScriptedCamera(script, clock=clock), policy="every", clock=clock, staleness=0.5)
    last = -1.0
    for frame in source:
        require(frame.time > last, f"time goes on; after {last} came {frame.time}")
        require(clock.now() - frame.captured < 10, f"a frame is not older than it is; {clock.now() - frame.captured} s")
        last, given = frame.time, given + 1
    return given


def _times_of_results(bundle: Path, times: Iterable[float]) -> list[float]:
    source = Source("file", 30.0, None, (Frame(GOOD + i, i, time) for i, time in enumerate(times)))
    came: list[float] = []
    with detector(bundle) as one:
        pipeline = Pipeline(
            [source], one, tracker=lambda _: Tracker(), camera=Camera(damping=0.5),
            on_result=lambda result: came.append(result.frame.time),
        )
        error = _run(pipeline)
        require(error is None, f"a jump of the clock is no error; got {error!r}")
    return came


# Engines that fail


class Faulty(FakeBackend):
    """Fails on the calls whose number `when` says yes to, in a way of its own."""

    def __init__(self, how: str, when: Callable[[int], bool], batch: int = 1) -> None:
        super().__init__(tiny.graph_spec(batch), [ROWS])
        self._how, self._when, self._number = how, when, 0

    def run(self, inputs: Tensors) -> Tensors:
        self._number += 1
        outputs = super().run(inputs)
        return spoilt(outputs, self._how) if self._when(self._number) else outputs

    def close(self) -> None:
        raise RuntimeError("it does not let go")


def spoilt(outputs: Tensors, how: str) -> Any:
    """Answers as no engine should give them."""
    if how == "raises":
        raise RuntimeError("CUDA error 700")
    if how == "memory":
        raise MemoryError
    ways: dict[str, Any] = {
        "nothing": None,
        "no outputs": {},
        "no scores": {name: value for name, value in outputs.items() if name != "scores"},
        "another shape": {**outputs, "boxes": outputs["boxes"][:, :1]},
        "not a number": {**outputs, "scores": np.full_like(outputs["scores"], np.nan)},
    }
    return ways[how]


HOW = ("raises", "memory", "nothing", "no outputs", "no scores", "another shape", "not a number")


def throwing_backend(form: Form) -> Figures:
    """Now and then, and for good: of a frame, a clip, cameras beside each other, one by one and in batches."""
    with _silent("glmd_runtime"):  # that it fails is known
        return _failures(form)


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _failures(form: Form) -> Figures:
    cameras_of_each = 8 if form == "long" else 3
    runs = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for batch in (1, 4):
            bundle = tiny.bundle(Path(folder) / f"tiny{batch}.glmd", batch).path
            for how in HOW:
                runs += 1
                _one_by_one(bundle, how, batch)
                lost += _cameras(bundle, how, batch, cameras_of_each)
    return {"ways to fail": len(HOW), "runs": runs, "frames lost, each counted": lost}


def _one_by_one(bundle: Path, how: str, batch: int) -> None:
    for work in (lambda one: one.run(GOOD), lambda one: list(one.stream(clip("clip", 3)))):
        raised = None
        with Detector(bundle, backend=Faulty(how, lambda _: True, batch)) as one:
            try:
                work(one)
            except GlmdError as error:
                raised = error
        require(isinstance(raised, EngineError), f"{how}: one clear error; got {raised!r}")
        require("model.onnx on Faulty" in str(raised), f"{how}: the engine must be named; got {raised}")


def _cameras(bundle: Path, how: str, batch: int, number: int) -> int:
    """Cameras whose engine fails on every fifth call lose those frames alone. Returns: how many."""
    frames = 40

    def camera(index: int) -> LiveSource:
        pictures = [GOOD + index + 1000 * i for i in range(frames)]
        return LiveSource(ScriptedCamera(pictures), policy="every", clock=FastClock())

    results: list[Result] = []
    with Detector(bundle, backend=Faulty(how, lambda n: n % 5 == 0, batch)) as one:
        pipeline = Pipeline([camera(i) for i in range(number)], one, policy="every", on_result=results.append)
        error = _run(pipeline)
    require(error is None, f"{how}: cameras go on after a frame that failed; got {error!r}")
    failed = sum(stream.drops.get("failed", 0) for stream in pipeline.streams)
    require(len(results) + failed == number * frames, f"{how}: {len(results)} results, {failed} failed frames")
    with Detector(bundle, backend=Faulty(how, lambda _: True, batch)) as one:
        error = _run(Pipeline([camera(i) for i in range(number)], one, policy="every"))
    dead = isinstance(error, EngineError) and f"failed on {FAILED_IN_A_ROW} frames" in str(error)
    require(dead, f"{how}: an engine that is dead ends with one error; got {error!r}")
    return failed




PARTS = [
    Part("faults.lying_camera", "a camera that lies costs its frames or its stream, never another's", lying_camera),
    Part("faults.clock_jumps", "clocks that jump stop nothing and make nothing old", clock_jumps),
    Part("faults.throwing_backend", "an engine that fails costs frames, counted, or is one error", throwing_backend),
]
