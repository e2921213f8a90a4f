"""How sure an AP is: its 95% interval over the pictures, by bootstrap.

Pictures are drawn again with replacement and AP is computed of each draw. The matches of detections and objects do
not depend on the draw, so they are made once; a draw is then a weight for each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import area, iou
from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record

IOUS = np.linspace(0.5, 0.95, 10)  # COCO's thresholds
_RECALLS = np.linspace(0, 1, 101)
_MAX_DETECTIONS = 100  # of a class in a picture
RESAMPLES = 1000


class Interval(NamedTuple):
    """A value of all pictures, and the bounds that hold 95% of the draws; AP in 0..1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Matches:
    """One class: its D detections in all N pictures, best score first, and what they are at each of the 10 IoUs.

    picture (D,) int64; hit (10, D) an object's first; counted (10, D) a hit or a false alarm, not in an ignore region;
    objects (N,) in each picture.
    """

    picture: NDArray[np.int64]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def average_precision(self, weights: NDArray[np.int64]) -> float:
        """COCO's AP, mean over the IoUs, with picture i taken weights[i] times; nan where no object is left."""
        objects = weights @ self.objects
        if not objects:
            return float("nan")
        times = weights[self.picture]
        hits = np.cumsum(self.hit * times, axis=1)  # (10, D)
        counted = np.cumsum(self.counted * times, axis=1)
        precision = hits / np.maximum(counted, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # the best at this recall or beyond
        total = 0.0
        for reached, best in zip(hits / objects, envelope, strict=True):
            first = np.searchsorted(reached, _RECALLS)
            total += best[first[first < len(best)]].sum()
        return total / (len(IOUS) * len(_RECALLS))


def ap_interval(records: Sequence[Record], found: Sequence[Detections], *, seed: int = 0) -> Interval:
    """The mean AP of the classes that occur in `records`, with its interval; `found` are their detections."""
    matches = _match_classes(records, found)
    everything = np.ones(len(records), np.int64)
    return _interval(_mean(matches, everything), [_mean(matches, draw) for draw in _draws(len(records), seed)])


def ap_difference(
    records: Sequence[Record], baseline: Sequence[Detections], other: Sequence[Detections], *, seed: int = 0
) -> Interval:
    """Mean AP of `other` minus that of `baseline` on the same pictures, draw by draw: negative is a loss."""
    first, second = _match_classes(records, baseline), _match_classes(records, other)

    def difference(weights: NDArray[np.int64]) -> float:
        return _mean(second, weights) - _mean(first, weights)

    everything = np.ones(len(records), np.int64)
    return _interval(difference(everything), [difference(draw) for draw in _draws(len(records), seed)])


def _draws(number: int, seed: int) -> NDArray[np.int64]:
    """(RESAMPLES, N): how often each picture is drawn."""
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), RESAMPLES)


def _interval(value: float, draws: list[float]) -> Interval:
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def _mean(matches: list[Matches], weights: NDArray[np.int64]) -> float:
    """Over the classes that have an object in the draw."""
    values = np.array([one.average_precision(weights) for one in matches])
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _match_classes(records: Sequence[Record], found: Sequence[Detections]) -> list[Matches]:
    """Of each class that has an object."""
    classes = sorted({int(label) for record in records for label in record.labels})
    return [_match_class(records, found, class_id) for class_id in classes]


def _match_class(records: Sequence[Record], found: Sequence[Detections], class_id: int) -> Matches:
    rows, objects = [], []
    for i, (record, one) in enumerate(zip(records, found, strict=True)):
        mine = one[one.class_ids == class_id]
        mine = mine[np.argsort(-mine.scores, kind="stable")[:_MAX_DETECTIONS]]
        boxes = record.boxes[record.labels == class_id]
        objects.append(len(boxes))
        rows.append((np.full(len(mine), i), mine.scores, *_match(mine.xyxy, boxes, record.ignore)))
    picture, scores, hit, counted = (np.concatenate(parts, axis=-1) for parts in zip(*rows, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(picture[order], hit[:, order], counted[:, order], np.asarray(objects))


def _match(
    xyxy: NDArray[np.float32], boxes: NDArray[np.float32], ignore: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One picture: detections (D, 4), best first, against objects (G, 4) and ignore regions (M, 4): hit, counted.

    COCO's rule: each detection takes the free object that it overlaps most; without one, an ignore region that covers
    enough of it takes it out of the count.
    """
    overlaps = iou(xyxy, boxes).astype(np.float64)  # (D, G)
    hit = np.zeros((len(IOUS), len(xyxy)), bool)
    free = np.ones((len(IOUS), len(boxes)), bool)
    for d, overlap in enumerate(overlaps):
        allowed = np.where(free & (overlap >= IOUS[:, None]), overlap, -1.0)  # (10, G)
        if allowed.size:
            best = allowed.argmax(axis=1)
            hit[:, d] = allowed.max(axis=1) >= 0
            free[hit[:, d], best[hit[:, d]]] = False
    ignored = _covered(xyxy, ignore) >= IOUS[:, None]  # (10, D)
    return hit, hit | ~ignored


def _covered(xyxy: NDArray[np.float32], regions: NDArray[np.float32]) -> NDArray[np.float64]:
    """(D,) the largest part of each box that one region covers."""
    top_left = np.maximum(xyxy[:, None, :2], regions[:, :2])  # (D, M, 2)
    bottom_right = np.minimum(xyxy[:, None, 2:], regions[:, 2:])
    inter = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2, dtype=np.float64)  # (D, M)
    return (inter / np.maximum(area(xyxy), 1e-9)[:, None]).max(axis=1, initial=0.0)
