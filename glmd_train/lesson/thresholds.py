"""Score thresholds of a few-shot model: from held-out support pictures, and from frames without objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record
from glmd_train.evaluate import match_greedily
from glmd_train.scores.intervals import covered

LOWEST, HIGHEST = 0.05, 0.95


@dataclass(frozen=True)
class HeldOut:
    """One class: the scores of its detections in pictures that their model was not trained on, best first.

    scores (D,); hit (D,) whether it is the first on an object at IoU 0.5; objects, how many there are
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    objects: int

    def recall(self, threshold: float) -> float:
        return float((self.hit & (self.scores > threshold)).sum()) / max(1, self.objects)

    def precision(self, threshold: float) -> float:
        passed = self.scores > threshold
        return float(self.hit[passed].mean()) if passed.any() else 1.0


def held_out(records: Sequence[Record], found: Sequence[Detections], class_id: int) -> HeldOut:
    """The detections of one class, matched with its objects; what lies in an ignore region is left out."""
    scores: list[float] = []
    hits: list[bool] = []
    for record, one in zip(records, found, strict=True):
        rows = one[one.class_ids == class_id]
        hit = match_greedily(rows.xyxy, record.boxes[record.labels == class_id]) >= 0
        ignored = covered(rows.xyxy, record.ignore) >= 0.5
        scores += rows.scores[hit | ~ignored].tolist()
        hits += hit[hit | ~ignored].tolist()
    order = np.argsort(-np.asarray(scores), kind="stable")
    objects = sum(int((record.labels == class_id).sum()) for record in records)
    return HeldOut(np.asarray(scores, np.float64)[order], np.asarray(hits, bool)[order], objects)


def best_f1(rows: HeldOut) -> float | None:
    """The threshold with the largest F1 = 2 hits / (objects + detections); None where nothing was hit.

    It lies midway between the last score that passes and the first that does not, so that scores which are a little
    lower on the next picture still pass, but not over HIGHEST. Of equal F1 the lowest threshold, which overlooks less.
    """
    if not rows.hit.any():
        return None
    passed = np.arange(1, len(rows.scores) + 1)
    f1 = 2 * np.cumsum(rows.hit) / (rows.objects + passed)
    f1[:-1][rows.scores[:-1] == rows.scores[1:]] = -1  # no threshold lies between equal scores
    last = len(f1) - 1 - int(np.argmax(f1[::-1]))
    below = rows.scores[last + 1] if last + 1 < len(rows.scores) else LOWEST
    return float(np.clip((rows.scores[last] + below) / 2, LOWEST, HIGHEST))


def quiet_threshold(scores: Sequence[float], frames: int, per_1000: float) -> float:
    """The lowest threshold that lets 1000 new frames like these expect at most `per_1000` false alarms.

    If the (k + 1)-th best score of n frames is the threshold, k alarms pass it here, and a new frame's, by symmetry,
    with a chance of (k + 1) / (n + 1). Fewer frames than `frames_to_show` allow no k; then none here passes.
    Args: scores of all detections of one class in `frames` frames without objects.
    """
    allowed = max(0, math.floor(per_1000 * (frames + 1) / 1000) - 1)
    ranked = sorted(scores, reverse=True)
    return max(LOWEST, float(ranked[allowed])) if allowed < len(ranked) else LOWEST


def frames_to_show(per_1000: float) -> float:
    """How many frames without an alarm let 1000 new ones expect at most `per_1000`."""
    return math.ceil(1000 / per_1000) - 1 if per_1000 else math.inf
