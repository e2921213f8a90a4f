"""Many streams, one engine: whoever has a frame ready takes its turn.

    reader thread of each source -> a slot for one frame -> Pipeline.run: engine, tracker -> on_result

Turns go around: a stream whose turn is over queues behind those that waited. A graph that takes several images at once
gets those of several streams, as many as wait; its call lasts as long with fewer. A live stream's slot holds its newest
frame, so that a busy engine makes frames fewer, not late; a file waits until its frame was taken.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from threading import Condition, Event, Thread
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.detector import Detector
from glmd_runtime.errors import GlmdError, UsageError
from glmd_runtime.front_end import FrontEnd, Prepared
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.live import STALENESS, Policy
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import open_source
from glmd_runtime.video.status import State, Status

POLL = 0.1  # seconds between looks at the states of sources
WINDOW = 5.0  # seconds that rate and latency look back
LEAVE = 1.0  # seconds that a reader has to end in `close`


class FrameTracker(Protocol):
    """What the pipeline wants of a tracker: the same rows, with track ids."""

    def update(self, detections: Detections, frame: Frame) -> Detections: ...


@dataclass(frozen=True, eq=False)
class Result:
    """One frame of one stream, done.

    stream   its name
    picture  what the network saw: (H, W) or (H, W, 3) uint8; None for a frame that is held, see `FrontEnd`
    seconds  by stage: "wait" from capture to the frame's turn (only of a live stream), "prepare",
             "detect" (of all streams in a call of the graph), "track" where there is a tracker, "total" the sum
    """

    stream: str
    frame: Frame
    detections: Detections
    picture: NDArray[np.uint8] | None
    seconds: dict[str, float]


class Stream:
    """One source within a pipeline. What is public may be read from any thread.

    name   the source's, with a number where two have the same
    error  what ended it, if that was an error
    """

    def __init__(
        self,
        name: str,
        source: Source,
        front_end: FrontEnd,
        tracker: FrameTracker | None = None,
        *,
        newest: bool,
        staleness: float,
    ) -> None:
        self.name, self.source = name, source
        self._front_end, self._tracker = front_end, tracker
        self.error: Exception | None = None
        self.frames = 0
        self._newest = newest and source.live
        self._staleness = staleness if self._newest else float("inf")
        self._slot: Frame | None = None
        self._changed = Condition()  # of the slot
        self._dropped: Counter[str] = Counter()
        self._ended: Status | None = None
        self._closed = False
        self._last = monotonic()
        self._recent: deque[tuple[float, float]] = deque()  # (when, latency)
        self._reader: Thread | None = None

    @property
    def live(self) -> bool:
        return self.source.live

    @property
    def finished(self) -> bool:
        """No frame is left, and none will come."""
        return self._ended is not None and self._slot is None

    @property
    def status(self) -> Status:
        return self._ended or self.source.status

    @property
    def state(self) -> State:
        """As in `status`, but "lost" while a camera that gave frames is connected again."""
        now = self.status.state
        return "lost" if now == "connecting" and self.frames else now

    @property
    def silence(self) -> float:
        """Seconds since the last result, or since the start where there was none."""
        return monotonic() - self._last

    @property
    def drops(self) -> dict[str, int]:
        """Frames that no engine saw, by cause: "late" for one that a newer one replaced, and what the source counts."""
        return dict(self._dropped + Counter(self.source.drops))

    @property
    def rate(self) -> float:
        """Results a second, over the last seconds."""
        recent = self._lately()
        return (len(recent) - 1) / (recent[-1][0] - recent[0][0]) if len(recent) > 1 else 0.0

    @property
    def latency(self) -> float | None:
        """Median seconds from capture to result, over the last seconds; None when there was no result."""
        recent = self._lately()
        return median(latency for _, latency in recent) if recent else None

    def _lately(self) -> list[tuple[float, float]]:
        with self._changed:
            while self._recent and self._recent[0][0] < monotonic() - WINDOW:
                self._recent.popleft()
            return list(self._recent)

    @property
    def held(self) -> dict[str, int]:
        """Frames that showed nothing of the scene (a closed shutter) and got the detections of the one before."""
        return dict(self._front_end.held)

    @property
    def warnings(self) -> dict[str, str]:
        """What is not as in training, see `FrontEnd.warnings`."""
        return dict(self._front_end.warnings)

    def prepare(self, frame: Frame) -> Prepared | None:
        """What the network is to see; None where an error ended this stream."""
        try:
            return self._front_end.prepare(frame)
        except Exception as error:  # the other streams go on
            self.end(error)
            return None

    def finish(self, prepared: Prepared, found: Detections | None, seconds: dict[str, float]) -> Result | None:
        """The result, tracked and counted; None where an error ended this stream.

        Args: found, None for a frame that is held; seconds, of the stages so far.
        """
        began = monotonic()
        try:
            frame, found = self._front_end.finish(prepared, found)
            if self._tracker:
                found = self._tracker.update(found, frame)
                seconds = {**seconds, "track": monotonic() - began}
        except Exception as error:  # the other streams go on
            self.end(error)
            return None
        seconds = {**seconds, "total": sum(seconds.values())}
        with self._changed:
            self.frames += 1
            self._last = monotonic()
            self._recent.append((self._last, seconds["total"]))
        return Result(self.name, frame, found, prepared.picture, seconds)

    def start(self, ready: SimpleQueue[Stream | None]) -> None:
        """Begin to read; `ready` gets this stream once for each time that its slot becomes full, and at its end."""
        self._reader = Thread(target=self._read, args=(ready,), name=f"reader of {self.name}", daemon=True)
        self._reader.start()

    def take(self) -> Frame | None:
        """The frame in the slot; None where there is none, or it is too old."""
        with self._changed:
            frame, self._slot = self._slot, None
            self._changed.notify_all()
            if frame is not None and monotonic() - frame.captured > self._staleness:
                self._dropped["stale"] += 1
                return None
            return frame

    def end(self, error: Exception | None = None) -> None:
        """No more frames; the first call says why."""
        if self._ended is None:
            self.error = error
            self._ended = Status("ended", str(error) if error else "")

    def close(self) -> None:
        """Let the reader go; it may be waiting for its camera."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.source.close()
        if self._reader:
            self._reader.join(LEAVE)

    def _read(self, ready: SimpleQueue[Stream | None]) -> None:
        error = None
        try:
            for frame in self.source:
                if not self._offer(frame, ready):
                    break
        except Exception as raised:  # whatever a decoder raises, the other streams go on
            error = None if self._closed else raised
        self.end(error)
        ready.put(self)

    def _offer(self, frame: Frame, ready: SimpleQueue[Stream | None]) -> bool:
        """Put a frame into the slot; False when nobody will take it."""
        with self._changed:
            if not self._newest:
                self._changed.wait_for(lambda: self._slot is None or self._closed)
            if self._closed or self._ended:
                return False
            replaced, self._slot = self._slot, frame
            if replaced is None:
                ready.put(self)
            else:
                self._dropped["late"] += 1
            return True


