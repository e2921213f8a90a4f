"""Cameras that are none, and a clock that runs as fast as it is asked to."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from threading import Event, Lock
from typing import Any, ClassVar

import cv2
import numpy as np

from glmd_runtime.errors import SourceError
from glmd_runtime.video.live import Clock, Shot


class FastClock(Clock):
    """Time passes when somebody sleeps, or a camera takes a picture; a day in seconds."""

    def __init__(self) -> None:
        self._now, self._lock = 0.0, Lock()

    def now(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float, until: Event) -> None:
        self.advance(seconds)
        until.wait(0)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class ScriptedCamera:
    """One list a connection; in it pictures and Shots are given, numbers are seconds that pass, errors are raised, and
    ... is a packet that is no picture yet.

    After the last list there is no more: the camera returns.
    """

    def __init__(self, *connections: Iterable[Any], clock: FastClock | None = None, fps: float = 10.0) -> None:
        self.name, self.fps, self.opened, self.closed = "scripted", fps, 0, 0
        self._connections, self._clock = iter(connections), clock

    def shots(self) -> Generator[Shot | None, None, None]:
        self.opened += 1
        try:
            for item in next(self._connections, ()):
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, float):
                    assert self._clock is not None
                    self._clock.advance(item)
                elif isinstance(item, Event):
                    item.wait(10)
                elif item is ...:
                    yield None
                else:
                    yield item if isinstance(item, Shot) else Shot(item)
        finally:
            self.closed += 1


LOST = SourceError("the cable is out")


def unsteady(hours: float, fps: int, rng: random.Random, hw: tuple[int, int] = (1, 1)) -> list[Iterable[Any]]:
    """A camera that is lost every hour or so, often twice, sends nonsense now and then, and has a slow clock."""
    connections: list[Iterable[Any]] = []
    while hours > 0:
        length = min(rng.uniform(0.2, 2.0), hours) + 1e-3
        hours -= length
        connections.append(_connection(length, fps, rng, hw))
        connections += [[rng.uniform(1, 60), SourceError("no answer")] for _ in range(rng.randrange(3))]
    return connections


def _connection(hours: float, fps: int, rng: random.Random, hw: tuple[int, int]) -> Generator[Any, None, None]:
    for i in range(int(hours * 3600 * fps)):
        yield 1 / fps
        image = None if rng.random() < 1e-3 else np.full(hw, i % 65536, np.uint16)
        yield Shot(image, stamp=i / fps * (1 - 2e-4))
    yield SourceError("the cable is out")  # a new one, for a raised error keeps the frames that it came through


KNOWN = (
    cv2.CAP_PROP_FOURCC,
    cv2.CAP_PROP_CONVERT_RGB,
    cv2.CAP_PROP_FRAME_WIDTH,
    cv2.CAP_PROP_FRAME_HEIGHT,
    cv2.CAP_PROP_FPS,
)


class FakeCapture:
    """cv2.VideoCapture on a V4L2 device, as cap_v4l.cpp says it behaves: grey formats come raw where CONVERT_RGB is 0.

    It stands in for hardware that is not here; what it cannot show is a driver's own mistakes.
    """

    pictures: ClassVar[list[np.ndarray]] = []
    present = True
    opened: ClassVar[list[FakeCapture]] = []

    def __init__(self, device: str, backend: int) -> None:
        assert backend == cv2.CAP_V4L2
        self.device, self.set_to, self.released = device, {}, False
        self._left = list(self.pictures)
        FakeCapture.opened.append(self)

    def isOpened(self) -> bool:  # noqa: N802
        return self.present

    def set(self, key: int, value: float) -> bool:
        assert key in KNOWN, "cap_v4l.cpp prints an error for others"
        if key != cv2.CAP_PROP_CONVERT_RGB:  # the device is started anew, and its pictures are converted again
            self.set_to.pop(cv2.CAP_PROP_CONVERT_RGB, None)
        self.set_to[key] = value
        return True

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1e6 + 111 * (len(self.pictures) - len(self._left))
        return float(self.set_to.get(key, 9.0))

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self._left.pop(0)) if self._left else (False, None)

    def release(self) -> None:
        self.released = True
