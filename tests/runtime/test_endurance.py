"""A run of weeks in seconds: nothing grows with the number of frames."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import resident
from glmd_runtime import Detector, backends
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.listen import Address
from glmd_runtime.metrics import Metrics
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import FrameTracker, Result
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_runtime.view import View
from tests import tiny
from tests.conftest import skip_unless
from tests.runtime.streams import ROWS, detector, frame

STREAMS = 2
WARM = 0.4  # of a run; until then windows of seconds and the allocator fill
GROWTH = 2.0  # MiB that resident memory may grow by after that. A frame that is kept is 10 KiB: 500 MiB in 50,000


def long_clip(name: str, frames: int) -> Source:
    """Pictures that are made as they are asked for: what grows is not the source."""
    shown = [frame(index) for index in range(100)]

    def stream() -> Iterator[Frame]:
        for index in range(frames):
            one = shown[index % len(shown)]
            yield replace(one, image=one.image.copy(), index=index, time=index / 25)

    return Source(name, 25.0, frames, stream())


def growth(one: Detector, frames: int, tracks: bool) -> float:
    """MiB that resident memory grew by after the warm-up of a run with a page and numbers."""
    memory: dict[int, float] = {}
    done = 0

    def note(result: Result) -> None:
        nonlocal done
        done += 1
        view.publish(result)
        metrics.add(result)
        if done in (int(WARM * frames), frames):
            gc.collect()
            memory[done] = resident()

    def tracker(source: Source) -> FrameTracker:
        from glmd_runtime.tracking import Tracker

        return Tracker("bytetrack", fps=source.fps)

    clips = [long_clip(name, frames // STREAMS) for name in "abcd"[:STREAMS]]
    here = Address("127.0.0.1", 0)
    with (
        Pipeline(clips, one, tracker=tracker if tracks else None, on_result=note) as pipeline,
        View(pipeline.streams, one, here) as view,
        Metrics(pipeline.streams, here) as metrics,
    ):
        pipeline.run()
    before, after = memory.values()
    assert done == frames
    return after - before


@pytest.fixture(autouse=True)
def _installed() -> None:
    skip_unless(Path("/proc/self/statm").exists(), "proc", "resident memory is read as Linux says it")
    skip_unless(find_spec("prometheus_client") is not None, "prometheus_client", "prometheus-client is not installed")


def test_memory_of_fifty_thousand_frames(tiny_bundle: Path) -> None:
    assert growth(detector(tiny_bundle), 50_000, tracks=False) < GROWTH


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_of_two_thousand_frames_of_a_real_engine(backend: str, tiny_bundle: Path) -> None:
    skip_unless(backend in backends.available(), backend, f"{backend} is not installed")
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")
    with Detector(tiny_bundle, backend=backend, threads=1) as one:
        assert growth(one, 2_000, tracks=True) < GROWTH


def test_a_leak_would_be_seen(tiny_bundle: Path) -> None:
    class Leaking(FakeBackend):
        def run(self, inputs: Tensors) -> Tensors:
            kept.append(inputs["images"].copy())
            return super().run(inputs)

    kept: list[Any] = []
    leaking = Leaking(tiny.graph_spec(), [ROWS])
    assert growth(detector(tiny_bundle, backend=leaking), 2_000, tracks=False) > 10 * GROWTH
