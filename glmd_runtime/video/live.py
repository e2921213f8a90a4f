"""Live sources: a thread that reads a camera, comes back when it is lost, and never hands on what is too old.

A camera is an object with `name`, `fps` and `shots()`, which connects, yields what comes, None for what came but is no
picture yet, and raises SourceError when the connection is lost; returning says that there will be no more. Everything
else is here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from threading import Condition, Event, Thread, current_thread
from time import monotonic
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.errors import SourceError, UsageError
from glmd_runtime.preprocess import is_frame
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.decoding import check_counts
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import OnStatus, Source
from glmd_runtime.video.status import Status

Policy = Literal["freshest", "every"]
CAPACITY = {"freshest": 1, "every": 32}  # frames that wait for their reader
STALENESS = 0.5  # seconds
TIMEOUT = 5.0  # seconds without a usable frame, after which a camera is lost
CORRUPT_IN_A_ROW = 50  # after so many without a usable one, connecting again is sooner than waiting
BACKOFF = 0.5, 30.0  # seconds before the second attempt, doubled with each, and at most
CLOSE_WAIT = 0.5  # seconds that close() gives the thread; one that FFmpeg holds ends by itself, later
TICK = 1e-6  # seconds that two frames are apart at least
DRIFT = 1e-3  # seconds a second by which a camera's clock may go slower than ours


@dataclass(frozen=True, eq=False)
class Shot:
    """What came from a camera.

    image  as in `Frame`; None for what could not be decoded
    stamp  when it was taken, in seconds of the camera's own clock, where it says so
    truth  as in `Frame`
    """

    image: NDArray[Any] | None
    stamp: float | None = None
    truth: Detections | None = None


class Camera(Protocol):
    """`fps` is a guess until frames come."""

    name: str
    fps: float

    def shots(self) -> Generator[Shot | None, None, None]: ...


class Clock:
    """The time; tests bring one that runs faster."""

    def now(self) -> float:
        return monotonic()

    def sleep(self, seconds: float, until: Event) -> None:
        until.wait(seconds)


class Delay:
    """How long a frame was held up on its way: arrival minus stamp, above the least that was seen.

    The clocks of a camera and this machine drift apart; the least creeps upwards so as not to take that for a delay.

    catching_up  whether the frames since the first came in less than half the time in which they were taken: a
                 camera or a relay begins with what it stored, and how old that is cannot be told
    """

    def __init__(self) -> None:
        self.catching_up = False
        self._least = self._stamp = self._arrived = 0.0
        self._known = False

    def __call__(self, arrived: float, stamp: float | None) -> float:
        if stamp is None:
            return 0.0
        offset = arrived - stamp
        pace = arrived - self._arrived, stamp - self._stamp
        self.catching_up = not self._known or (self.catching_up and pace[0] < pace[1] / 2)
        if not self._known or stamp <= self._stamp:  # a camera that starts its clock anew starts here anew
            self._known, self._least = True, offset
        self._least = min(self._least + DRIFT * (arrived - self._arrived), offset)
        self._stamp, self._arrived = stamp, arrived
        return offset - self._least


class LiveSource(Source):
    """A camera as a source: the thread starts at once, and `close` ends it.

    Args:
        policy: "freshest" keeps only the newest frame for its reader, and yields none that is older than `staleness`
            seconds; "every" drops none: it lets CAPACITY frames wait, and then the camera.
        timeout: seconds without a usable frame, after which the camera counts as lost.
        radiometry: how its counts are temperatures.
        on_status: called on every change, from the thread; it must return soon.
    Frames: index counts what the camera gave, dropped ones too; time and `captured` are this machine's, less the time
        that a frame was held up on its way, where the camera stamps its frames.
    drops: "late", a newer one came before it was asked for; "stale", it came or was asked for too late; "corrupt".
    Raises, while iterating: what the camera raised, other than SourceError, which means a new attempt.
    """

    live = True

    def __init__(
        self,
        camera: Camera,
        *,
        policy: Policy = "freshest",
        staleness: float = STALENESS,
        timeout: float = TIMEOUT,
        radiometry: Radiometry | None = None,
        on_status: OnStatus | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_live(policy, staleness)
        super().__init__(camera.name, camera.fps, None, iter(()))
        self._camera, self._radiometry, self._clock = camera, radiometry, clock or Clock()
        self._policy, self._staleness, self._timeout = policy, staleness, timeout
        self.drops = {"late": 0, "stale": 0, "corrupt": 0}
        self._waiting: deque[Frame] = deque()
        self._changed = Condition()  # guards the frames that wait, the drops and the status
        self._closed = Event()
        self._error: BaseException | None = None
        self._index = 0
        self._start: float | None = None  # when the first frame was captured
        self._time = 0.0
        self._kind = ""  # size and type of the last picture
        self._attempt = 0
        self.status = Status("connecting", since=self._clock.now())
        self._on_status = on_status
        self._thread = Thread(target=self._run, name=f"reader of {self.name}", daemon=True)
        self._thread.start()

    # What the one who iterates does

    def _next(self) -> Frame | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self.status.state == "ended" or self._closed.is_set())
                if not self._waiting:
                    break
                frame = self._waiting.popleft()
                self._changed.notify_all()
                if not self._is_stale(frame):
                    return frame
                self.drops["stale"] += 1
        if self._error is not None:
            raise self._error
        return None

    def _is_stale(self, frame: Frame) -> bool:
        return self._policy == "freshest" and self._clock.now() - frame.captured > self._staleness

    def close(self) -> None:
        """No more frames, within a second; calling it again does nothing."""
        self._closed.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        if current_thread() is not self._thread:
            self._thread.join(CLOSE_WAIT)
        self._end("closed")

    def _end(self, detail: str) -> None:
        self._say("ended", "closed" if self._closed.is_set() else detail)

    # What the thread does

    def _run(self) -> None:
        try:
            while (reason := self._connection()) is not None and not self._closed.is_set():
                first, most = BACKOFF
                # The jitter keeps many cameras behind one switch from coming back all at once.
                pause = min(most, first * 2 ** min(max(self._attempt - 1, 0), 20)) * random.uniform(0.5, 1)
                self._say("lost", f"{reason}; again in {pause:.1f} s")
                self._clock.sleep(pause, self._closed)
        except BaseException as error:  # whoever iterates must hear of it, whatever it is
            self._error = error
        self._end(str(self._error or "the camera has no more"))

    def _connection(self) -> str | None:
        """Read the camera as long as it gives frames -> why it is lost, None when it has no more."""
        self._attempt += 1
        self._say("connecting", f"attempt {self._attempt}")
        delay, corrupt = Delay(), 0
        began: float | None = None  # when the first came: connecting has a time limit of its own
        try:
            with closing(self._camera.shots()) as shots:
                for shot in map(_without_what_is_none, shots):
                    if self._closed.is_set():
                        return None
                    if began is None:
                        began = usable = self._clock.now()
                    if shot is not None and self._take(shot, delay):
                        usable, corrupt = self._clock.now(), 0
                        self._attempt = 0 if usable - began > self._timeout else self._attempt
                        continue
                    corrupt += shot is not None and shot.image is None
                    if corrupt >= CORRUPT_IN_A_ROW or self._clock.now() - usable > self._timeout:
                        return "what it sends cannot be decoded" if corrupt else "no fresh frame came for too long"
            return None
        except SourceError as error:
            return str(error)

    def _take(self, shot: Shot, delay: Delay) -> bool:
        """Hand the shot on, or count why not -> whether it was handed on."""
        index, self._index = self._index, self._index + 1
        if shot.image is None:
            return self._drop("corrupt")
        now = self._clock.now()
        captured = now - delay(now, shot.stamp)
        self._start = captured if self._start is None else self._start
        time = max(captured - self._start, self._time)  # the estimate of a delay may change, but time goes on
        frame = Frame(shot.image, index, time, shot.truth, captured, self._radiometry)
        if self._is_stale(frame) or (delay.catching_up and self._policy == "freshest"):
            return self._drop("stale")
        self._time = time + TICK
        self._check_picture(frame.image)
        self._put(frame)
        return True

    def _drop(self, cause: str) -> bool:
        with self._changed:
            self.drops[cause] += 1
        return False

    def _check_picture(self, image: NDArray[Any]) -> None:
        """The first of a connection, and one of another size or type, is news. Raises: UsageError for no counts."""
        kind = f"{image.shape[1]}x{image.shape[0]} {image.dtype}"
        if self.status.state == "running" and kind == self._kind:
            return
        try:
            check_counts(image, self._radiometry, self.name)
        except SourceError as error:  # connecting again would not help
            raise UsageError(str(error)) from None
        was = f", before {self._kind}" if self._kind not in ("", kind) else ""
        self._kind, self.fps = kind, self._camera.fps
        self._say("running", f"{kind}{was}")

    def _put(self, frame: Frame) -> None:
        with self._changed:
            full = len(self._waiting) >= CAPACITY[self._policy]
            if full and self._policy == "freshest":
                self._waiting.popleft()
                self.drops["late"] += 1
            self._changed.wait_for(lambda: len(self._waiting) < CAPACITY[self._policy] or self._closed.is_set())
            if not self._closed.is_set():
                self._waiting.append(frame)
            self._changed.notify_all()

    def _say(self, state: Literal["connecting", "running", "lost", "ended"], detail: str) -> None:
        """A new status, unless it is over."""
        with self._changed:
            if self.status.state == "ended" or (self._closed.is_set() and state != "ended"):
                return
            self.status = status = Status(state, detail, self._clock.now(), self._attempt)
            self._changed.notify_all()
        self._tell(status)


def _without_what_is_none(shot: Shot | None) -> Shot | None:
    """A camera may lie about its format, or hand on an empty buffer: what is no frame is as good as damaged."""
    return Shot(None) if shot is not None and shot.image is not None and not is_frame(shot.image) else shot


def check_live(policy: str, staleness: float) -> None:
    if policy not in CAPACITY:
        raise UsageError(f"policy must be one of {', '.join(CAPACITY)}; got {policy!r}.")
    if not staleness > 0:
        raise UsageError(f"staleness must be above 0 seconds; got {staleness}.")
