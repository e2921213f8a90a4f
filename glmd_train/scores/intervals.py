"""How sure an AP is: its 95% interval over the pictures of one model by bootstrap, or over the runs of several by t.

Pictures are drawn again with replacement and AP is computed of each draw. The matches of detections and objects do
not depend on the draw, so they are made once; a draw is then a weight for each picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
# Student's t: 97.5% quantile for 1, 2, ... degrees of freedom. Beyond 30 the last is kept, at most 4% too wide.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Interval(NamedTuple):
    """A value of all pictures (or the mean of all runs), and the bounds of its 95% interval; AP in 0..1."""

    value: float
    low: float
    high: float


def proportion(count: int, of: int) -> Interval:
    """A share, and its 95% interval by Wilson's score (1927), which holds for none and for all as well."""
    z2, share = 1.96**2, count / of
    middle, half = share + z2 / (2 * of), 1.96 * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return Interval(share, max(0.0, (middle - half) / (1 + z2 / of)), min(1.0, (middle + half) / (1 + z2 / of)))


@dataclass(frozen=True)
class Matches:
    """One class: its D detections in all N pictures, best score first, and what they are at each of the 10 IoUs.

    picture (D,) int64; scores (D,) float32; hit (10, D) an object's first; counted (10, D) a hit or a false alarm, not
    in an ignore region; objects (N,) in each picture.
    """

    picture: NDArray[np.int64]
    scores: NDArray[np.float32]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def average_precisions(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """(10,) COCO's AP at each IoU, with picture i taken weights[i] times; nan where no object is left."""
        objects = weights @ self.objects
        if not objects:
            return np.full(len(IOUS), np.nan)
        times = weights[self.picture]
        hits = np.cumsum(self.hit * times, axis=1)  # (10, D)
        counted = np.cumsum(self.counted * times, axis=1)
        precision = hits / np.maximum(counted, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # the best at this recall or beyond
        totals = np.zeros(len(IOUS))
        for i, (reached, best) in enumerate(zip(hits / objects, envelope, strict=True)):
            first = np.searchsorted(reached, _RECALLS)
            totals[i] = best[first[first < len(best)]].sum()
        return totals / len(_RECALLS)


def ap_interval(records: Sequence[Record], found: Sequence[Detections], *, seed: int = 0) -> Interval:
    """The mean AP of the classes that occur in `records`, with its interval; `found` are their detections."""
    everything = {"all": {int(label) for record in records for label in record.labels}}
    groups = ap_intervals(records, found, everything, seed=seed)
    return groups["all"]["ap"] if groups else Interval(0.0, 0.0, 0.0)


def ap_intervals(
    records: Sequence[Record], found: Sequence[Detections], groups: Mapping[str, Collection[int]], *, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Mean "ap", "ap50" and "ap75" of each group of class ids, with their intervals.

    A class without an object counts in no mean, and a group of such classes is left out.
    """
    matches = match_classes(records, found)
    rows = {name: [i for i, c in enumerate(matches) if c in ids] for name, ids in groups.items()}
    values = _precisions(list(matches.values()), _draws(len(records), seed))  # (1 + RESAMPLES, C, 3)
    return {
        name: {field: _interval(_mean(values[:, mine, i])) for i, field in enumerate(("ap", "ap50", "ap75"))}
        for name, mine in rows.items() if mine
    }


def ap_difference(
    records: Sequence[Record], baseline: Sequence[Detections], other: Sequence[Detections], *, seed: int = 0
) -> Interval:
    """Mean AP of `other` minus that of `baseline` on the same pictures, draw by draw: negative is a loss."""
    draws = _draws(len(records), seed)
    before, after = (
        _mean(_precisions(list(match_classes(records, found).values()), draws)[..., 0]) for found in (baseline, other)
    )
    return _interval(after - before) if len(before) else Interval(0.0, 0.0, 0.0)


def run_interval(values: Sequence[float]) -> Interval:
    """The mean of one value a run (seed, draw of support pictures), two runs or more, with its 95% t interval."""
    spread = _T[min(len(values) - 1, len(_T)) - 1] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    mean = float(np.mean(values))
    return Interval(mean, mean - spread, mean + spread)


def _draws(number: int, seed: int) -> NDArray[np.int64]:
    """(1 + RESAMPLES, N): how often each picture is taken; first all of them once."""
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), RESAMPLES)
    return np.concatenate([np.ones((1, number), np.int64), draws])


def _precisions(matches: Sequence[Matches], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, N) draws -> (R, C, 3) AP, AP50 and AP75 of each class; nan where a draw holds no object of it."""
    at_ious = np.array([[one.average_precisions(draw) for one in matches] for draw in draws])
    at_ious = at_ious.reshape(len(draws), len(matches), len(IOUS))  # also without a class
    return np.stack([at_ious.mean(axis=2), at_ious[..., 0], at_ious[..., 5]], axis=2)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, C) -> (at most R,) over the classes that have an object in the draw; draws without any are left out."""
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    return np.asarray(np.where(known, values, 0.0).sum(axis=1)[counts > 0] / counts[counts > 0])


def _interval(values: NDArray[np.float64]) -> Interval:
    """Of all pictures (first) and of the draws."""
    low, high = np.quantile(values[1:] if len(values) > 1 else values, (0.025, 0.975))
    return Interval(float(values[0]), float(low), float(high))


def match_classes(records: Sequence[Record], found: Sequence[Detections]) -> dict[int, Matches]:
    """Class id -> matches, of each class that has an object."""
    classes = sorted({int(label) for record in records for label in record.labels})
    return {class_id: _match_class(records, found, class_id) for class_id in classes}


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
    return Matches(picture[order], scores[order], hit[:, order], counted[:, order], np.asarray(objects))


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
    ignored = covered(xyxy, ignore) >= IOUS[:, None]  # (10, D)
    return hit, hit | ~ignored


def covered(xyxy: NDArray[np.float32], regions: NDArray[np.float32]) -> NDArray[np.float64]:
    """(D,) the largest part of each box that one region covers."""
    top_left = np.maximum(xyxy[:, None, :2], regions[:, :2])  # (D, M, 2)
    bottom_right = np.minimum(xyxy[:, None, 2:], regions[:, 2:])
    inter = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2, dtype=np.float64)  # (D, M)
    return (inter / np.maximum(area(xyxy), 1e-9)[:, None]).max(axis=1, initial=0.0)
