"""The box convention of the whole project, and the arithmetic on it.

A box is `xyxy`: left, top, right, bottom in pixels, as continuous edges: a picture W wide spans 0..W, a box's width
is `x2 - x1` with no +1. Arrays are (N, 4) float32; `N = 0` is an ordinary value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Indices = NDArray[np.int64]


def xywh_to_xyxy(xywh: Array) -> Array:
    """(N, 4) left, top, width, height (the COCO order) -> (N, 4) xyxy."""
    xywh = np.asarray(xywh, np.float32).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def xyxy_to_xywh(xyxy: Array) -> Array:
    """(N, 4) xyxy -> (N, 4) left, top, width, height."""
    xyxy = np.asarray(xyxy, np.float32).reshape(-1, 4)
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def area(xyxy: Array) -> Array:
    """(..., 4) -> (...) square pixels; an inverted box has area 0."""
    size = np.maximum(xyxy[..., 2:] - xyxy[..., :2], 0)
    return np.asarray(size[..., 0] * size[..., 1])


def clip(xyxy: Array, hw: tuple[float, float]) -> Array:
    """(..., 4) boxes cut to a picture of `hw` = (height, width) pixels."""
    h, w = hw
    return np.clip(xyxy, 0, np.asarray([w, h, w, h], np.float32))


def iou(a: Array, b: Array) -> Array:
    """(N, 4), (M, 4) -> (N, M) intersection over union; 0 where both areas are 0."""
    # Coordinate by coordinate: (N, M) arrays are gone through several times as fast as pairs in (N, M, 2).
    width = np.minimum.outer(a[:, 2], b[:, 2]) - np.maximum.outer(a[:, 0], b[:, 0])
    height = np.minimum.outer(a[:, 3], b[:, 3]) - np.maximum.outer(a[:, 1], b[:, 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)  # (N, M)
    union = area(a)[:, None] + area(b)[None, :] - inter
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 0).astype(np.float32)


def nms(xyxy: Array, scores: Array, iou_threshold: float) -> Indices:
    """Greedy non-maximum suppression of one class.

    Args: xyxy (N, 4); scores (N,); iou_threshold in 0..1, a box is dropped when its IoU with a kept box is larger.
    Returns: indices of the kept boxes, best score first; of equal scores the lower index first.
    """
    order = np.argsort(-scores, kind="stable")
    return order[_undisputed(iou(xyxy[order], xyxy[order]) > iou_threshold)]


def _undisputed(rivals: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, N) which boxes dispute each other's place, best first -> (N,) those without a better kept rival."""
    kept = np.ones(len(rivals), bool)
    for i in range(len(rivals)):
        if kept[i]:
            kept[i + 1 :] &= ~rivals[i, i + 1 :]
    return kept


def nms_per_class(xyxy: Array, scores: Array, class_ids: NDArray[np.integer], iou_threshold: float) -> Indices:
    """`nms` within each class; (N, 4), (N,), (N,) -> indices of the kept boxes over all classes, best score first."""
    groups = [np.flatnonzero(class_ids == c) for c in np.unique(class_ids)]
    kept = [group[nms(xyxy[group], scores[group], iou_threshold)] for group in groups]
    indices = np.sort(np.concatenate([np.empty(0, np.int64), *kept]))
    return indices[np.argsort(-scores[indices], kind="stable")]


def nms_across(
    xyxy: Array, scores: Array, class_ids: NDArray[np.integer], images: NDArray[np.integer], iou_threshold: float
) -> Indices:
    """`nms` within each class of boxes that several images of one scene gave; boxes of one image spare each other.

    Args: xyxy (N, 4) in pixels of the scene; scores, class_ids, images (N,), the image that each box is from.
    Returns: indices of the kept boxes, best score first.
    """
    order = np.argsort(-scores, kind="stable")
    one_class, one_image = (keys[order][:, None] == keys[order] for keys in (class_ids, images))  # (N, N) each
    return order[_undisputed((iou(xyxy[order], xyxy[order]) > iou_threshold) & one_class & ~one_image)]
