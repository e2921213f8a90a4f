"""What can be said of one picture and its boxes without knowing the data set; `lint` draws the conclusions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.thermal import Intensity
from glmd_runtime.video.sources import read_picture

HASH_SIDE = 16  # a difference hash has its square of bits
THUMBNAIL_SIDE = 32
SATURATED = 40  # intensities between the largest and the smallest channel; JPEG makes less of a grey picture
MIN_RING = 8  # pixels around a box without which it has no surroundings


@dataclass(frozen=True)
class Measures:
    """One picture.

    hw, bits      (height, width) pixels; 8 or 16 bits a channel
    largest       the largest value in it
    colourful     part of the pixels, 0..1, that are clearly coloured; 0 for grey
    pixels        SHA-256 of the decoded values: equal for the same picture in another lossless file
    bits_of_hash  (256,) float32 of -1 and 1, the difference hash: whether a pixel of 16 rows of 17 is darker than
                  the next in its row. Equal pictures have equal hashes, unlike ones differ in about half
    thumbnail     (1024,) float32 of mean 0 and length 1: the product of two is their correlation
    contrasts     for each box how much brighter its middle is than what surrounds it, in intensities -255..255;
                  NaN for a box without surroundings
    """

    hw: tuple[int, int]
    bits: int
    largest: int
    colourful: float
    pixels: str
    bits_of_hash: NDArray[np.float32]
    thumbnail: NDArray[np.float32]
    contrasts: tuple[float, ...]


def measure(path: Path, boxes: NDArray[np.float32]) -> Measures:
    """Read and measure a picture; boxes (N, 4) xyxy pixels. Raises: SourceError if it cannot be read."""
    frame = read_picture(path)
    grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if frame.ndim == 3 else Intensity()(frame))
    content = hashlib.sha256(f"{frame.shape} {frame.dtype}".encode() + frame.tobytes())
    return Measures(
        (frame.shape[0], frame.shape[1]), 8 * frame.dtype.itemsize, int(frame.max()), _colourful(frame),
        content.hexdigest(), difference_hash(grey), _thumbnail(grey), tuple(contrast(grey, box) for box in boxes),
    )


def _colourful(frame: NDArray[Any]) -> float:
    if frame.ndim == 2:
        return 0.0
    return float((frame.max(axis=2) - frame.min(axis=2) > SATURATED).mean())


def difference_hash(grey: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) -> (256,) of -1 and 1, see `Measures`. The same for a resized, brighter or re-encoded picture, nearly."""
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.where(small[:, 1:] > small[:, :-1], 1, -1).astype(np.float32).ravel()


def _thumbnail(grey: NDArray[Any]) -> NDArray[np.float32]:
    small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6), np.float32).ravel()


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
