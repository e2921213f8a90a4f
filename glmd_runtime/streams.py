"""One source within a pipeline: read ahead by a thread of its own, prepared, tracked and counted."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from queue import SimpleQueue
from statistics import median
from threading import Condition, Thread
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.front_end import FrontEnd, Prepared
from glmd_runtime.detections import Detections
from glmd_runtime.thermal import Intensity
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_runtime.video.status import State, Status

WINDOW = 5.0  # seconds that rate and latency look back
MOST = 1000  # results that they look back at: an archive that runs at thousands a second must not fill memory
LEAVE = 1.0  # seconds that a reader has to end in `close`


class FrameTracker(Protocol):
    """What the pipeline wants of a tracker: the same rows, with track ids."""

    def update(self, detections: Detections, frame: Frame) -> Detections: ...


@dataclass(frozen=True, eq=False)
class Result:
    """One frame of one stream, done.

    stream   its name
    picture  what the network saw: (H, W) or (H, W, 3) uint8; of a frame that is held (see `FrontEnd`) what it saw last
    seconds  by stage: "prepare" (from the frame to the network's image) and "detect" (the network, and boxes of what it
             says), both of all streams in a call of the graph; "track" where there is a tracker; "wait", of a live
             stream all that its frame waited since its capture; "total" the sum
    """

    stream: str
    frame: Frame
    detections: Detections
    picture: NDArray[np.uint8]
    seconds: dict[str, float]


class Stream:
    """One source within a pipeline. What is public may be read from any thread.

    name    the source's, with a number where two have the same
    error   what ended it, if that was an error
    frames  how many were detected in; those of a closed shutter are in `held`
    newest  whether its slot holds the newest frame; else each waits until it is taken
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
        self._picture: NDArray[np.uint8] | None = None
        self.frames = 0
        self.newest = newest and source.live
        self._staleness = staleness if self.newest else float("inf")
        self._slot: Frame | None = None
        self._under_way = 0  # frames that were taken and are not done
        self._failed = False
        self._changed = Condition()  # guards the slot and the figures
        self._dropped: Counter[str] = Counter()
        self._ended: Status | None = None
        self._closed = False
        self._last = monotonic()
        self._recent: deque[tuple[float, float]] = deque(maxlen=MOST)  # (when, latency)
        self._reader: Thread | None = None

    @property
    def live(self) -> bool:
        return self.source.live

    @property
    def finished(self) -> bool:
        """No frame is left, and none will come."""
        return self._ended is not None and self._slot is None and not self._under_way

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
        """Frames without a result, by cause: "late" for one that a newer one replaced, "failed" for one on which the
        network failed, and what the source counts."""
        with self._changed:
            return dict(self._dropped + Counter(self.source.drops))

    @property
    def rate(self) -> float:
        """Results a second, over the last seconds; it falls while there are none."""
        recent = self._lately()
        return (len(recent) - 1) / (monotonic() - recent[0][0]) if len(recent) > 1 else 0.0

    @property
    def latency(self) -> float | None:
        """Median seconds from capture to result, over the last seconds; None when there was no result yet."""
        recent = self._lately()
        return median(latency for _, latency in recent) if recent else None

    def _lately(self) -> list[tuple[float, float]]:
        with self._changed:
            self._forget()
            return list(self._recent)

    def _forget(self) -> None:
        while len(self._recent) > 2 and self._recent[0][0] < monotonic() - WINDOW:
            self._recent.popleft()

    @property
    def held(self) -> dict[str, int]:
        """Frames that showed nothing of the scene (a closed shutter) and got the detections of the one before."""
        return dict(self._front_end.held)

    @property
    def warnings(self) -> dict[str, str]:
        """What is not as in training, see `FrontEnd.warnings`."""
        return dict(self._front_end.warnings)

    def prepare(self, frame: Frame) -> Prepared:
        """What the network is to see of a frame that was taken. `finish` or `fail` comes for each, in order."""
        return self._front_end.prepare(frame)

    def finish(self, prepared: Prepared, found: Detections | None, seconds: dict[str, float]) -> Result | None:
        """The result, tracked and counted; None where an error, this frame's or an earlier one's, ended this stream.

        Args: found, None for a frame that is held; seconds, of the stages so far.
        """
        if self._failed:
            self._under_way -= 1
            return None
        began = monotonic()
        try:
            frame, found = self._front_end.finish(prepared, found)
            if self._tracker:
                found = self._tracker.update(found, frame)
                seconds = {**seconds, "track": monotonic() - began}
        except Exception as error:  # the other streams go on
            self.fail(error)
            return None
        seconds = {**seconds, "total": sum(seconds.values())}
        with self._changed:
            self.frames += prepared.picture is not None
            self._last = monotonic()
            self._recent.append((self._last, seconds["total"]))
            self._forget()  # here too, as nobody may ever ask
        self._picture = self._seen(prepared)
        self._under_way -= 1
        return Result(self.name, frame, found, self._picture, seconds)

    def _seen(self, prepared: Prepared) -> NDArray[np.uint8]:
        if prepared.picture is not None:
            return prepared.picture
        return Intensity()(prepared.frame.image) if self._picture is None else self._picture

    def start(self, ready: SimpleQueue[Stream | None]) -> None:
        """Begin to read; `ready` gets this stream once for each time that its slot becomes full, and at its end."""
        reader = Thread(target=self._read, args=(ready,), name=f"reader of {self.name}", daemon=True)
        reader.start()
        self._reader = reader  # only now, as `close`, from another thread, may not join one that was not started

    def take(self) -> Frame | None:
        """The frame in the slot; None where there is none, or it is too old."""
        with self._changed:
            frame, self._slot = self._slot, None
            self._changed.notify_all()
            if frame is not None and monotonic() - frame.captured > self._staleness:
                self._dropped["stale"] += 1
                return None
            self._under_way += frame is not None
            return frame

    def fail(self, error: Exception) -> None:
        """An error of a frame that was taken ends the stream, whatever is still to come."""
        with self._changed:
            self._end(error)
            self._failed = True
            self._under_way -= 1
            self._slot = None
            self._changed.notify_all()

    def lose(self, error: Exception) -> None:
        """The network failed on a frame that was taken: a camera goes on with the next, of a file nothing may lack."""
        if not self.live:
            self.fail(error)
            return
        with self._changed:
            self._dropped["failed"] += 1
            self._under_way -= 1

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or (error and not self.error):
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
                    self.source.close()  # a camera would be read on, though its stream has failed
                    break
        except Exception as raised:  # whatever a decoder raises, the other streams go on
            error = None if self._closed else raised
        with self._changed:
            self._end(error)
        ready.put(self)

    def _offer(self, frame: Frame, ready: SimpleQueue[Stream | None]) -> bool:
        """Put a frame into the slot; False when nobody will take it."""
        with self._changed:
            if not self.newest:
                self._changed.wait_for(lambda: self._slot is None or self._closed or self._ended)
            if self._closed or self._ended:
                return False
            replaced, self._slot = self._slot, frame
            if replaced is None:
                ready.put(self)
            else:
                self._dropped["late"] += 1
            return True
