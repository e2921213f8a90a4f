"""A run of weeks in seconds: nothing grows with the number of frames.

Each run is measured in a process of its own: one that hundreds of tests ran in before has freed memory of theirs to
fill or to give back, and threads of theirs that allocate.
"""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from glmd_runtime import Detector, backends
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.metrics import Metrics
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import FrameTracker, Result
from glmd_runtime.video.source import Source
from glmd_runtime.view import View
from glmd_runtime.web.listen import Address
from tests import tiny
from tests.conftest import skip_unless
from tests.resources import apart, used
from tests.runtime.streams import ROWS, detector, long_clip

STREAMS = 2
WARM = 0.4  # of a run; until then windows of seconds and the allocator fill
LATE = 0.95  # of a run; later the sources end, and what they hold is freed
GROWTH = 1.0  # MiB that resident memory may grow by between the two. A frame that is kept is 10 KiB: 500 MiB in 50,000


class Leaking(FakeBackend):
    """Keeps every image."""

    kept: ClassVar[list[np.ndarray]] = []

    def run(self, inputs: Tensors) -> Tensors:
        self.kept.append(inputs["images"].copy())
        return super().run(inputs)


def opened(bundle: Path, backend: str) -> Detector:
    if backend == "leaking":
        return detector(bundle, backend=Leaking(tiny.graph_spec(), [ROWS]))
    return detector(bundle) if backend == "fake" else Detector(bundle, backend=backend, threads=1)


def growth(bundle: Path, backend: str, frames: int, tracks: bool) -> float:
    """MiB that this process grew by between WARM and LATE of a run with a page and numbers."""
    memory: dict[int, float] = {}
    done = 0

    def note(result: Result) -> None:
        nonlocal done
        done += 1
        view.publish(result)
        metrics.add(result)
        if done in (int(WARM * frames), int(LATE * frames)):
            memory[done] = used()

    def tracker(source: Source) -> FrameTracker:
        from glmd_runtime.tracking import Tracker

        return Tracker("bytetrack", fps=source.fps)

    clips = [long_clip(name, frames // STREAMS) for name in "abcd"[:STREAMS]]
    here = Address("127.0.0.1", 0)
    with (
        closing(opened(bundle, backend)) as one,
        Pipeline(clips, one, tracker=tracker if tracks else None, on_result=note) as pipeline,
        View(pipeline.streams, one, here) as view,
        Metrics(pipeline.streams, here) as metrics,
    ):
        pipeline.run()
    before, after = memory.values()
    assert done == frames
    return after - before


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is none that coverage traces, which takes memory and most of the time."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def _installed() -> None:
    skip_unless(Path("/proc/self/statm").exists(), "proc", "resident memory is read as Linux says it")
    skip_unless(find_spec("prometheus_client") is not None, "prometheus_client", "prometheus-client is not installed")


def test_memory_of_fifty_thousand_frames(tiny_bundle: Path) -> None:
    assert apart(growth, tiny_bundle, "fake", 50_000, tracks=False) < GROWTH


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_of_two_thousand_frames_of_a_real_engine(backend: str, tiny_bundle: Path) -> None:
    skip_unless(backend in backends.available(), backend, f"{backend} is not installed")
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")
    assert apart(growth, tiny_bundle, backend, 2_000, tracks=True) < GROWTH


def test_a_leak_would_be_seen(tiny_bundle: Path) -> None:
    assert apart(growth, tiny_bundle, "leaking", 2_000, tracks=False) > 10 * GROWTH
