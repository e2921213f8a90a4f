"""Small objects: a frame is cut into overlapping tiles, each seen as large as the network sees a whole frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import boxes as box_ops
from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.postprocess import PostprocessSpec

# Of a tile's side: an object up to this size is whole in at least one tile, larger ones are in the whole frame.
OVERLAP = 0.2
SMALLEST = 32  # pixels of a tile's side; smaller tiles would be little more than one object
_EDGE = 2.0  # pixels; a box that ends nearer to a tile's inner edge is an object that the edge cuts

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in frame pixels


def check_tiles(tiles: Any) -> tuple[int, int]:
    """(columns, rows) as they were given. Raises: UsageError for anything but two whole numbers from 1 on."""
    if isinstance(tiles, Sequence) and len(tiles) == 2 and all(isinstance(n, int) and n >= 1 for n in tiles):
        return tiles[0], tiles[1]
    raise UsageError(f"tiles must be (columns, rows), two whole numbers from 1 on, such as (2, 1); got {tiles!r}.")


def windows(frame_hw: tuple[int, int], tiles: tuple[int, int]) -> list[Window]:
    """The whole frame, and then its tiles, row by row; together the tiles cover every pixel.

    Raises: FrameError if the frame has no room for so many.
    """
    h, w = frame_hw
    whole = (0, 0, w, h)
    if tiles == (1, 1):
        return [whole]
    spans = [_spans(size, number) for size, number in ((w, tiles[0]), (h, tiles[1]))]
    if min(end - start for side in spans for start, end in side) < SMALLEST:
        raise FrameError(
            f"A frame of {w}x{h} (width, height) has no room for {tiles[0]} by {tiles[1]} tiles of at least {SMALLEST} "
            "pixels. Use fewer."
        )
    return [whole, *((x1, y1, x2, y2) for y1, y2 in spans[1] for x1, x2 in spans[0])]


def _spans(size: int, number: int) -> list[tuple[int, int]]:
    """`number` equal pieces of `size` pixels, each OVERLAP of itself over the next."""
    length = min(size, int(np.ceil(size / (number - (number - 1) * OVERLAP))))
    starts = np.rint(np.linspace(0, size - length, number)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def merge(
    found: Sequence[Detections], places: Sequence[Window], frame_hw: tuple[int, int], spec: PostprocessSpec
) -> Detections:
    """The detections of all windows, each in its own pixels, as one in frame pixels, best score first.

    Boxes that end at an inner edge of their tile are left out: the object goes on beyond it, and is whole in the next
    tile or in the whole frame. The rest goes through the NMS of each class.
    """
    moved = [_moved(one, place, frame_hw) for one, place in zip(found, places, strict=True)]
    xyxy, scores, ids = (
        np.concatenate([getattr(one, name) for one in moved]) for name in ("xyxy", "scores", "class_ids")
    )
    kept = box_ops.nms_per_class(xyxy, scores, ids, spec.nms_iou)[: spec.max_detections]
    return replace(found[0], xyxy=xyxy[kept], scores=scores[kept], class_ids=ids[kept])


def _moved(found: Detections, place: Window, frame_hw: tuple[int, int]) -> Detections:
    """In frame pixels, without the objects that an inner edge of the window cuts."""
    whole = np.asarray([0, 0, frame_hw[1], frame_hw[0]])
    inner = np.asarray(place) != whole  # (4,) edges that are not the frame's
    xyxy = found.xyxy + np.asarray(place[:2] * 2, np.float32)
    cut = (np.abs(xyxy - np.asarray(place, np.float32)) < _EDGE) & inner  # (N, 4)
    return replace(found, xyxy=xyxy.astype(np.float32))[~cut.any(axis=1)]


def crop(picture: NDArray[Any], place: Window) -> NDArray[Any]:
    x1, y1, x2, y2 = place
    return picture[y1:y2, x1:x2]
