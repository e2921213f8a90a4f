"""Many frames, many cameras, many threads: what is bounded stays bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from unittest import mock

import numpy as np

from glmd_runtime import Detector
from glmd_runtime.images import Images
from glmd_runtime.metrics import Metrics
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import FrameTracker, Result, Stream
from glmd_runtime.tracking import Tracker
from glmd_runtime.video.cameras import SimulatedCamera
from glmd_runtime.video.live import STALENESS, LiveSource, Shot
from glmd_runtime.video.simulator import parse_sim_uri
from glmd_runtime.video.source import Source
from glmd_runtime.web.listen import Address
from tests import tiny
from tests.resources import Held, apart, held
from tests.runtime.streams import detector, long_clip
from tests.trust.answers import ENGINES, SHIPPED, close_race, pictures, threads, two_processes
from tests.trust.parts import Figures, Form, Part, require

WARM = 0.2  # of a run; until then libraries make their threads and the allocator fills
LOOKS = np.linspace(WARM, 0.95, 11)  # of a run, where what it holds is looked at; later the sources end
FEW = 4  # calls, at least, until then
GROWTH = 1.02  # of resident memory, at any later look, against the first

CAMERAS, FPS = 8, 30
LATENCY = 1.0  # seconds from its capture in which 99 of 100 frames have their detections
SLACK = 0.1  # seconds that a busy machine may take from a frame's turn to where it is seen here
FAIR, TURNS = 1.1, 3  # the camera that was served most may have so many times the frames of the least, or so many more


class Watch:
    """Call it with the number of frames done, of how many; it looks at this process at LOOKS of them."""

    def __init__(self, frames: int) -> None:
        self._due = deque(sorted({max(FEW, int(frames * share)) for share in LOOKS}))
        self.seen: list[Held] = []

    def __call__(self, done: int) -> None:
        if self._due and done >= self._due[0]:
            self._due.popleft()
            self.seen.append(held())

    def figures(self) -> Figures:
        """Raises: BrokenPromiseError when something grew since the first look."""
        require(len(self.seen) > 1, "Too few results came to see whether anything grows")
        first, most = self.seen[0].memory, max(look.memory for look in self.seen)
        require(most <= GROWTH * first, f"Resident memory grew from {first:.1f} to {most:.1f} MiB: {self.seen}")
        for what in ("threads", "files"):
            counts = [getattr(look, what) for look in self.seen]
            require(max(counts) <= counts[0], f"The number of {what} grew: {counts}")
        last = self.seen[-1]
        grown = {"MiB": round(last.memory, 1), "most_growth_percent": round(100 * (most / first - 1), 2)}
        return {**grown, "threads": last.threads, "open_files": last.files}


class CountedCamera:
    """A camera that says how many frames it gave."""

    def __init__(self, uri: str) -> None:
        spec = parse_sim_uri(uri)
        self._camera, self.name, self.fps, self.given = SimulatedCamera(spec, uri), uri, spec.fps, 0

    def shots(self) -> Generator[Shot, None, None]:
        for shot in self._camera.shots():
            self.given += 1
            yield shot


class Attentive(Detector):
    """Notes when it is given a frame to prepare, which is when the frame's turn comes."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle)
        self.turns: deque[float] = deque()

    def prepare(self, frames: Sequence[Any]) -> Images:
        self.turns.append(monotonic())
        return super().prepare(frames)


def cameras(form: Form) -> Figures:
    return apart(_cameras, 10, False) if form == "short" else apart(_cameras, 600, True)


def _cameras(seconds: int, judged: bool) -> Figures:
    """Args: judged, whether latency and memory are: seconds of a busy machine, with few results, say nothing of them.

    The cameras end by themselves, so that at the end every frame is either served or dropped.
    """
    query = f"size=320x256&fps={FPS}&frames={seconds * FPS}&live=1"
    given = [CountedCamera(f"sim://{'ground' if seed % 2 else 'air'}?seed={seed}&{query}") for seed in range(CAMERAS)]
    ages: list[tuple[float, float]] = []  # seconds, of a frame when its turn came, and when it was done
    watch = Watch(seconds * FPS)

    def note(result: Result) -> None:
        captured = result.frame.captured
        ages.append((one.turns.popleft() - captured, monotonic() - captured))
        watch(result.frame.index)

    with Attentive(SHIPPED) as one, Pipeline([LiveSource(camera) for camera in given], one, on_result=note) as pipeline:
        began = monotonic()
        pipeline.run()
        took = monotonic() - began
    counted = _counted(pipeline.streams, given)
    return {
        **counted,
        "frames_a_second": round(counted["served"] / took, 1),
        **_fairness([stream.frames for stream in pipeline.streams]),
        **_latency(np.array(ages), LATENCY if judged else float("inf")),
        **(watch.figures() if judged else {}),
    }


def _counted(streams: tuple[Stream, ...], given: list[CountedCamera]) -> Figures:
    for stream, camera in zip(streams, given, strict=True):
        counts = stream.frames, stream.held, stream.drops
        there = stream.frames + sum(stream.held.values()) + sum(stream.drops.values())
        require(there == camera.given, f"{stream.name} gave {camera.given} frames; served, held and dropped: {counts}")
    dropped = {cause: sum(stream.drops.get(cause, 0) for stream in streams) for cause in ("late", "stale", "corrupt")}
    return {"given": sum(camera.given for camera in given), "served": sum(s.frames for s in streams), **dropped}


