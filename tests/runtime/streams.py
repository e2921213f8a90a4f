"""Sources that a test leads by the hand, and detectors whose answers are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from glmd_runtime import Detector
from glmd_runtime.backends.fake import FakeBackend, Row
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.source import Source
from glmd_runtime.video.status import Status
from tests import tiny

ROWS: list[Row] = [((10, 10, 20, 40), 0, 0.9), ((40, 20, 70, 60), 1, 0.5)]  # a person, a car


def detector(bundle: Path, rows: list[Row] = ROWS, backend: Any = None) -> Detector:
    """Finds `rows` in every frame."""
    return Detector(bundle, backend=backend or FakeBackend(tiny.graph_spec(), [rows]))


def frame(index: int, **values: Any) -> Frame:
    """A gradient on which a person of 35 degrees stands, in hundredths of a kelvin."""
    counts = np.tile(np.linspace(28000, 29500, tiny.SIZE_HW[1]), (tiny.SIZE_HW[0], 1)).astype(np.uint16)
    counts[10:40, 10:20] = 30815
    counts[0, 0] += index % 100  # cameras never give the same picture twice
    return Frame(counts, index, index / 25, radiometry=Radiometry(), **values)


def clip(name: str, frames: int) -> Source:
    return Source(name, 25.0, frames, (frame(index) for index in range(frames)))


def long_clip(name: str, frames: int) -> Source:
    """Pictures that are made as they are asked for: what grows is not the source."""
    shown = [frame(index) for index in range(100)]

    def stream() -> Iterator[Frame]:
        for index in range(frames):
            one = shown[index % len(shown)]
            yield replace(one, image=one.image.copy(), index=index, time=index / 25)

    return Source(name, 25.0, frames, stream())


class Camera(Source):
    """Live: gives what `feed` is given; `lose` and `end` as their names say."""

    live = True

    def __init__(self, name: str, frames: Iterable[Frame] = ()) -> None:
        self._queue: SimpleQueue[Frame | None] = SimpleQueue()
        super().__init__(name, 25.0, None, iter(()))
        self.status, self.closed = Status("connecting"), False
        for one in frames:
            self.feed(one)

    def feed(self, one: Frame) -> None:
        self.status = Status("running") if self.status.state != "running" else self.status
        self._queue.put(one)

    def lose(self, why: str) -> None:
        self.status = Status("lost", why)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Frame]:
        while (one := self._queue.get()) is not None:
            yield one
        self.status = Status("ended")

    def close(self) -> None:
        self.closed = True
        self._queue.put(None)
