"""Raw outputs, then detections, against the reference's, without regard to order.

Two correct engines may put proposals in another order, or keep another one of two whose objectness nearly ties. So
proposals are paired by their boxes before numbers are compared, and detections by class, overlap and score. A
detection without a partner is forgiven, and counted, where a nearly equal score explains it: beside the threshold, or
suppressed on the other side by a twin. Everything else fails.

INT8 is judged by what a user would miss: its raw outputs are reported, and the reference's confident detections must be
found again, whatever their scores became.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import boxes
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import RAW_OUTPUTS, PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry
from glmd_runtime.verify_report import Status

Floats = NDArray[np.floating[Any]]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # row of one side, row of the other
Check = tuple[str, float, Literal["<=", ">="], float]  # what, how much, and its bound


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the reference.

    pair_px           proposals further apart than this (mean over their coordinates, network pixels) are no pair
    unpaired          share of proposals that may have no pair
    quantile          of all errors that must be within `absolute + rtol * |reference|`; 1 is every one of them
    rtol              relative part of the bound
    score_atol        absolute part, scores
    box_atol          absolute part, boxes in units of the canvas's longer side
    cosine            least cosine of paired boxes, and of paired scores
    iou, score        a detection's partner has the same class, at least this IoU, at most this difference of score
    unmatched         share of detections that may have no partner
    floor             detections need a partner above this score
    both_ways         whether the engine's detections need one in the reference, too
    """

    pair_px: float
    unpaired: float
    quantile: float
    rtol: float
    score_atol: float
    box_atol: float
    cosine: float
    iou: float
    score: float
    unmatched: float
    floor: float
    both_ways: bool


