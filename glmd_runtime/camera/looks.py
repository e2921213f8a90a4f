"""What can be said of one picture, and of the objects in it, without knowing what a model makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.files.values import number

SATURATED = 40  # intensities between the largest and the smallest channel; JPEG makes less of a grey picture
COLOURFUL = 0.1  # part of the pixels; what makes a picture a coloured one
CLEAR = 8.0  # intensities; an object with less contrast says nothing of the polarity
MIN_RING = 8  # pixels around a box without which it has no surroundings
STEP = 4  # every fourth row and column tells of the whole picture
# Warmer than what surrounds them nearly always, so that they tell white-hot from black-hot. A car may be either.
WARM_BLOODED = frozenset({
    "person", "people", "pedestrian", "human", "man", "woman", "child", "rider", "animal", "dog", "cat", "horse", "cow",
    "sheep", "pig", "goat", "deer", "bison", "elephant", "bear", "zebra", "giraffe", "rhino", "lion", "cheetah",
    "leopard", "wolf", "fox", "boar", "rabbit",
})


@dataclass(frozen=True)
class Looks:
    """One picture: mean and standard deviation in intensities 0..255, and the part of its pixels, 0..1, in colour."""

    brightness: float
    contrast: float
    colour: float

    @classmethod
    def of(cls, picture: NDArray[np.uint8]) -> Looks:
        """(H, W) or (H, W, 3) uint8."""
        part = picture[::STEP, ::STEP]
        grey = part if part.ndim == 2 else part.mean(axis=2)
        return cls(float(grey.mean()), float(grey.std()), colourful(part))


@dataclass(frozen=True)
class Statistics:
    """Between which values the pictures of a training lay, (smallest, largest) of each of `Looks`."""

    brightness: tuple[float, float]
    contrast: tuple[float, float]
    colour: tuple[float, float]

    @classmethod
    def of(cls, pictures: Iterable[Looks]) -> Statistics:
        """Of one picture or more; the outermost hundredth on either side is left out."""
        rows = np.asarray([list(asdict(looks).values()) for looks in pictures])  # (N, 3)
        low, high = np.percentile(rows, (1, 99), axis=0).round(4).tolist()
        return cls(*zip(low, high, strict=True))

    def to_dict(self) -> dict[str, Any]:
        return {name: list(limits) for name, limits in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Statistics:
        return cls(**{name: (number(low), number(high)) for name, (low, high) in values.items()})


def colourful(frame: NDArray[Any]) -> float:
    """Part of the pixels, 0..1, that are clearly coloured; 0 for grey."""
    if frame.ndim == 2:
        return 0.0
    return float((frame.max(axis=2) - frame.min(axis=2) > SATURATED).mean())


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The 95% score interval of a proportion; (0, 1) of nothing."""
    if number == 0:
        return 0.0, 1.0
    z = 1.959964
    p, shrink = hits / number, 1 + z * z / number
    middle = (p + z * z / (2 * number)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / number + z * z / (4 * number * number))
    return middle - half, middle + half


def contrast(grey: NDArray[Any], box: NDArray[np.float32]) -> float:
    """Median of the middle half of a box (xyxy) minus the median of a ring around it, a quarter of its side wide.

    Medians, as the corners of a box are background and neighbours reach into the ring.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    w, h = x2 - x1, y2 - y1
    ring = max(3.0, min(w, h) / 4)
    outer, inner = _window(x1 - ring, y1 - ring, x2 + ring, y2 + ring), _window(x1, y1, x2, y2)
    around = grey[outer]
    outside = np.ones(around.shape, bool)
    top, left = outer[0].start, outer[1].start
    outside[inner[0].start - top : inner[0].stop - top, inner[1].start - left : inner[1].stop - left] = False
    middle = grey[_window(x1 + w / 4, y1 + h / 4, x2 - w / 4, y2 - h / 4)]
    if outside.sum() < MIN_RING or middle.size == 0:
        return float("nan")
    return float(np.median(middle) - np.median(around[outside]))


def _window(x1: float, y1: float, x2: float, y2: float) -> tuple[slice, slice]:
    """The rows and columns that a box touches."""
    return slice(max(0, int(y1)), int(np.ceil(y2))), slice(max(0, int(x1)), int(np.ceil(x2)))
