"""Flat-field correction (FFC): an uncooled camera closes its shutter now and then to measure its own offsets.

While it does, some cameras repeat the last picture, others show the shutter; afterwards all counts may have jumped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.video.frame import Held

_log = logging.getLogger(__name__)

LONGEST = 2.0  # seconds; a shutter opens again before, so what lasts longer is the scene or a fault
UNIFORM = 0.25  # of the scene's spread; a shutter has less ...
NOISES = 3.0  # ... and less than so many standard deviations of the sensor's noise ...
OBJECT = 6.0  # ... and nothing that stands out from its surroundings by so many: a clear sky is no shutter
AROUND = 65  # pixels each way that are an object's surroundings
JUMP = 0.25  # of the scene's spread; a smaller change of all counts is none
LIKE, MOST = 0.2, 0.9  # by how much of the jump the rest of the picture may differ, in how much of it, to be the same
SIDE = 32  # cells, the longer side of a frame's thumbnail
CELL = 5  # pixels of which a cell is the mean, each way


@dataclass(frozen=True)
class ShutterEvent:
    """held: why this frame shows nothing of the scene, or None; jump: counts by which the same scene went up."""

    held: Held | None = None
    jump: int = 0


class ShutterWatch:
    """What it remembers of a stream: the last frame in which the scene was seen, and since when it has not been."""

    def __init__(self, name: str = "The stream") -> None:
        self._name = name
        self._frame = np.zeros((0, 0), np.uint16)
        self._cells = np.zeros((0, 0), np.float32)
        self._since: float | None = None  # when the shutter closed
        self._warned = False

    def __call__(self, frame: NDArray[np.uint16], time: float) -> ShutterEvent:
        """One frame (H, W) uint16 at `time` seconds of the stream."""
        cells, alike = _cells(frame), self._frame.shape == frame.shape
        held = self._why(frame, cells) if alike else None
        if held and self._may_be_a_shutter(held, time):
            return ShutterEvent(held)
        if not held:
            self._since, self._warned = None, False
        jump = _jump(self._cells, cells) if alike and not held else 0
        self._frame, self._cells = frame.copy(), cells  # a copy, as sources may fill the same memory again
        return ShutterEvent(jump=jump)

    def _why(self, frame: NDArray[np.uint16], cells: NDArray[np.float32]) -> Held | None:
        if np.array_equal(cells, self._cells) and np.array_equal(frame, self._frame):
            return "frozen"
        spread = cells.std()
        # What costs most comes last, as of a scene the first comparison says enough.
        if spread >= UNIFORM * self._cells.std() or spread >= NOISES * (noise := _noise(frame)):
            return None
        return None if _contrast(frame) > OBJECT * noise else "uniform"

    def _may_be_a_shutter(self, held: Held, time: float) -> bool:
        if self._since is None or time < self._since:
            self._since = time
        if time - self._since < LONGEST:
            return True
        if not self._warned:
            _log.warning(
                "%s is %s for %g s, longer than by a shutter. Look at the camera.", self._name, held, LONGEST
            )
        self._warned = True
        return False


def _cells(frame: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Means of CELL x CELL pixels of each block of the frame, without most of the noise; SIDE x SIDE or less."""
    step = _step(frame)
    part = np.ascontiguousarray(frame[::step, ::step])
    scale = min(1.0, SIDE / max(part.shape))
    w, h = (max(1, round(edge * scale)) for edge in part.shape[::-1])
    return cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)


def _step(frame: NDArray[np.uint16]) -> int:
    """Every so manyth row and column is enough for the cells."""
    return max(1, int(max(frame.shape)) // (SIDE * CELL))


def _noise(frame: NDArray[np.uint16]) -> float:
    """Standard deviation of a pixel, of the differences of neighbours (a MAD is 0.6745 deviations); 1 count or more."""
    step = _step(frame)
    right = frame[::step, 1::step].astype(np.float32)
    left = frame[::step, ::step][:, : right.shape[1]]
    return max(1.0, float(np.median(np.abs(right - left))) / 0.6745 / 2**0.5) if right.size else 1.0


def _contrast(frame: NDArray[np.uint16]) -> float:
    """Counts by which what is hottest or coldest differs from what is around it; bad pixels are left out."""
    seen = cv2.medianBlur(frame, 3).astype(np.float32)
    return float(np.abs(seen - cv2.blur(seen, (AROUND, AROUND))).max())


def _jump(before: NDArray[np.float32], after: NDArray[np.float32]) -> int:
    change = after - before
    jump = float(np.median(change))
    if abs(jump) <= JUMP * float(before.std()):
        return 0
    rest = float(np.quantile(np.abs(change - jump), MOST))
    return round(jump) if rest < LIKE * abs(jump) else 0
