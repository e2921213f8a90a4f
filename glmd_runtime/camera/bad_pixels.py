"""Dead and hot pixels of a thermal sensor: found in its frames, filled from their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.files.values import in_utf8

OUTLYING = 8.0  # standard deviations of the sensor's noise from its neighbours
SPREAD = 0.25  # of what a point of light has more than the picture around, a lens gives its neighbours more than this
ALWAYS = 0.9  # part of the frames in which a bad pixel is outlying
MIN_FRAMES = 8
LOSSY = (".jpg", ".jpeg", ".webp")  # what is next to white is not black in them
RADIUS = 2  # pixels; how far a fill looks for good neighbours


def find_bad_pixels(frames: Sequence[NDArray[np.uint16]]) -> NDArray[np.bool_]:
    """Pixels that stand out from all their neighbours in nearly every frame, to the same side.

    A small hot object is not taken for one, as the lens spreads it over its neighbours, and as it moves; frames are
    best taken while the camera moves, or some seconds apart. Two bad pixels side by side are not found.

    Args: frames, MIN_FRAMES or more of one camera, (H, W) uint16.
    Returns: (H, W) bool.
    Raises: FrameError for fewer, or frames of several sizes or another type.
    """
    kinds = {f"{frame.shape} {frame.dtype}" for frame in frames}
    if len(frames) < MIN_FRAMES or len(kinds) > 1 or frames[0].ndim != 2 or frames[0].dtype != np.uint16:
        raise FrameError(
            f"Bad pixels are found in {MIN_FRAMES} or more frames (H, W) uint16 of one size; got {len(frames)} of "
            f"{', '.join(sorted(kinds)) or 'none'}. Take more frames of the raw stream."
        )
    above, below = (sum(side.astype(np.int32) for side in sides) for sides in zip(*map(_outlying, frames), strict=True))
    return np.asarray(np.maximum(above, below) >= ALWAYS * len(frames))


def _outlying(frame: NDArray[np.uint16]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where a pixel is far above, and far below, its eight neighbours and they are as usual; (H, W) bool each."""
    values = frame.astype(np.float32)
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    largest, smallest = cv2.dilate(values, ring), cv2.erode(values, ring)
    # Neighbours differ by the noise of two pixels, and a MAD is 0.6745 deviations; counts are whole, so at least 1.
    step = np.abs(np.diff(values[:, ::2], axis=1)) if values.shape[1] > 2 else np.ones(1, np.float32)
    noise = max(1.0, float(np.median(step)) / 0.6745 / 2**0.5)
    usual = cv2.medianBlur(values, 5)
    return (
        (values - largest > OUTLYING * noise) & (largest - usual < SPREAD * (values - usual)),
        (smallest - values > OUTLYING * noise) & (usual - smallest < SPREAD * (usual - values)),
    )


def read_bad_pixels(path: str | Path) -> NDArray[np.bool_]:
    """A mask (H, W) bool from a picture of the camera's size, PNG or another lossless one; what is not black is bad.

    Raises: UsageError for a file that is no such picture.
    """
    path = Path(path)
    picture = None
    if path.is_file() and path.suffix.lower() not in LOSSY and in_utf8(str(path)):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # opacity is left out
    if picture is None:
        raise UsageError(
            f"A mask of bad pixels is a PNG of the camera's size, black but for the bad ones; got {path}, which is "
            f"{'no such picture' if path.exists() else 'not there'}. find_bad_pixels makes one (docs/thermal.md)."
        )
    return np.asarray(picture.any(axis=2))


class BadPixels:
    """A mask of bad pixels, made ready to fill frames fast.

    Args: mask, (H, W) bool, True for a bad pixel.
    Raises: FrameError for another array, or a bad pixel without a good one within RADIUS.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise FrameError(f"A mask of bad pixels must be (H, W) bool; got {mask.shape} {mask.dtype}.")
        self._shape = mask.shape
        bad = np.argwhere(mask)  # (P, 2)
        neighbours = [_good_neighbours(mask, y, x) for y, x in bad.tolist()]  # (n, 2) each
        counts = np.array([len(places) for places in neighbours])
        # Those with as many neighbours go together: few medians instead of one a pixel. (Q, 2) and (Q, n, 2) each.
        self._groups = [
            (bad[counts == n], np.array([places for places in neighbours if len(places) == n])) for n in set(counts)
        ]

    def check(self, frame: NDArray[Any]) -> None:
        """Raises: FrameError for a frame (H, W) or (H, W, 3) of another size than the mask."""
        if frame.shape[:2] != self._shape:
            raise FrameError(
                f"A mask of bad pixels has its camera's size, {_size(frame.shape)}; got one of {_size(self._shape)}. "
                "Make one for each camera."
            )

    def fill(self, frame: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """A copy of a frame (H, W) with the median of the good neighbours in each bad pixel. Raises: as `check`."""
        self.check(frame)
        filled = np.array(frame)
        for bad, good in self._groups:
            filled[bad[:, 0], bad[:, 1]] = np.median(frame[good[..., 0], good[..., 1]], axis=1)
        return filled


def _size(shape: tuple[int, ...]) -> str:
    """(H, W) as people say it: 640x512."""
    return f"{shape[1]}x{shape[0]}"


def _good_neighbours(mask: NDArray[np.bool_], y: int, x: int) -> NDArray[np.int_]:
    """Rows and columns (n, 2) of the good pixels in the smallest square around a pixel that has any."""
    for radius in range(1, RADIUS + 1):
        top, left = max(0, y - radius), max(0, x - radius)
        rows, columns = np.nonzero(~mask[top : y + radius + 1, left : x + radius + 1])
        if len(rows):
            return np.stack([rows + top, columns + left], axis=1)
    raise FrameError(
        f"A bad pixel must have a good one within {RADIUS} pixels; there is none around row {y}, column {x}. "
        "Is the mask inverted? True, or white in a picture, is for bad pixels."
    )
