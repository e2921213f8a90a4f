"""Automatic gain control (AGC): which intensity each raw count of a frame becomes.

A curve is a (65536,) float32 array, the intensity 0..255 of each count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint16]
Curve = NDArray[np.float32]

COUNTS = 65536
TILES = (8, 8)  # of CLAHE, each way
STEP = 8  # every eighth row and column tells how much of a frame is cut
LOST = 0.75  # part of the pixels cut, from which a damped curve is of another scene
LUT_TAKES_16_BITS = int(cv2.__version__.split(".")[0]) >= 5  # and is three times as fast as numpy
_RAMP = np.arange(COUNTS, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Histogram:
    """pixels (n,) int64, how many pixels have the counts first, first + 1, ... first + n - 1; neither end is empty."""

    first: int
    pixels: NDArray[np.int64]

    @classmethod
    def of(cls, frame: Counts) -> Histogram:
        """Of a frame (H, W) uint16."""
        low, high, *_ = cv2.minMaxLoc(frame)
        first, end = int(low), int(high) + 1
        bins = cv2.calcHist([frame], [0], None, [end - first], [first, end])  # float32, whole below 2**24 pixels
        return cls(first, np.asarray(bins, np.int64).ravel())

    def percentiles(self, low: float, high: float) -> tuple[float, float]:
        """What `np.percentile(frame, (low, high))` is, to the bit; low and high in 0..100."""
        up_to = np.cumsum(self.pixels)
        place = np.asarray((low, high)) / 100 * float(up_to[-1] - 1)  # among the pixels in order of their counts
        whole = np.floor(place)
        # The count of the pixel at a place: the first count that more pixels reach than the place says.
        a, b = (np.searchsorted(up_to, np.minimum(p, up_to[-1] - 1), "right") + self.first for p in (whole, whole + 1))
        part, step = place - whole, (b - a).astype(np.float64)
        values = np.where(part < 0.5, a + step * part, b - step * (1 - part))  # as numpy rounds it
        return float(values[0]), float(values[1])


def window_curve(low: float, high: float) -> Curve:
    """Linear window: `low` -> 0, `high` -> 255, cut beyond."""
    scaled: Curve = (_RAMP - np.float32(low)) * np.float32(255.0 / (high - low))
    np.clip(scaled, 0, 255, out=scaled)
    return scaled


def percentile_curve(histogram: Histogram, low: float, high: float) -> Curve:
    """The linear window between two percentiles of the frame."""
    first, last = histogram.percentiles(low, high)
    # A frame of one value has no contrast to show; a window of one count avoids the division by zero.
    return window_curve(first, max(last, first + 1))


def plateau_curve(histogram: Histogram, plateau: float) -> Curve:
    """Plateau equalisation (V. E. Vickers, Optical Engineering 35(7), 1921-1926, 1996).

        h'(k) = min(h(k), P);  F(k) = h'(k0) + ... + h'(k);  intensity(k) = 255 (F(k) - F(k0)) / (F(k1) - F(k0))

    h is the histogram, k0 the smallest and k1 the largest count of the frame, which become 0 and 255. The plateau P is
    `plateau` times the mean of h over the counts that occur, so that it does not depend on how many pixels a camera has
    and how many counts a kelvin. A large one is histogram equalisation, which spends the contrast on what covers most
    of the picture; a small one is histogram projection, the same step for each count that occurs.
    """
    occurring = histogram.pixels[histogram.pixels > 0]
    clipped = np.minimum(histogram.pixels, plateau * occurring.mean())
    area = np.cumsum(clipped) - clipped[0]  # F(k) - F(k0)
    curve = np.zeros(COUNTS, np.float32)
    if area[-1] > 0:  # a frame of one value stays black
        end = histogram.first + len(area)
        curve[histogram.first : end] = 255 * area / area[-1]
        curve[end:] = 255
    return curve


def apply_curve(frame: Counts, curve: Curve) -> NDArray[np.uint8]:
    """(H, W) uint16 -> (H, W) uint8, rounded to nearest."""
    table = np.rint(curve).astype(np.uint8)
    if LUT_TAKES_16_BITS:
        return np.asarray(cv2.LUT(frame, table), np.uint8)
    return np.take(table, frame, out=np.empty(frame.shape, np.uint8), mode="clip")  # "raise" would copy `out`


def clahe(intensities: NDArray[np.uint8], clip: float) -> NDArray[np.uint8]:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994): (H, W) uint8 -> (H, W) uint8.

    Each of 8x8 tiles has its own curve, at most `clip` times as steep as that of evenly spread intensities.
    """
    return np.asarray(cv2.createCLAHE(clip, TILES).apply(intensities), np.uint8)


class DampedCurve:
    """The curve of a stream: a first-order low-pass, so that one frame cannot change the picture at once.

    After `dt` seconds the curve has gone 1 - exp(-dt / seconds) of its way to the frame's own. A pixel whose count does
    not change therefore changes by at most 255 times that a frame, whatever comes into the picture.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._curve: Curve | None = None
        self._time = 0.0

    def __call__(self, frame: Counts, curve: Curve, time: float, jump: int = 0) -> Curve:
        """The damped curve for a frame (H, W) uint16 at `time` seconds of the stream.

        It begins anew where time does not go on, and where it would cut most of the frame: that is another scene.
        Args: curve, the frame's own; jump, counts by which the same scene went up, which is to keep its intensities.
        """
        passed, self._time = time - self._time, time
        if self._curve is None or passed <= 0:
            self._curve = curve
            return curve
        before = _moved(self._curve, jump) if jump else self._curve
        values = before[frame[::STEP, ::STEP]]
        if ((values < 1) | (values > 254)).mean() > LOST:
            before = curve
        self._curve = before + (curve - before) * np.float32(-math.expm1(-passed / self._seconds))
        return self._curve


def _moved(curve: Curve, counts: int) -> Curve:
    """The same curve, so many counts further up."""
    return curve[np.clip(np.arange(COUNTS) - counts, 0, COUNTS - 1)]
