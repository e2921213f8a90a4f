"""What can be said of one picture and its boxes without knowing the data set; `lint` draws the conclusions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.looks import colourful, contrast
from glmd_runtime.thermal import Intensity
from glmd_runtime.video.sources import read_picture

HASH_SIDE = 16  # a difference hash has its square of bits
THUMBNAIL_SIDE = 32


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
        (frame.shape[0], frame.shape[1]), 8 * frame.dtype.itemsize, int(frame.max()), colourful(frame),
        content.hexdigest(), difference_hash(grey), _thumbnail(grey), tuple(contrast(grey, box) for box in boxes),
    )


def difference_hash(grey: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) -> (256,) of -1 and 1, see `Measures`. The same for a resized, brighter or re-encoded picture, nearly."""
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.where(small[:, 1:] > small[:, :-1], 1, -1).astype(np.float32).ravel()


def _thumbnail(grey: NDArray[Any]) -> NDArray[np.float32]:
    small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6), np.float32).ravel()