def _fairness(served: list[int]) -> Figures:
    least, most = min(served), max(served)
    require(most <= max(FAIR * least, least + TURNS), f"The cameras' shares of frames are not fair: {served}")
    jain = sum(served) ** 2 / (len(served) * sum(count**2 for count in served))
    return {"least_served": least, "most_served": most, "Jain_index": round(jain, 4)}


def _latency(ages: np.ndarray, latency: float) -> Figures:
    """Of (N, 2): when its turn came, when it was done."""
    turn, done = ages.max(axis=0)[0], np.percentile(ages[:, 1], (50, 99, 100))
    require(turn <= STALENESS + SLACK, f"A frame was {turn:.3f} s old when its turn came, more than {STALENESS} s")
    require(done[1] <= latency, f"One frame in a hundred had its detections after {done[1]:.3f} s, not {latency} s")
    said = zip(("p50", "p99", "max"), done, strict=True)
    return {"oldest_turn_ms": round(1000 * turn), **{f"latency_{name}_ms": round(1000 * age) for name, age in said}}


def fake_frames(form: Form) -> Figures:
    return apart(_fake_frames, 5_000 if form == "short" else 200_000)


def _fake_frames(frames: int) -> Figures:
    """Two streams with tracks and numbers."""
    watch, done, here = Watch(frames), iter(range(1, frames + 1)), Address("127.0.0.1", 0)

    def note(result: Result) -> None:
        metrics.add(result)
        watch(next(done))

    def tracker(source: Source) -> FrameTracker:
        return Tracker("bytetrack", fps=source.fps)

    clips = [long_clip(name, frames // 2) for name in ("a", "b")]
    with (
        TemporaryDirectory() as folder,
        closing(detector(tiny.bundle(Path(folder) / "tiny.glmd").path)) as one,
        Pipeline(clips, one, tracker=tracker, on_result=note) as pipeline,
        Metrics(pipeline.streams, here) as metrics,
    ):
        pipeline.run()
    require(next(done, None) is None, f"Fewer than {frames} frames had a result")
    return {"frames": frames, **watch.figures()}


def engine_frames(backend: str, engine: str, short: int, long: int) -> Callable[[Form], Figures]:
    return lambda form: apart(_engine_frames, backend, engine, short if form == "short" else long)


def _engine_frames(backend: str, engine: str, frames: int) -> Figures:
    """Of several sizes and types, as they come."""
    watch, began = Watch(frames), monotonic()
    with Detector(SHIPPED / engine, backend=backend) as one:
        for done, picture in enumerate(islice(cycle(pictures()), frames), 1):
            one.run(picture)
            watch(done)
    return {"frames": frames, **watch.figures(), "ms_a_frame": round(1000 * (monotonic() - began) / frames, 1)}


def open_close(form: Form) -> Figures:
    """In one arena of glibc: of several, another may hold the 20 MiB of an engine next time, as if memory grew."""
    times = 8 if form == "short" else 50
    wanted = ENGINES[-1:] if form == "short" else ENGINES
    with mock.patch.dict(os.environ, MALLOC_ARENA_MAX="1"):
        said = {f"{backend} {engine}": apart(_open_close, backend, engine, times) for backend, engine in wanted}
    return {"times": times, **{name: f"{s['MiB']} MiB +{s['most_growth_percent']}%" for name, s in said.items()}}


def _open_close(backend: str, engine: str, times: int) -> Figures:
    watch, picture = Watch(times), next(iter(pictures()))
    for done in range(1, times + 1):
        with Detector(SHIPPED / engine, backend=backend) as one:
            one.run(picture)
        watch(done)
    return watch.figures()


PARTS: list[Part] = [
    Part(
        "load.cameras",
        f"{CAMERAS} cameras of {FPS} Hz share one engine fairly; no frame is older than {STALENESS} s when its turn "
        f"comes, and 99 of 100 have their detections within {LATENCY} s; memory stays flat; each frame is served, "
        "or counted as dropped with its cause",
        cameras,
    ),
    Part(
        "load.fake_frames",
        "memory, threads and open files stay flat over frames of two streams, with tracks and numbers",
        fake_frames,
    ),
    Part(
        "load.engine_frames",
        "they stay flat over frames of OpenVINO's INT8",
        engine_frames("openvino", "openvino.int8.xml", 100, 20_000),
    ),
    Part(
        "load.onnxruntime_frames",
        "they stay flat over frames of ONNX Runtime",
        engine_frames("onnxruntime", "model.onnx", 20, 2_000),
    ),
    Part("load.open_close", "they stay flat when detectors are opened, used and closed", open_close),
    Part("load.threads", "16 threads on one Detector get the answers of one, with and without tiles", threads),
    Part("load.close_race", "a Detector that is closed while 16 threads run tells each of them", close_race),
    Part("load.two_processes", "two processes of 1 to 4 threads get the same detections, bit for bit", two_processes),
]
