"""Preparing, the network and finishing at once: order, exactness, errors in their turn, the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Event, Lock, Thread, current_thread
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from glmd_runtime import Detector, backends
from glmd_runtime.backends.base import Backend, Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.errors import FrameError, GlmdError, SourceError
from glmd_runtime.overlap import overlapped
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import Result
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import is_live
from tests import tiny
from tests.conftest import skip_unless
from tests.runtime.streams import ROWS, Camera, clip, detector, frame

SOON = 20.0  # seconds; far above what anything here needs, on any machine
BAD = np.zeros((4, 4, 2), np.uint8)  # nobody can detect in it


class Engine(FakeBackend):
    """Says when a call begins, and does `meanwhile(call's number)` during it."""

    def __init__(self, meanwhile: Callable[[int], object] = lambda number: None) -> None:
        super().__init__(tiny.graph_spec(), [ROWS])
        self.began = [Event() for _ in range(100)]
        self.closed = Event()
        self._meanwhile, self._calls, self._lock = meanwhile, 0, Lock()

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            number, self._calls = self._calls, self._calls + 1
            outputs = super().run(inputs)
        self.began[number].set()
        self._meanwhile(number)
        return outputs

    def close(self) -> None:
        self.closed.set()


def run(pipeline: Pipeline) -> None:
    with pipeline:
        pipeline.run()


def until(condition: Callable[[], bool]) -> bool:
    end = monotonic() + SOON
    while not condition() and monotonic() < end:
        Event().wait(0.001)
    return condition()


def test_of_a_file_the_next_frame_is_prepared_and_the_one_before_finished_meanwhile(tiny_bundle: Path) -> None:
    engine = Engine(lambda number: number == 3 or prepared[number + 1].wait(SOON) or late.append(number))
    prepared, late = [Event() for _ in range(4)], list[int]()

    def note(result: Result) -> None:
        assert result.frame.index == 3 or engine.began[result.frame.index + 1].wait(SOON)

    pipeline = Pipeline([clip("a", 4)], detector(tiny_bundle, backend=engine), on_result=note)
    [stream] = pipeline.streams
    prepare = stream.prepare

    def noted(one: Frame) -> Any:
        made = prepare(one)
        prepared[one.index].set()
        return made

    stream.prepare = noted  # type: ignore[method-assign]
    run(pipeline)
    assert late == [] and stream.frames == 4


def test_of_a_camera_the_newest_frame_is_taken_when_the_network_is_free(tiny_bundle: Path) -> None:
    """And the one before is finished only then, while the network is at it."""
    camera, slots = Camera("camera", [frame(0)]), list[bool]()

    def meanwhile(number: int) -> None:
        if number < 3:
            camera.feed(frame(number + 1))
            slots.append(until(announced))
        else:
            camera.end()

    def announced() -> bool:
        with stream._changed:  # a full slot is announced to the pipeline before this is let go
            return stream._slot is not None

    def note(result: Result) -> None:
        assert result.frame.index == 3 or engine.began[result.frame.index + 1].wait(SOON)

    engine = Engine(meanwhile)
    one = detector(tiny_bundle, backend=engine)
    pipeline = Pipeline([camera], one, staleness=1e6, on_result=note)
    [stream] = pipeline.streams
    run(pipeline)
    assert slots == [True] * 3 and stream.frames == 4 and stream.drops == {}


def bad_in_the_middle() -> Iterator[Frame]:
    yield from (frame(0), frame(1), Frame(BAD, 2, 2 / 25), frame(3))


def torn() -> Iterator[Frame]:
    yield from (frame(0), frame(1))
    raise SourceError("frame 2 cannot be decoded")


@pytest.mark.parametrize(("frames", "error"), [(bad_in_the_middle, FrameError), (torn, SourceError)])
def test_an_error_has_its_turn(
    frames: Callable[[], Iterator[Frame]], error: type[GlmdError], tiny_bundle: Path
) -> None:
    def broken() -> Source:
        return Source("broken", 25.0, None, frames())

    results: list[Result] = []
    with pytest.raises(error):
        run(Pipeline([broken(), clip("whole", 5)], detector(tiny_bundle), on_result=results.append))
    assert [result.frame.index for result in results if result.stream == "broken"] == [0, 1]
    assert [result.frame.index for result in results if result.stream == "whole"] == list(range(5))
    stream = detector(tiny_bundle).stream(broken())
    assert [next(stream)[0].index for _ in range(2)] == [0, 1]
    with pytest.raises(error):
        next(stream)


def test_what_the_network_takes_is_in_the_seconds(tiny_bundle: Path) -> None:
    results: list[Result] = []
    engine = Engine(lambda number: sleep(0.05))  # never shorter
    run(Pipeline([clip("a", 3)], detector(tiny_bundle, backend=engine), on_result=results.append))
    assert len(results) == 3
    assert all(result.seconds["detect"] >= 0.05 for result in results)


def test_after_an_error_of_the_network_nothing_comes(tiny_bundle: Path) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise RuntimeError("out of memory")

    results: list[Result] = []
    with pytest.raises(GlmdError, match=r"^a: model\.onnx on Engine failed: RuntimeError: out of memory$"):
        run(Pipeline([clip("a", 9)], detector(tiny_bundle, backend=Engine(fail)), on_result=results.append))
    assert [result.frame.index for result in results] == [0]
    stream = detector(tiny_bundle, backend=Engine(fail)).stream(clip("a", 9))
    assert next(stream)[0].index == 0
    with pytest.raises(GlmdError, match="RuntimeError: out of memory"):
        next(stream)
    assert list(stream) == []


def test_after_an_error_of_finishing_nothing_comes(tiny_bundle: Path) -> None:
    class Tracker:
        def update(self, detections: Any, one: Frame) -> Any:
            if one.index == 1:
                raise ValueError("no track")
            return detections

    results: list[Result] = []
    with pytest.raises(GlmdError, match=r"^a: ValueError: no track$"):
        run(Pipeline([clip("a", 9)], detector(tiny_bundle), tracker=lambda _: Tracker(), on_result=results.append))
    assert [result.frame.index for result in results] == [0]


def test_a_file_is_not_finished_while_a_frame_of_it_is_under_way(tiny_bundle: Path) -> None:
    finished: list[bool] = []
    engine = Engine(lambda number: finished.append(pipeline.streams[0].finished))
    pipeline = Pipeline([clip("a", 3)], detector(tiny_bundle, backend=engine))
    run(pipeline)
    assert finished == [False] * 3 and pipeline.streams[0].finished


@pytest.mark.parametrize("make", [lambda: Camera("a", [frame(0), frame(1)]), lambda: clip("a", 50)])
def test_close_during_a_call(make: Callable[[], Source], tiny_bundle: Path) -> None:
    go_on, results = Event(), list[Result]()
    engine = Engine(lambda number: go_on.wait(SOON))
    one = detector(tiny_bundle, backend=engine)
    pipeline = Pipeline([make()], one, staleness=1e6, on_result=results.append)
    runner = Thread(target=pipeline.run)
    runner.start()
    assert engine.began[0].wait(SOON)
    pipeline.close()
    assert runner.is_alive()  # close did not wait for the network
    go_on.set()
    runner.join(SOON)
    assert not runner.is_alive() and len(results) <= 1


def asked_ahead(source: Any, one: Detector) -> int:
    """How many frames a stream has asked for when it gives its first."""
    asked: list[int] = []

    def noted() -> Iterator[Frame]:
        for item in source:
            asked.append(item.index)
            yield item

    given = Source("a", 25.0, None, noted()) if isinstance(source, Source) else noted()
    if isinstance(given, Source):
        given.live = source.live
    stream = one.stream(given)
    next(stream)
    stream.close()
    return len(asked)


def test_a_stream_reads_a_file_ahead_and_nothing_else(tiny_bundle: Path) -> None:
    one = detector(tiny_bundle)
    assert asked_ahead(clip("a", 9), one) == 2
    assert asked_ahead(Camera("a", [frame(0), frame(1), frame(2)]), one) == 1
    assert asked_ahead([frame(0), frame(1), frame(2)], one) == 1


def test_what_a_closed_detector_is_at_is_done_first(tiny_bundle: Path) -> None:
    go_on = Event()
    engine = Engine(lambda number: number and go_on.wait(SOON))
    with detector(tiny_bundle, backend=engine) as one:
        stream = one.stream(clip("a", 9))
        next(stream)
        assert engine.began[1].wait(SOON)
    assert not engine.closed.is_set()
    go_on.set()
    assert next(stream)[0].index == 1 and engine.closed.is_set()
    with pytest.raises(GlmdError, match="closed"):
        next(stream)


def test_two_who_close_at_once_count_as_one(tiny_bundle: Path) -> None:
    go_on, both = Event(), Barrier(2)

    class Hesitant(Detector):
        """Looks at its backend, and waits a moment for the other who closes to have looked too."""

        @property
        def _backend(self) -> Backend | None:
            seen: Backend | None = self.__dict__["_backend"]
            if current_thread().name.startswith("closing"):
                with suppress(BrokenBarrierError):
                    both.wait(0.5)
            return seen

        @_backend.setter
        def _backend(self, value: Backend | None) -> None:
            self.__dict__["_backend"] = value

    engine = Engine(lambda number: go_on.wait(SOON))
    one = Hesitant(tiny_bundle, backend=engine)
    with ThreadPoolExecutor(1, "running") as running, ThreadPoolExecutor(2, "closing") as closing:
        found = running.submit(one.run, frame(0).image)
        assert engine.began[0].wait(SOON)
        for done in [closing.submit(one.close) for _ in range(2)]:
            done.result()
        assert not engine.closed.is_set()
        go_on.set()
        assert len(found.result()) == len(ROWS) and engine.closed.is_set()


class Two(Engine):
    """Gains by two calls at once: neither ends before both have begun, and the first ends last."""

    calls = 2

    def __init__(self) -> None:
        super().__init__(self._meet)
        self._both, self._second = Barrier(2), [Event() for _ in range(100)]

    def _meet(self, number: int) -> None:
        self._both.wait(SOON)
        if number % 2:
            self._second[number].set()
        else:
            assert self._second[number + 1].wait(SOON)


def test_several_calls_at_once_keep_the_order(tiny_bundle: Path) -> None:
    results: list[Result] = []
    run(Pipeline([clip("a", 8)], detector(tiny_bundle, backend=Two()), on_result=results.append))
    assert [result.frame.index for result in results] == list(range(8))
    stream = detector(tiny_bundle, backend=Two()).stream(clip("a", 8))
    assert [one.index for one, _ in stream] == list(range(8))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_throughput_changes_no_bit(name: str, tiny_bundle: Path) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    with Detector(tiny_bundle, backend=name) as one:
        expected = [one.run(item.image) for item in clip("a", 12)]
    with Detector(tiny_bundle, backend=name, throughput=True) as many:
        results: list[Result] = []
        run(Pipeline([clip("a", 12)], many, on_result=results.append))
        streamed = [found for _, found in many.stream(clip("a", 12))]
    for found in ([result.detections for result in results], streamed):
        for one_found, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one_found.xyxy, other.xyxy)
            np.testing.assert_array_equal(one_found.scores, other.scores)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_overlapped_is_a_plain_loop(ahead: int) -> None:
    assert list(overlapped([lambda n=n: n * n for n in range(5)], ahead, 2)) == [0, 1, 4, 9, 16]
    assert list(overlapped([], ahead, 1)) == []


@pytest.mark.parametrize(
    ("uri", "live"),
    [
        ("clip.mp4", False), ("sim://ground?seed=1", False), ("sim://ground?live=1", True), ("RTSP://camera/x", True),
        ("udp://@:5000", True), ("v4l2:///dev/video0", True),
    ],
)
def test_which_addresses_are_live(uri: str, live: bool) -> None:
    assert is_live(uri) == live