class Pipeline:
    """Runs a detector over many sources, fairly. Use it inside `with`; call `run` once.

    Args:
        sources: addresses for `open_source`, or sources that are open; all are closed with the pipeline.
        detector: stays open.
        tracker: makes a tracker for a source; None for detections without tracks.
        policy: for live sources: "freshest" skips frames that the engine has no time for, "every" does not.
        staleness: seconds; a live frame older than this is dropped ("freshest" only).
        on_result: called with each Result, of one stream in order.
        on_status: called with a stream's name and its Status whenever that changed.
    Both are called in the thread of `run`; what they need longer for than the engine slows every stream down.
    Raises: UsageError without a source, and what `open_source` raises.
    """

    def __init__(
        self,
        sources: Sequence[str | Path | Source],
        detector: Detector,
        *,
        tracker: Callable[[Source], FrameTracker] | None = None,
        policy: Policy = "freshest",
        staleness: float = STALENESS,
        on_result: Callable[[Result], object] = lambda result: None,
        on_status: Callable[[str, Status], object] = lambda name, status: None,
    ) -> None:
        if not sources:
            raise UsageError("A pipeline needs at least one source; got none.")
        self.detector = detector
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
                    name, source, detector.front_end(), tracker(source) if tracker else None,
                    newest=policy == "freshest", staleness=staleness,
                )
                for name, source in zip(names, opened, strict=True)
            )
            self._announced: dict[str, Status] = {}
            stack.pop_all()

    def run(self) -> None:
        """Until every stream has ended, or `stop`.

        Raises: the first error that ended a stream, with the stream's name, after the other streams have ended; at
            once what `on_result` or `on_status` raises.
        """
        for stream in self.streams:
            stream.start(self._ready)
        while not self._stopped.is_set() and not all(stream.finished for stream in self.streams):
            self._announce()
            for result in self._detect(self._turns()):
                self._on_result(result)
        self._announce()
        for stream in self.streams:
            if stream.error:
                raise _named(stream.name, stream.error) from stream.error

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Make `run` return after the frame that it is at; from any thread, or a signal's handler."""
        self._stopped.set()
        self._ready.put(None)

    def close(self) -> None:
        """Stop, and close every source; calling it again does nothing more."""
        self.stop()
        for stream in self.streams:
            stream.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turns(self) -> list[tuple[Stream, Frame]]:
        """Those whose turn it is, with their frames: as many as the graph takes at once, of those that wait."""
        turns: list[tuple[Stream, Frame]] = []
        try:
            ready = self._ready.get(timeout=POLL)
            while True:
                if ready and (frame := ready.take()):
                    turns.append((ready, frame))
                if len(turns) == self.detector.batch:
                    break
                ready = self._ready.get_nowait()
        except Empty:
            pass
        return turns

    def _detect(self, turns: list[tuple[Stream, Frame]]) -> Iterator[Result]:
        began = monotonic()
        prepared = [(stream, shown) for stream, frame in turns if (shown := stream.prepare(frame))]
        ready = monotonic()
        pictures = [shown.picture for _, shown in prepared if shown.picture is not None]
        try:
            found = iter(self.detector.run_all(pictures))
        except Exception as error:  # these streams' own; the others go on
            for stream, _ in prepared:
                stream.end(error)
            return
        seconds = {"prepare": ready - began, "detect": monotonic() - ready}
        for stream, shown in prepared:
            wait = {"wait": began - shown.frame.captured} if stream.live else {}
            result = stream.finish(shown, None if shown.picture is None else next(found), {**wait, **seconds})
            if result:
                yield result

    def _announce(self) -> None:
        for stream in self.streams:
            status = stream.status
            if self._announced.get(stream.name) != status:
                self._announced[stream.name] = status
                self._on_status(stream.name, status)


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
