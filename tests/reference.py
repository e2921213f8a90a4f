"""Slow, obvious versions of what the packages do fast: plain loops, one formula a line."""

from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Two boxes (4,) xyxy."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, float(width)) * max(0.0, float(height))
    areas = [max(0.0, float(x[2] - x[0])) * max(0.0, float(x[3] - x[1])) for x in (a, b)]
    union = sum(areas) - inter
    return inter / union if union > 0 else 0.0


def nms(xyxy: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Best first; a box is kept unless a better kept one overlaps it by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(iou(xyxy[i], xyxy[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def postprocess(
    boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, thresholds: tuple[float, ...], nms_iou: float, most: int
) -> list[tuple[float, int, tuple[float, ...]]]:
    """(R, K, 4), (R, K), (R,) -> rows (score, class_id, xyxy), best first."""
    found = []
    for k, threshold in enumerate(thresholds):
        rows = [r for r in range(len(valid)) if valid[r] and scores[r, k] > np.float32(threshold)]
        for i in nms(boxes[rows, k], scores[rows, k], nms_iou):
            found.append((float(scores[rows[i], k]), k, tuple(map(float, boxes[rows[i], k]))))
    return sorted(found, key=lambda row: -row[0])[:most]