SCORE_FLOOR = 0.05  # detections are compared down to this score, whatever the manifest's thresholds are
CONFIDENT = 0.3  # INT8 must find again what the reference is at least as sure of
TOLERANCES = {
    "fp32": Tolerance(
        2.0, 0.01, 1.0, 1e-3, 1e-4, 1e-4, 0.999,
        iou=0.99, score=1e-3, unmatched=0.0, floor=SCORE_FLOOR, both_ways=True,
    ),
    "fp16": Tolerance(
        8.0, 0.05, 0.99, 1e-3, 2e-2, 2e-3, 0.999,
        iou=0.95, score=0.02, unmatched=0.01, floor=SCORE_FLOOR, both_ways=True,
    ),
    # Infinite bounds report a number without judging it; one that is no number still fails.
    "int8": Tolerance(
        16.0, 1.0, 0.99, 1e-3, np.inf, np.inf, -1.0,
        iou=0.8, score=np.inf, unmatched=0.05, floor=CONFIDENT, both_ways=False,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Numbers, and a sentence for each bound that they break, or for why they prove nothing (not_run)."""

    metrics: Mapping[str, float]
    reason: str = ""
    status: Status = "passed"

    @classmethod
    def of(cls, *checks: Check, **reported: float) -> Outcome:
        """From (name, value, relation, bound); a value that is not a number breaks its bound. `reported` has none."""
        broken = [f"{n} {v:.4g}, expected {r} {b:g}" for n, v, r, b in checks if not (v <= b if r == "<=" else v >= b)]
        metrics = {name: float(value) for name, value, _, _ in checks} | reported
        return cls(metrics, "; ".join(broken), "failed" if broken else "passed")


def compare_raw(
    expected: Sequence[RawOutputs], came: Sequence[RawOutputs], tolerance: Tolerance, canvas: float
) -> Outcome:
    """Raw outputs of the same images, proposals paired by their boxes; `canvas` is its longer side in pixels."""
    most = sum(max(a.valid.sum(), b.valid.sum()) for a, b in zip(expected, came, strict=True))
    a, b = _paired(expected, came, tolerance)
    unpaired = 1 - len(a.boxes) / most if most else 0.0
    return Outcome.of(
        ("unpaired", unpaired, "<=", tolerance.unpaired),
        *array_checks("box", a.boxes / canvas, b.boxes / canvas, tolerance.box_atol, tolerance),
        *array_checks("score", a.scores, b.scores, tolerance.score_atol, tolerance),
        *_feature_checks(a, b, tolerance),
        **array_spread("box_px", a.boxes, b.boxes),
        **array_spread("score", a.scores, b.scores),
    )


def _feature_checks(expected: RawOutputs, came: RawOutputs, tolerance: Tolerance) -> list[Check]:
    """Of paired proposals, in units of the reference's root mean square; nothing where neither side has features."""
    if expected.features is None and came.features is None:
        return []
    if expected.features is None or came.features is None:
        return [("features_on_both_sides", 0.0, ">=", 1.0)]
    a, b = expected.features, came.features
    scale = max(float(np.sqrt(np.mean(np.square(a)))), 1e-6) if a.size else 1.0
    return array_checks("feature", a / scale, b / scale, tolerance.score_atol, tolerance)


def score_pairs(expected: Sequence[RawOutputs], came: Sequence[RawOutputs], tolerance: Tolerance) -> Floats:
    """(P, 2) scores of the reference and of an engine, one row a class of each paired proposal (to be plotted)."""
    a, b = _paired(expected, came, tolerance)
    return np.stack([a.scores.ravel(), b.scores.ravel()], axis=1)


def _paired(
    expected: Sequence[RawOutputs], came: Sequence[RawOutputs], tolerance: Tolerance
) -> tuple[RawOutputs, RawOutputs]:
    """The paired proposals of all images, P rows on each side."""
    pairs = [pair_proposals(a, b, tolerance.pair_px) for a, b in zip(expected, came, strict=True)]
    first, second = (_joined(side) for side in zip(*pairs, strict=True))
    return first, second


def _joined(raws: Sequence[RawOutputs]) -> RawOutputs:
    """The proposals of all images as those of one."""
    names = [name for name in RAW_OUTPUTS if getattr(raws[0], name) is not None]
    return RawOutputs(**{name: np.concatenate([getattr(raw, name) for raw in raws]) for name in names})


def _chosen(raw: RawOutputs, rows: NDArray[np.int64]) -> RawOutputs:
    return RawOutputs(**{name: a[rows] for name in RAW_OUTPUTS if (a := getattr(raw, name)) is not None})


def pair_proposals(a: RawOutputs, b: RawOutputs, limit_px: float) -> tuple[RawOutputs, RawOutputs]:
    """The valid proposals that both sides have, in the same order."""
    rows_a, rows_b = np.flatnonzero(a.valid), np.flatnonzero(b.valid)
    cost = np.full((len(rows_a), len(rows_b)), np.inf)
    for i, row in enumerate(rows_a):
        cost[i] = np.abs(b.boxes[rows_b] - a.boxes[row]).mean(axis=(1, 2))
    chosen_a, chosen_b = greedy_pairs(np.where(cost <= limit_px, cost, np.inf))
    return _chosen(a, rows_a[chosen_a]), _chosen(b, rows_b[chosen_b])


def compare_detections(
    expected: Sequence[RawOutputs],
    came: Sequence[RawOutputs],
    tolerance: Tolerance,
    valid_hw: NDArray[np.float32],
    spec: PostprocessSpec,
) -> Outcome:
    """Detections of the same images, in network pixels; `valid_hw` is (N, 2).

    metrics: unmatched and extra, the shares of the reference's and of the engine's detections without a partner;
    borderline and near_ties, how many more were forgiven; detections, the reference's number. Not_run where only the
    reference's detections count, and there is none.
    """
    lost, extra = _Tally(), _Tally()
    for a, b, (h, w) in zip(expected, came, valid_hw, strict=True):
        lost += _tally(a, b, (int(h), int(w)), tolerance, spec)
        extra += _tally(b, a, (int(h), int(w)), tolerance, spec)
    outcome = Outcome.of(
        ("unmatched", lost.share, "<=", tolerance.unmatched),
        ("extra", extra.share, "<=", tolerance.unmatched if tolerance.both_ways else np.inf),
        detections=lost.found,
        borderline=lost.borderline + extra.borderline,
        near_ties=lost.near_ties + extra.near_ties,
    )
    if lost.found or tolerance.both_ways:
        return outcome
    reason = f"the reference has no detection above {tolerance.floor:g} to be found again. Export a trained checkpoint"
    return replace(outcome, status="not_run", reason=reason)


class _Tally(NamedTuple):
    """Of the detections found on one side: how many the other side lacks, and how many of them are explained."""

    found: int = 0
    missing: int = 0
    borderline: int = 0
    near_ties: int = 0

    def __add__(self, other: _Tally) -> _Tally:  # type: ignore[override]
        return _Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def share(self) -> float:
        return self.missing / max(self.found, 1)


def _tally(
    one: RawOutputs, other: RawOutputs, hw: tuple[int, int], tolerance: Tolerance, spec: PostprocessSpec
) -> _Tally:
    """Detections of `one` that `other` lacks.

    NMS and the cut to `max_detections` are the same code on both sides: what the other side has before them, and
    only lost in them, it lost to a nearly equal score. Where scores have no bound, none is nearly equal.
    """
    found = _detect(one, hw, spec, tolerance.floor)
    left = found[_without_partner(found, _detect(other, hw, spec), tolerance)]
    if not np.isfinite(tolerance.score):
        return _Tally(len(found), len(left))
    sure = left[left.scores > tolerance.floor + 2 * tolerance.score]
    before_nms = _detect(other, hw, replace(spec, nms_iou=1.0, max_detections=other.scores.size))
    missing = sure[_without_partner(sure, before_nms, tolerance)]
    return _Tally(len(found), len(missing), len(left) - len(sure), len(sure) - len(missing))


def _detect(raw: RawOutputs, hw: tuple[int, int], spec: PostprocessSpec, floor: float = SCORE_FLOOR) -> Detections:
    names = tuple(str(k) for k in range(raw.scores.shape[1]))
    return postprocess(raw, Geometry(hw, hw), replace(spec, score_thresholds=(floor,) * len(names)), names)


def _without_partner(found: Detections, others: Detections, tolerance: Tolerance) -> NDArray[np.bool_]:
    """(N,) True for rows of `found` with no partner in `others`, one to one."""
    iou = boxes.iou(found.xyxy, others.xyxy)  # (N, M)
    alike = found.class_ids[:, None] == others.class_ids
    alike &= np.abs(found.scores[:, None] - others.scores) <= tolerance.score
    alone = np.ones(len(found), bool)
    alone[greedy_pairs(np.where(alike & (iou >= tolerance.iou), 1 - iou, np.inf))[0]] = False
    return alone


def greedy_pairs(cost: Floats) -> Pairs:
    """(N, M) costs, not finite where a pair is not allowed -> rows and columns of the cheapest pairs, one to one."""
    rows, columns = np.nonzero(np.isfinite(cost))
    free_row, free_column = (np.ones(n, bool) for n in cost.shape)
    chosen = []
    for k in np.argsort(cost[rows, columns], kind="stable"):
        if free_row[rows[k]] and free_column[columns[k]]:
            free_row[rows[k]] = free_column[columns[k]] = False
            chosen.append(k)
    return rows[chosen], columns[chosen]


def array_checks(key: str, a: Floats, b: Floats, atol: float, tolerance: Tolerance) -> list[Check]:
    """Reference a against b, of one shape: the tolerance's quantile of what exceeds `rtol` of |a|, and the cosine."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    excess = np.maximum(0, np.abs(b - a) - tolerance.rtol * np.abs(a))
    error = float(np.quantile(excess, tolerance.quantile)) if a.size else 0.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.vdot(a, b)) / norms if norms else float(np.array_equal(a, b))
    return [(f"{key}_error", error, "<=", atol), (f"{key}_cosine", cosine, ">=", tolerance.cosine)]


def array_spread(key: str, a: Floats, b: Floats) -> dict[str, float]:
    """The largest difference and its 99th percentile, to be reported."""
    apart = np.abs(np.asarray(b, np.float64) - a)
    both = (float(apart.max()), float(np.quantile(apart, 0.99))) if apart.size else (0.0, 0.0)
    return {f"{key}_max": both[0], f"{key}_p99": both[1]}
