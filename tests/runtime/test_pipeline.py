"""Many streams through one engine: order, turns, losses, errors, the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Event, Thread
from threading import enumerate as threads
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from glmd_runtime import Camera, Detector, backends
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.bundle import write_bundle
from glmd_runtime.detections import Detections
from glmd_runtime.errors import EngineError, FrameError, GlmdError, SourceError, UsageError
from glmd_runtime.pipeline import FAILED_IN_A_ROW, Pipeline
from glmd_runtime.streams import Result, Stream
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_runtime.video.status import Status
from tests import tiny
from tests.conftest import skip_unless
from tests.runtime import streams
from tests.runtime.streams import ROWS, clip, detector, frame

SOON = 20.0  # seconds; far above what anything here needs, on any machine


def run(pipeline: Pipeline) -> None:
    with pipeline:
        pipeline.run()


@pytest.fixture
def results() -> list[Result]:
    return []


def of(results: list[Result], name: str) -> list[int]:
    return [result.frame.index for result in results if result.stream == name]


@pytest.mark.parametrize("lengths", [(3,), (5, 2), (0, 4, 1)])
def test_every_frame_of_every_file_in_order(
    lengths: tuple[int, ...], tiny_bundle: Path, results: list[Result]
) -> None:
    sources = [clip(str(number), length) for number, length in enumerate(lengths)]
    run(Pipeline(sources, detector(tiny_bundle), on_result=results.append))
    assert [of(results, str(i)) for i in range(len(lengths))] == [list(range(length)) for length in lengths]
    for result in results:
        assert result.detections.names == ["person", "car"]
        assert result.detections.temperatures is not None
        assert result.picture.shape == tiny.SIZE_HW and result.picture.dtype == np.uint8
        stages = [result.seconds[stage] for stage in ("prepare", "detect")]
        assert min(stages) >= 0 and result.seconds["total"] == pytest.approx(sum(stages))


def test_one_stream_gives_what_detector_stream_gives(tiny_bundle: Path, results: list[Result]) -> None:
    with Detector(tiny_bundle, backend=FakeBackend(tiny.graph_spec(), [ROWS, [], ROWS[:1]])) as one:
        expected = [found.to_dict() for _, found in one.stream(clip("oracle", 7))]
    with Detector(tiny_bundle, backend=FakeBackend(tiny.graph_spec(), [ROWS, [], ROWS[:1]])) as other:
        run(Pipeline([clip("a", 7)], other, on_result=results.append))
    assert [result.detections.to_dict() for result in results] == expected


class Eager:
    """A clip that says how many frames it was asked for: when that is one more than it gave, one is in the slot."""

    def __init__(self, name: str, frames: int) -> None:
        self.frames, self.asked, self._asked = frames, 0, Event()
        self.source = Source(name, 25.0, frames, self._stream())

    def _stream(self) -> Iterator[Frame]:
        for index in range(self.frames):
            self.asked += 1
            yield frame(index)
        self.asked = self.frames + 1


class Patient(FakeBackend):
    """An engine that works until every stream has its next frame ready."""

    def __init__(self, clips: list[Eager]) -> None:
        super().__init__(tiny.graph_spec(), [ROWS])
        self.clips = clips
        self.streams: tuple[Stream, ...] = ()

    def run(self, inputs: Tensors) -> Tensors:
        until = monotonic() + SOON
        for stream, one in zip(self.streams, self.clips, strict=True):
            while one.asked < min(taken(stream) + 2, one.frames + 1) and monotonic() < until:
                Event().wait(0.001)
        return super().run(inputs)


def taken(stream: Stream) -> int:
    return stream.frames + stream._under_way


def test_turns_go_around(tiny_bundle: Path) -> None:
    clips = [Eager("a", 9), Eager("b", 9), Eager("c", 5)]
    engine, order = Patient(clips), list[str]()
    pipeline = Pipeline(
        [one.source for one in clips], detector(tiny_bundle, backend=engine),
        on_result=lambda result: order.append(result.stream),
    )
    engine.streams = pipeline.streams
    run(pipeline)
    assert Counter(order) == {"a": 9, "b": 9, "c": 5}
    while_all, while_two = order[4:14], order[16:]  # each comes once before one comes again
    assert all(len(set(while_all[i : i + 3])) == 3 for i in range(len(while_all) - 2)), order
    assert all(x != y for x, y in pairwise(while_two)), "".join(order)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_gives_what_single_frames_give(batch: int, tmp_path: Path, results: list[Result]) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    path = tiny.bundle(tmp_path / "t.glmd", batch).path
    with Detector(path, threads=1) as one:
        expected = [found.to_dict() for _, found in one.stream(clip("oracle", 6))]
        run(Pipeline([clip(name, 6) for name in "abcd"], one, on_result=results.append))
    for name in "abcd":
        assert [r.detections.to_dict() for r in results if r.stream == name] == expected


def test_frames_that_wait_share_a_call(tmp_path: Path) -> None:
    clips = [Eager(name, 6) for name in "abc"]
    calls: list[int] = []

    class Batched(Patient):
        def run(self, inputs: Tensors) -> Tensors:
            calls.append(len({image.tobytes() for image in inputs["images"]}))
            return super().run(inputs)

    engine = Batched(clips)
    engine._graph = tiny.graph_spec(3)
    path = tiny.bundle(tmp_path / "t.glmd", 3).path
    results: list[Result] = []
    pipeline = Pipeline([one.source for one in clips], detector(path, backend=engine), on_result=results.append)
    engine.streams = pipeline.streams
    run(pipeline)
    assert len(results) == 18 and len(calls) <= 9  # the first calls may find one or two waiting


def test_a_lost_camera_does_not_stop_the_others(tiny_bundle: Path, results: list[Result]) -> None:
    camera, said = streams.Camera("camera"), list[tuple[str, str]]()
    camera.lose("no route")

    def note(result: Result) -> None:
        results.append(result)
        if result.frame.index == 4:
            pipeline.stop()

    def say(name: str, status: Status) -> None:
        said.append((name, f"{status.state} {status.detail}"))

    pipeline = Pipeline([camera, clip("clip", 5)], detector(tiny_bundle), on_result=note, on_status=say)
    run(pipeline)
    assert of(results, "clip") == [0, 1, 2, 3, 4]
    assert ("camera", "lost no route") in said and ("clip", "running ") in said


def test_states_as_they_are_for_people(tiny_bundle: Path) -> None:
    camera = streams.Camera("camera", [frame(0)])
    seen = Event()
    pipeline = Pipeline([camera], detector(tiny_bundle), on_result=lambda _: seen.set())
    [stream] = pipeline.streams
    assert stream.latency is None and stream.rate == 0
    thread = Thread(target=pipeline.run)
    with pipeline:
        thread.start()
        assert seen.wait(SOON)
        assert stream.state == "running" and stream.frames == 1 and stream.latency is not None
        camera.status = Status("connecting")
        assert stream.state == "lost"  # it gave frames before
        camera.end()
        thread.join(SOON)
        assert stream.state == "ended" and stream.silence < SOON


def test_a_broken_source_is_named_after_the_others_have_ended(tiny_bundle: Path, results: list[Result]) -> None:
    def broken() -> Iterator[Frame]:
        yield frame(0)
        raise SourceError("frame 1 cannot be decoded")

    sources = [Source("broken", 25.0, None, broken()), clip("whole", 20)]
    said: list[Status] = []
    with pytest.raises(SourceError, match=r"^broken: frame 1 cannot be decoded$"):
        run(
            Pipeline(
                sources, detector(tiny_bundle), on_result=results.append,
                on_status=lambda name, status: said.append(status) if name == "broken" else None,
            )
        )
    assert of(results, "broken") == [0] and of(results, "whole") == list(range(20))
    assert (said[-1].state, said[-1].detail) == ("ended", "frame 1 cannot be decoded")


def test_a_frame_that_cannot_be_detected_in_ends_its_stream_only(tiny_bundle: Path, results: list[Result]) -> None:
    odd = Source("odd", 25.0, 1, iter([Frame(np.zeros((4, 4, 2), np.uint8), 0, 0.0)]))
    with pytest.raises(FrameError, match=r"^odd: .*\(4, 4, 2\)"):
        run(Pipeline([odd, clip("whole", 3)], detector(tiny_bundle), on_result=results.append))
    assert of(results, "whole") == [0, 1, 2] and of(results, "odd") == []


def test_a_camera_whose_stream_failed_is_let_go(tiny_bundle: Path) -> None:
    """It would be read on for ever, its frames counted as late."""
    camera = streams.Camera("camera", [Frame(np.zeros((4, 4, 2), np.uint8), 0, 0.0)])
    with Pipeline([camera, clip("whole", 3)], detector(tiny_bundle)) as pipeline:
        with pytest.raises(FrameError, match=r"^camera: "):
            pipeline.run()
        camera.feed(frame(2))  # what comes after the error
        until = monotonic() + SOON
        while not camera.closed and monotonic() < until:
            sleep(0.01)
        assert camera.closed


class NoEngine:
    device = "cpu"

    def run(self, inputs: Tensors) -> Tensors:
        raise RuntimeError("out of memory")

    def close(self) -> None:
        pass


def test_an_engine_that_fails_is_an_error_with_a_name(tiny_bundle: Path) -> None:
    with pytest.raises(GlmdError, match=r"^a: model\.onnx on NoEngine failed: RuntimeError: out of memory$"):
        run(Pipeline([clip("a", 3)], detector(tiny_bundle, backend=NoEngine())))


class FailsOn(FakeBackend):
    """Fails whenever one of the pictures is brighter than the others, as of one that it cannot take."""

    def __init__(self, batch: int = 1) -> None:
        super().__init__(tiny.graph_spec(batch), [ROWS])

    def run(self, inputs: Tensors) -> Tensors:
        if (inputs["images"].mean(axis=(1, 2, 3)) > 1.5).any():
            raise RuntimeError("overflow")
        return super().run(inputs)


def bright(index: int) -> Frame:
    return Frame(np.full(tiny.SIZE_HW, 255, np.uint8), index, index / 25)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_camera_loses_the_frame_that_the_network_fails_on_and_nobody_else_does(
    batch: int, tmp_path: Path, results: list[Result]
) -> None:
    bundle = tiny.bundle(tmp_path / "tiny.glmd", batch).path
    cameras = [streams.Camera(name, [frame(0), frame(1) if name == "b" else bright(1), frame(2)]) for name in "ab"]
    for camera in cameras:
        camera.end()
    pipeline = Pipeline(
        [*cameras, clip("c", 3)], detector(bundle, backend=FailsOn(batch)), on_result=results.append, policy="every"
    )
    run(pipeline)
    assert [of(results, name) for name in "abc"] == [[0, 2], [0, 1, 2], [0, 1, 2]]
    assert [stream.drops.get("failed") for stream in pipeline.streams] == [1, None, None]


def test_a_file_of_which_the_network_fails_on_a_frame_ends(tiny_bundle: Path, results: list[Result]) -> None:
    file = Source("file", 25.0, 3, iter([frame(0), bright(1), frame(2)]))
    with pytest.raises(EngineError, match=r"^file: model\.onnx on FailsOn failed: RuntimeError: overflow$"):
        run(Pipeline([file, clip("whole", 3)], detector(tiny_bundle, backend=FailsOn()), on_result=results.append))
    assert of(results, "file") == [0] and of(results, "whole") == [0, 1, 2]


def test_an_engine_that_is_dead_ends_every_camera_with_one_error(tiny_bundle: Path) -> None:
    cameras = [streams.Camera(name, [frame(i) for i in range(FAILED_IN_A_ROW)]) for name in "ab"]
    pipeline = Pipeline(cameras, detector(tiny_bundle, backend=NoEngine()), policy="every")
    with pytest.raises(EngineError, match=rf"failed on {FAILED_IN_A_ROW} frames in a row.*model\.onnx on NoEngine"):
        run(pipeline)
    assert sum(stream.drops["failed"] for stream in pipeline.streams) == FAILED_IN_A_ROW


def test_what_on_result_raises_comes_out_at_once(tiny_bundle: Path) -> None:
    def full(result: Result) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"^disk full$"):
        run(Pipeline([clip("a", 3)], detector(tiny_bundle), on_result=full))


class Busy(FakeBackend):
    """An engine that is at a frame until it is told to go on, and fails once it is closed."""

    def __init__(self) -> None:
        super().__init__(tiny.graph_spec(), [ROWS])
        self.began, self.go_on, self.closed = Event(), Event(), False

    def run(self, inputs: Tensors) -> Tensors:
        self.began.set()
        self.go_on.wait(SOON)
        if self.closed:
            raise RuntimeError("closed under way")
        return super().run(inputs)

    def close(self) -> None:
        self.closed = True


def test_another_detector_takes_over_between_two_frames(tiny_bundle: Path, results: list[Result]) -> None:
    busy, camera = Busy(), streams.Camera("camera", [frame(0)])
    old, new = detector(tiny_bundle, backend=busy), detector(tiny_bundle, ROWS[:1])
    pipeline = Pipeline([camera], old, policy="every", on_result=results.append)

    runner = Thread(target=pipeline.run)
    with pipeline:
        runner.start()
        assert busy.began.wait(SOON)
        pipeline.detector = new
        old.close()
        assert not busy.closed  # a frame is at it
        busy.go_on.set()
        camera.feed(frame(1))
        camera.end()
        runner.join(SOON)
    assert busy.closed and pipeline.detector is new and pipeline.streams[0].error is None
    assert [result.detections.names for result in results] == [["person", "car"], ["person"]]


def test_a_result_may_change_the_detector(tiny_bundle: Path, results: list[Result]) -> None:
    def note(result: Result) -> None:
        results.append(result)
        pipeline.detector = detector(tiny_bundle, ROWS[:1])

    pipeline = Pipeline([clip("a", 9)], detector(tiny_bundle), on_result=note)
    run(pipeline)
    found = [len(result.detections) for result in results]
    assert found == sorted(found, reverse=True) and found[0] == 2
    assert found[3:] == [1] * 6  # two were under way when the first result came


def test_a_detector_of_another_network_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "other.glmd")
    spec = replace(bundle.manifest.preprocess, mean=(1.0,))
    files = {name: bundle.path / name for name in bundle.manifest.sha256}
    write_bundle(bundle.path, replace(bundle.manifest, preprocess=spec), files, overwrite=True)
    old = detector(tiny_bundle)
    with Pipeline([clip("a", 1)], old) as pipeline:
        with pytest.raises(UsageError, match="wants other pictures"):
            pipeline.detector = detector(bundle.path)
        assert pipeline.detector is old


def test_stop_and_close_while_a_camera_is_silent(tiny_bundle: Path) -> None:
    camera = streams.Camera("camera")
    pipeline = Pipeline([camera, clip("clip", 1)], detector(tiny_bundle))
    runner = Thread(target=pipeline.run)
    with pipeline:
        runner.start()
        pipeline.stop()
        runner.join(SOON)
        assert not runner.is_alive() and pipeline.stopped
        began = monotonic()
    assert monotonic() - began < 5 and camera.closed
    assert not [thread for thread in threads() if thread.name == "reader of camera"]
    pipeline.close()


class Reluctant(streams.Camera):
    """Lets go only when all of its kind have been told to."""

    def __init__(self, name: str, told: Barrier) -> None:
        super().__init__(name)
        self.told, self.left = told, False

    def close(self) -> None:
        self.told.wait(0.8)
        self.left = True
        super().close()


def test_a_stream_may_be_closed_while_it_starts(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Thread):
        def start(self) -> None:
            stream.close()
            super().start()

    monkeypatch.setattr("glmd_runtime.streams.Thread", Slow)
    with Pipeline([clip("a", 3)], detector(tiny_bundle)) as pipeline:
        [stream] = pipeline.streams
        pipeline.run()
    assert stream.frames == 0


def test_sources_are_closed_all_at_once(tiny_bundle: Path) -> None:
    told = Barrier(6)
    cameras = [Reluctant(str(i), told) for i in range(6)]
    Pipeline(cameras, detector(tiny_bundle)).close()
    assert all(camera.left for camera in cameras)


def test_a_source_that_does_not_let_go_is_left_behind(tiny_bundle: Path) -> None:
    silent, for_ever = streams.Camera("a"), Event()
    silent.close = for_ever.wait  # type: ignore[assignment]
    began = monotonic()
    with Pipeline([silent, streams.Camera("b")], detector(tiny_bundle)):
        pass
    assert monotonic() - began < 5  # it would be for ever
    for_ever.set()


def test_a_slow_engine_sees_the_newest_frames(tiny_bundle: Path, results: list[Result]) -> None:
    camera, fed = streams.Camera("camera", [frame(0)]), Event()

    class Slow(FakeBackend):
        def run(self, inputs: Tensors) -> Tensors:
            if not fed.is_set():  # while the engine works, 49 more come
                for index in range(1, 50):
                    camera.feed(frame(index))
                camera.end()
                fed.set()
                reader = next(thread for thread in threads() if thread.name == "reader of camera")
                reader.join(SOON)
            return super().run(inputs)

    slow = detector(tiny_bundle, backend=Slow(tiny.graph_spec(), [ROWS]))
    pipeline = Pipeline([camera], slow, staleness=1e6, on_result=results.append)
    run(pipeline)
    assert of(results, "camera") == [0, 49]
    assert pipeline.streams[0].drops == {"late": 48}
    assert all(result.seconds["wait"] >= 0 for result in results)


def test_every_drops_nothing(tiny_bundle: Path, results: list[Result]) -> None:
    camera = streams.Camera("camera", [frame(index) for index in range(50)])
    camera.end()
    pipeline = Pipeline([camera], detector(tiny_bundle), policy="every", staleness=1e-9, on_result=results.append)
    run(pipeline)
    assert of(results, "camera") == list(range(50)) and pipeline.streams[0].drops == {}


def test_drops_are_counted_by_one_at_a_time(tiny_bundle: Path) -> None:
    """A cause that is new must not come while another thread goes through them."""
    with Pipeline([clip("a", 1)], detector(tiny_bundle)) as pipeline:
        stream, asked = pipeline.streams[0], list[dict[str, int]]()
        asking = Thread(target=lambda: asked.append(stream.drops))
        with stream._changed:
            asking.start()
            asking.join(0.3)
            assert asked == []
        asking.join(SOON)
        assert asked == [{}]


def test_a_stale_frame_is_dropped_and_counted(tiny_bundle: Path, results: list[Result]) -> None:
    camera = streams.Camera("camera", [frame(0, captured=monotonic() - 3600)])
    camera.drops["corrupt"] = 2
    camera.end()
    pipeline = Pipeline([camera], detector(tiny_bundle), on_result=results.append)
    run(pipeline)
    assert results == [] and pipeline.streams[0].drops == {"stale": 1, "corrupt": 2}


def test_a_closed_shutter_keeps_the_picture_and_is_counted(tiny_bundle: Path, results: list[Result]) -> None:
    flat = Frame(np.full(tiny.SIZE_HW, 29000, np.uint16), 1, 1 / 25)
    source = Source("camera", 25.0, 3, iter([frame(0), flat, frame(2)]))
    pipeline = Pipeline([source], detector(tiny_bundle), on_result=results.append)
    run(pipeline)
    assert [result.frame.held for result in results] == [None, "uniform", None]
    assert results[1].picture is results[0].picture and len(results[1].detections) == 2
    assert pipeline.streams[0].held == {"uniform": 1}


def test_what_is_particular_to_cameras(tiny_bundle: Path, results: list[Result]) -> None:
    def dark(source: Source) -> Camera:
        return Camera(polarity="black-hot" if source.name == "b" else None)

    run(Pipeline([clip("a", 1), clip("b", 1)], detector(tiny_bundle), camera=dark, on_result=results.append))
    a, b = (next(r.picture for r in results if r.stream == name) for name in "ab")
    assert a[20, 15] == 255 and b[20, 15] == 0  # the person
    bad = np.zeros(tiny.SIZE_HW, bool)
    bad[5, 40] = True
    hot = frame(0)
    hot.image[5, 40] = 65535
    for camera in (None, Camera(bad_pixels=bad)):
        source = Source("hot", 25.0, 1, iter([hot]))
        run(Pipeline([source], detector(tiny_bundle), camera=camera, on_result=results.append))
    assert results[-2].picture[5, 40] == 255 and abs(int(results[-1].picture[5, 40]) - results[-1].picture[5, 39]) < 5
    small = Camera(bad_pixels=bad[:9, :9])
    with pytest.raises(FrameError, match=r"^c: A mask of bad pixels has its camera's size, 80x64; got one of 9x9"):
        run(Pipeline([clip("c", 1)], detector(tiny_bundle), camera=small))


def test_each_stream_has_a_tracker_of_its_own(tiny_bundle: Path, results: list[Result]) -> None:
    class Counting:
        def __init__(self, source: Source) -> None:
            self.name, self.frames = source.name, 0

        def update(self, detections: Detections, frame: Frame) -> Detections:
            self.frames += 1
            return detections[:1]

    trackers: list[Counting] = []

    def make(source: Source) -> Counting:
        trackers.append(Counting(source))
        return trackers[-1]

    run(Pipeline([clip("a", 3), clip("b", 2)], detector(tiny_bundle), tracker=make, on_result=results.append))
    assert {one.name: one.frames for one in trackers} == {"a": 3, "b": 2}
    assert all(len(result.detections) == 1 and "track" in result.seconds for result in results)


def test_names_are_distinct(tiny_bundle: Path) -> None:
    with Pipeline([clip("a", 1), clip("b", 1), clip("a", 1)], detector(tiny_bundle)) as pipeline:
        assert [stream.name for stream in pipeline.streams] == ["a (1)", "b", "a (2)"]


def test_what_was_opened_is_closed_when_another_cannot_be(tiny_bundle: Path) -> None:
    camera = streams.Camera("camera")
    with pytest.raises(SourceError, match=r"absent\.mp4"):
        Pipeline([camera, "absent.mp4"], detector(tiny_bundle))
    assert camera.closed


def test_no_source(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="at least one source; got none"):
        Pipeline([], detector(tiny_bundle))


@pytest.mark.parametrize("value", [None, 0.6, 0.95])
def test_a_threshold_set_while_it_runs_holds_from_the_next_frame(value: Any, tiny_bundle: Path) -> None:
    one, counts = detector(tiny_bundle), list[int]()

    def note(result: Result) -> None:
        counts.append(len(result.detections))
        if result.frame.index == 1:
            one.score_threshold = value

    clips = Eager("a", 4)
    run(Pipeline([clips.source], one, on_result=note))
    after = {None: 2, 0.6: 1, 0.95: 0}[value]
    assert counts == [2, 2, after, after]
    with pytest.raises(UsageError, match=r"0\.\.1; got 7"):
        one.score_threshold = 7
    assert one.score_threshold == value
