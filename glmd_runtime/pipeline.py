"""Many streams, one engine: whoever has a frame ready takes its turn.

    reader thread of each source -> a slot for one frame -> Pipeline.run: prepare
        -> network thread -> Pipeline.run: boxes, tracker, on_result

While the network computes, the results of the call before are finished, and the next frames of files are prepared. A
camera's newest frame is taken when the network is free, so that it does not grow old in a queue.

Turns go around: of those that have a frame ready it is the turn of the one that was served longest ago. A graph that
takes several images at once gets those of several streams, as many as wait; its call lasts as long with fewer. A live
stream's slot holds its newest frame, so that a busy engine makes frames fewer, not late; a file waits for its turn.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic

from glmd_runtime.camera.front_end import Camera, Prepared
from glmd_runtime.detections import Detections
from glmd_runtime.detector import Detector
from glmd_runtime.errors import EngineError, GlmdError, UsageError
from glmd_runtime.images import Images
from glmd_runtime.overlap import failed, network_threads
from glmd_runtime.streams import LEAVE, FrameTracker, Result, Stream
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.live import STALENESS, Policy
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import open_source
from glmd_runtime.video.status import Status

POLL = 0.1  # seconds between looks at the states of sources
FAILED_IN_A_ROW = 50  # frames, of whatever streams, after which an engine is taken for dead

_log = logging.getLogger(__name__)

_Rest = Callable[[], Sequence[Detections | EngineError]]  # what `Detector.infer` leaves to do, or why it failed
_Answer = tuple[float, _Rest]  # seconds, ...


@dataclass(frozen=True, eq=False)
class _Call:
    """Frames that go through the network together.

    frames     each with its stream and what was made of it, or the error of that
    preparing  seconds, of all
    """

    frames: list[tuple[Stream, Frame, Prepared | Exception]]
    preparing: float
    answer: Future[_Answer]


class Pipeline:
    """Runs a detector over many sources, fairly. Use it inside `with`; call `run` once.

    Args:
        sources: addresses for `open_source`, or sources that are open; all are closed with the pipeline.
        detector: stays open; another one may take its place, see `Pipeline.detector`.
        camera: what is particular to the cameras, one for all, or what says it of a source; None for nothing.
        tracker: makes a tracker for a source; None for detections without tracks.
        policy: for live sources: "freshest" skips frames that the engine has no time for, "every" does not.
        staleness: seconds; a live frame older than this is dropped ("freshest" only).
        on_result: called with each Result, of one stream in order.
        on_status: called with a stream's name and its Status whenever that changed.
    Both are called in the thread of `run`; what they need longer for than the engine slows every stream down.
    Raises: UsageError without a source, and what `open_source`, `Detector.front_end` and the two functions raise.
    """

    def __init__(
        self,
        sources: Sequence[str | Path | Source],
        detector: Detector,
        *,
        camera: Camera | Callable[[Source], Camera] | None = None,
        tracker: Callable[[Source], FrameTracker] | None = None,
        policy: Policy = "freshest",
        staleness: float = STALENESS,
        on_result: Callable[[Result], object] = lambda result: None,
        on_status: Callable[[str, Status], object] = lambda name, status: None,
    ) -> None:
        if not sources:
            raise UsageError("A pipeline needs at least one source; got none.")
        self._detector = detector
        self._on_result, self._on_status = on_result, on_status
        self._ready: SimpleQueue[Stream | None] = SimpleQueue()
        self._stopped = Event()
        with ExitStack() as stack:
            opened = [
                stack.enter_context(
                    source if isinstance(source, Source) else open_source(source, policy=policy, staleness=staleness)
                )
                for source in sources
            ]
            names = _distinct([source.name for source in opened])
            self.streams = tuple(
                Stream(
                    name,
                    source,
                    detector.front_end(camera(source) if callable(camera) else camera, name),
                    tracker(source) if tracker else None,
                    newest=policy == "freshest",
                    staleness=staleness,
                )
                for name, source in zip(names, opened, strict=True)
            )
            self._waiting: list[Stream] = []
            self._calls: deque[_Call] = deque()  # under way, in order
            self._at_once = detector.calls
            self._ahead = 0 if any(stream.newest for stream in self.streams) else 1  # calls that wait for the network
            self._turn_numbers = count(1)
            self._failures = 0  # frames in a row
            self._served = dict.fromkeys(names, 0)  # the number of each stream's last turn
            self._announced: dict[str, Status] = {}
            stack.pop_all()

    def run(self) -> None:
        """Until every stream has ended, or `stop`.

        A frame on which the network fails is dropped and counted where it is a camera's, and ends the stream of a file.
        Raises: the first error that ended a stream, with the stream's name, after the other streams have ended; at
            once what `on_result` or `on_status` raises, and EngineError when the network fails on frame after frame.
        """
        for stream in self.streams:
            stream.start(self._ready)
        with network_threads(self._at_once) as network:
            while not self._stopped.is_set() and not all(stream.finished for stream in self.streams):
                self._announce()
                self._wait()
                answered = self._has_answer()  # asked first: a call that ends just now is not finished before the next
                if self._has_room() and (turns := self._turns()):
                    self._calls.append(self._begin(turns, network))
                if answered:
                    for result in self._finish(self._calls.popleft()):
                        self._on_result(result)
        self._announce()
        for stream in self.streams:
            if stream.error:
                raise _named(stream.name, stream.error) from stream.error

    @property
    def detector(self) -> Detector:
        """What detects; may be set from any thread while `run` runs, to what `Detector.enroll` made of it.

        Streams, their memory and their tracks go on, and what the network has not begun with is the new one's. The old
        one may be closed; what it is at is done first.
        Raises: UsageError for a detector whose network wants other pictures, as of another model.
        """
        return self._detector

    @detector.setter
    def detector(self, detector: Detector) -> None:
        if detector.preprocess != self._detector.preprocess:
            raise UsageError(
                "A pipeline's streams are prepared for its detector's network, and the new detector wants other "
                f"pictures: expected {self._detector.preprocess}, got {detector.preprocess}. Set one that `enroll` "
                "made of the old one, or begin a new Pipeline."
            )
        self._detector = detector

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Make `run` return; from any thread, or a signal's handler. What is under way then has no result."""
        self._stopped.set()
        self._ready.put(None)

    def close(self) -> None:
        """Stop, and close every source, all at once, within a second; calling it again does nothing more."""
        self.stop()
        closing = [Thread(target=stream.close, daemon=True) for stream in self.streams]
        for thread in closing:
            thread.start()
        until = monotonic() + LEAVE
        for thread in closing:
            thread.join(max(0.0, until - monotonic()))

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_room(self) -> bool:
        """Whether the next call may begin; while the network is busy only a full one, of frames that do not get old."""
        most = self._at_once + self._ahead
        busy = sum(not call.answer.done() for call in self._calls)
        going = sum(not stream.finished for stream in self.streams)
        enough = min(self.detector.batch, going) if busy else 1
        return busy < most and len(self._calls) <= most and len(self._waiting) >= enough

    def _has_answer(self) -> bool:
        return bool(self._calls) and self._calls[0].answer.done()

    def _wait(self) -> None:
        """Until there is something to do, or for a moment."""
        try:
            ready = self._ready.get(timeout=0 if self._has_room() or self._has_answer() else POLL)
            while True:
                self._waiting += [ready] if ready else []
                ready = self._ready.get_nowait()
        except Empty:
            pass

    def _turns(self) -> list[tuple[Stream, Frame]]:
        """Those whose turn it is, with their frames: as many as the graph takes at once, of those that wait."""
        self._waiting.sort(key=lambda stream: self._served[stream.name])
        turns: list[tuple[Stream, Frame]] = []
        while self._waiting and len(turns) < self.detector.batch:
            stream = self._waiting.pop(0)
            if frame := stream.take():
                turns.append((stream, frame))
                self._served[stream.name] = next(self._turn_numbers)
        return turns

    def _begin(self, turns: list[tuple[Stream, Frame]], network: Executor) -> _Call:
        """Prepare frames, and hand them to the network's thread; errors have their turn when the call is finished."""
        began = monotonic()
        frames = [(stream, frame, _prepared(stream, frame)) for stream, frame in turns]
        pictures = [p.picture for *_, p in frames if isinstance(p, Prepared) and p.picture is not None]
        answer: Future[_Answer]
        try:
            images = self.detector.prepare(pictures) if pictures else None
            preparing = monotonic() - began
            answer = network.submit(self._infer, images)
        except Exception as error:
            preparing, answer = monotonic() - began, failed(error)
        answer.add_done_callback(lambda _: self._ready.put(None))
        return _Call(frames, preparing, answer)

    def _infer(self, images: Images | None) -> _Answer:
        """In the network's thread. Without a picture, as of a closed shutter, there is nothing to find."""
        began = monotonic()
        rest = self._found(images) if images else list
        return monotonic() - began, rest

    def _found(self, images: Images) -> _Rest:
        """Where the network fails on several frames each goes alone, so that one costs no other its result."""
        detector = self._detector
        try:
            return detector.infer(images)
        except GlmdError as error:
            if detector is not self._detector:
                return self._found(images)  # another took its place, and it was closed, before it began
            if not isinstance(error, EngineError):
                raise
            failed, alone = error, images.one_by_one()
        if len(alone) == 1:
            return lambda: [failed]
        answers = [self._found(one) for one in alone]
        return lambda: [found for rest in answers for found in rest()]

    def _finish(self, call: _Call) -> Iterator[Result]:
        began = monotonic()
        try:
            seconds, rest = call.answer.result()
            found = iter(rest())
        except Exception as error:  # these streams' own; the others go on
            for stream, _, prepared in call.frames:
                stream.fail(prepared if isinstance(prepared, Exception) else error)
            return
        worked = {"prepare": call.preparing, "detect": seconds + monotonic() - began}
        for stream, frame, prepared in call.frames:
            if isinstance(prepared, Exception):
                stream.fail(prepared)
                continue
            one = None if prepared.picture is None else next(found)
            if isinstance(one, EngineError):
                stream.lose(one)
                self._count(stream, one)
                continue
            self._failures = 0 if one is not None else self._failures
            wait = {"wait": monotonic() - frame.captured - sum(worked.values())} if stream.live else {}
            result = stream.finish(prepared, one, {**wait, **worked})
            if result:
                yield result

    def _count(self, stream: Stream, error: EngineError) -> None:
        """One more frame on which the network failed. Raises: EngineError where it is none of the frames' fault."""
        self._failures += 1
        if stream.live and self._failures == 1:
            _log.warning("%s: the network failed on a frame: %s", stream.name, error)
        if self._failures >= FAILED_IN_A_ROW:
            raise EngineError(f"The engine failed on {self._failures} frames in a row, so every stream ends: {error}")

    def _announce(self) -> None:
        for stream in self.streams:
            status = stream.status
            if self._announced.get(stream.name) != status:
                self._announced[stream.name] = status
                self._on_status(stream.name, status)


def _prepared(stream: Stream, frame: Frame) -> Prepared | Exception:
    try:
        return stream.prepare(frame)
    except Exception as error:  # the other streams go on
        return error


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as they are, with a number behind those that are there twice."""
    times, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} ({seen[name]})" if times[name] > 1 else name)
    return distinct


def _named(name: str, error: Exception) -> GlmdError:
    """The error of a stream, with its name and of its own class where that is ours."""
    if isinstance(error, GlmdError):
        return type(error)(f"{name}: {error}")
    return GlmdError(f"{name}: {type(error).__name__}: {error}")
