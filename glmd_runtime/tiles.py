"""A frame as overlapping tiles, each run as an image of its own, and their detections as those of one frame.

A network sees every frame on a canvas of one size, so a larger frame is shrunk, and its small objects with it. A tile
is shrunk less, or enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import boxes as box_ops
from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.postprocess import PostprocessSpec

Windows = NDArray[np.int64]

# The part of a tile's edge that its neighbour shares: what is smaller lies whole in one of the two. Never below 32
# pixels, up to which COCO calls an object small; and a tile smaller than twice that would be mostly overlap.
OVERLAP = 0.2
LEAST_OVERLAP = 32
LEAST_EDGE = 2 * LEAST_OVERLAP
# A box that ends this close (pixels) to where its tile was cut is taken for part of an object.
CUT_MARGIN = 2.0
# Boxes of one class from two images that overlap by more than this are one object: a network that sees it larger draws
# its box wider or narrower, so that the limit for one image would leave both.
ACROSS_IOU = 0.3


@dataclass(frozen=True)
class Tiles:
    """columns x rows tiles of equal size, two or more in all."""

    columns: int
    rows: int

    def windows(self, frame_hw: tuple[int, int]) -> Windows:
        """(T + 1, 4) xyxy in frame pixels: the tiles, row by row, and last the whole frame.

        Together the tiles cover every pixel. The whole frame is there for what is larger than the tiles' overlap.
        Raises: FrameError when the frame is too small for so many tiles.
        """
        h, w = frame_hw
        if self.columns > most_tiles(w) or self.rows > most_tiles(h):
            raise FrameError(
                f"A frame {w} pixels wide and {h} high has room for {most_tiles(w)} x {most_tiles(h)} tiles (columns x "
                f"rows) of {LEAST_EDGE} pixels and more that share {LEAST_OVERLAP}; got tiles=({self.columns}, "
                f"{self.rows}). Ask for fewer."
            )
        columns, rows = spans(w, self.columns), spans(h, self.rows)
        tiles = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        return np.asarray([*tiles, (0, 0, w, h)], np.int64)


def parse_tiles(tiles: Sequence[int] | None) -> Tiles | None:
    """(columns, rows) as the user gives them; None for no tiles and for a single one. Raises: UsageError."""
    if tiles is None:
        return None
    pair = isinstance(tiles, tuple | list) and len(tiles) == 2
    if not pair or not all(type(n) is int and n >= 1 for n in tiles):
        raise UsageError(
            f"tiles must be (columns, rows), two whole numbers, 1 or more; got {tiles!r}. Side by side is (2, 1)."
        )
    return None if max(tiles) == 1 else Tiles(*tiles)


def most_tiles(length: int) -> int:
    """How many tiles of `LEAST_EDGE` that share `LEAST_OVERLAP` fit in `length` pixels, at least 1."""
    return max(1, (length - LEAST_OVERLAP) // (LEAST_EDGE - LEAST_OVERLAP))


def spans(length: int, count: int) -> list[tuple[int, int]]:
    """`count` stretches (begin, end) of equal size that cover 0..length and overlap, see `OVERLAP`."""
    if count == 1:
        return [(0, length)]
    by_part = length / (count - (count - 1) * OVERLAP)
    by_pixels = (length + (count - 1) * LEAST_OVERLAP) / count
    size = math.ceil(max(by_part, by_pixels))
    begins = [(length - size) * i // (count - 1) for i in range(count)]
    return [(begin, begin + size) for begin in begins]


def merge(found: Sequence[Detections], windows: Windows, spec: PostprocessSpec) -> Detections:
    """The detections of T tiles and the whole frame as one frame's, best score first, `max_detections` or fewer.

    What a tile's edge cut is left to the neighbour or the whole frame, which has it whole; of what several images
    found, the best box is kept. Within one image NMS is done already.
    Args: found, T + 1, boxes in pixels of their windows; windows (T + 1, 4) of `Tiles.windows`.
    """
    whole = [one[~is_cut(one.xyxy, window, windows[-1])] for one, window in zip(found, windows, strict=True)]
    moved = [one.xyxy + np.tile(window[:2], 2) for one, window in zip(whole, windows, strict=True)]
    xyxy = np.concatenate(moved).astype(np.float32)
    scores, class_ids = (np.concatenate([getattr(one, name) for one in whole]) for name in ("scores", "class_ids"))
    images = np.repeat(np.arange(len(whole)), [len(one) for one in whole])
    kept = box_ops.nms_across(xyxy, scores, class_ids, images, min(ACROSS_IOU, spec.nms_iou))[: spec.max_detections]
    return Detections(xyxy[kept], scores[kept], class_ids[kept], found[0].class_names)


def is_cut(xyxy: NDArray[np.float32], window: NDArray[np.int64], frame: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, 4) boxes in pixels of a window -> (N,) whether one ends where the window ends and the frame does not."""
    left, top, right, bottom = window
    gaps = np.abs(xyxy - (0, 0, right - left, bottom - top))  # (N, 4)
    return np.asarray(((gaps < CUT_MARGIN) & (window != frame)).any(axis=1))
