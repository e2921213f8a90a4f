"""An engine against the reference in its bundle: raw outputs, then detections, without regard to order.

Two correct engines may put proposals in another order, or keep another one of two whose objectness nearly ties. So
proposals are paired by their boxes before numbers are compared, and detections by class, overlap and score. A
detection without a partner is forgiven where a nearly equal score explains it: beside the threshold, or suppressed
on the other side by a twin. Everything else fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import backends, boxes
from glmd_runtime.bundle import Bundle, Manifest, Reference
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, preprocess

Status = Literal["passed", "failed", "not_run"]
Floats = NDArray[np.floating[Any]]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # row of one side, row of the other


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the reference.

    pair_px           proposals further apart than this (mean over their coordinates, network pixels) are no pair
    unpaired          share of proposals that may have no pair
    quantile          of all errors that must be within `absolute + rtol * |reference|`; 1 is every one of them
    rtol              relative part of the bound
    score_atol        absolute part, scores
    box_atol          absolute part, boxes in units of the canvas's longer side
    cosine            least cosine of paired scores
    iou, score        a detection's partner has the same class, at least this IoU, at most this difference of score
    unmatched         share of detections that may have no partner
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


TOLERANCES = {
    "fp32": Tolerance(2.0, 0.01, 1.0, 1e-3, 1e-4, 1e-4, 0.999, iou=0.99, score=1e-3, unmatched=0.0),
    "fp16": Tolerance(8.0, 0.05, 0.99, 1e-3, 2e-2, 2e-3, 0.999, iou=0.95, score=0.02, unmatched=0.01),
}
PREPROCESS = "preprocess"  # the stage before every engine
ENGINE_STAGES = ("raw", "detections")  # what an engine answers; glmd-export adds the stages inside the graph
SCORE_FLOOR = 0.05  # detections are compared down to this score, whatever the manifest's thresholds are


@dataclass(frozen=True)
class VerifyRow:
    """One stage of one engine on one backend; `reason` says why it failed or did not run.

    stage  "preprocess", "raw" and "detections"; the exporter's comparison with PyTorch adds those of the network
    """

    engine: str
    backend: str
    precision: str
    stage: str
    status: Status
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VerifyReport:
    """What is written to verify.json."""

    rows: tuple[VerifyRow, ...]

    @property
    def status(self) -> Literal["passed", "failed"]:
        """Failed when a row failed, or when no engine ran: preprocessing alone proves nothing."""
        engine_passed = any(row.status == "passed" for row in self.rows if row.stage != PREPROCESS)
        return "passed" if engine_passed and all(row.status != "failed" for row in self.rows) else "failed"

    def passed(self, engine: str, backend: str) -> bool:
        """Whether this engine ran on this backend and every stage passed."""
        statuses = [row.status for row in self.rows if (row.engine, row.backend) == (engine, backend)]
        return bool(statuses) and set(statuses) == {"passed"}

    def to_dict(self) -> dict[str, Any]:
        return {"status": self.status, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerifyReport:
        return cls(tuple(VerifyRow(**row) for row in values["rows"]))


def verify_bundle(bundle: Bundle, backend: str | None = None) -> VerifyReport:
    """Run every engine of a bundle on every backend installed here, or on one, against the bundle's own reference.

    Raises: UnsupportedError when no backend is installed, or not the one asked for; UsageError when it is unknown.
    """
    if backend is not None:
        backends.require(backend)
    if not backends.available():
        raise UnsupportedError(f"Verifying needs an inference library. Run: {backends.INSTALL}")
    rows = [check_preprocess(bundle.reference, bundle.manifest.preprocess)]
    for engine in bundle.manifest.engines:
        for name in backends.readers(engine):
            if backend in (None, name):
                rows += _verify_engine(bundle, engine, name)
    return VerifyReport(tuple(rows))


def _verify_engine(bundle: Bundle, engine: str, name: str) -> list[VerifyRow]:
    precision = bundle.manifest.engines[engine]
    if name not in backends.available() or precision not in TOLERANCES:
        installed = name in backends.available()
        reason = f"no tolerance is defined for {precision}" if installed else f"{name} is not installed"
        return [VerifyRow(engine, name, precision, stage, "not_run", reason) for stage in ENGINE_STAGES]
    backend = backends.load(name, bundle.path / engine)
    try:
        return check_engine(backend, name, engine, bundle.manifest, bundle.reference)
    finally:
        backend.close()


def check_preprocess(reference: Reference, spec: PreprocessSpec) -> VerifyRow:
    """The reference's frames through this machine's `preprocess`; builds of OpenCV may differ by one intensity."""
    worst = 0.0
    for frame, image, valid_hw in zip(reference.frames, reference.images, reference.valid_hw, strict=True):
        came, geometry = preprocess(frame, spec)
        same_size = came.shape == image.shape and geometry.valid_hw == tuple(valid_hw)
        worst = max(worst, float(np.abs(came - image).max() * max(spec.std)) if same_size else np.inf)
    outcome = Outcome.of(("intensity_error", worst, "<=", 1.01))  # a hundredth for the rounding of the division
    return VerifyRow(PREPROCESS, "numpy", "fp32", PREPROCESS, outcome.status, outcome.reason, outcome.metrics)


def check_engine(
    backend: backends.Backend, name: str, engine: str, manifest: Manifest, reference: Reference
) -> list[VerifyRow]:
    """Two rows: an engine's raw outputs, and the detections made of them, against the reference."""
    precision = manifest.engines[engine]
    inputs = {"images": reference.images, "valid_hw": reference.valid_hw}
    outputs = backends.run_padded(backend, manifest.graph.batch, inputs)
    came = [RawOutputs(*row) for row in zip(*(outputs[k] for k in ("boxes", "scores", "valid")), strict=True)]
    expected, tolerance = reference.raw_outputs, TOLERANCES[precision]
    outcomes = (
        compare_raw(expected, came, tolerance, canvas=max(reference.images.shape[2:])),
        compare_detections(expected, came, tolerance, reference.valid_hw, manifest.postprocess),
    )
    return [
        VerifyRow(engine, name, precision, stage, outcome.status, outcome.reason, outcome.metrics)
        for stage, outcome in zip(ENGINE_STAGES, outcomes, strict=True)
    ]


@dataclass(frozen=True)
class Outcome:
    """Numbers, and a sentence for each bound that they break."""

    metrics: Mapping[str, float]
    reason: str = ""

    @classmethod
    def of(cls, *checks: tuple[str, float, Literal["<=", ">="], float]) -> Outcome:
        """From (name, value, relation, bound); a value that is not a number breaks its bound."""
        broken = [f"{n} {v:.4g}, expected {r} {b:g}" for n, v, r, b in checks if not (v <= b if r == "<=" else v >= b)]
        return cls({name: float(value) for name, value, _, _ in checks}, "; ".join(broken))

    @property
    def status(self) -> Status:
        return "failed" if self.reason else "passed"


def compare_raw(
    expected: Sequence[RawOutputs], came: Sequence[RawOutputs], tolerance: Tolerance, canvas: float
) -> Outcome:
    """Raw outputs of the same images, proposals paired by their boxes; `canvas` is its longer side in pixels."""
    most = sum(max(a.valid.sum(), b.valid.sum()) for a, b in zip(expected, came, strict=True))
    pairs = [pair_proposals(a, b, tolerance.pair_px) for a, b in zip(expected, came, strict=True)]
    boxes_a, boxes_b = (np.concatenate([side[i].boxes for side in pairs]) / canvas for i in (0, 1))  # (P, K, 4)
    scores_a, scores_b = (np.concatenate([side[i].scores for side in pairs]) for i in (0, 1))  # (P, K)
    return Outcome.of(
        ("unpaired", 1 - len(boxes_a) / most if most else 0.0, "<=", tolerance.unpaired),
        ("box_error", _error(boxes_a, boxes_b, tolerance), "<=", tolerance.box_atol),
        ("score_error", _error(scores_a, scores_b, tolerance), "<=", tolerance.score_atol),
        ("score_cosine", _cosine(scores_a, scores_b), ">=", tolerance.cosine),
    )


def pair_proposals(a: RawOutputs, b: RawOutputs, limit_px: float) -> tuple[RawOutputs, RawOutputs]:
    """The valid proposals that both sides have, in the same order."""
    rows_a, rows_b = np.flatnonzero(a.valid), np.flatnonzero(b.valid)
    cost = np.full((len(rows_a), len(rows_b)), np.inf)
    for i, row in enumerate(rows_a):
        cost[i] = np.abs(b.boxes[rows_b] - a.boxes[row]).mean(axis=(1, 2))
    chosen_a, chosen_b = greedy_pairs(np.where(cost <= limit_px, cost, np.inf))
    chosen = ((a, rows_a[chosen_a]), (b, rows_b[chosen_b]))
    first, second = (RawOutputs(x.boxes[rows], x.scores[rows], x.valid[rows]) for x, rows in chosen)
    return first, second


def compare_detections(
    expected: Sequence[RawOutputs],
    came: Sequence[RawOutputs],
    tolerance: Tolerance,
    valid_hw: NDArray[np.float32],
    spec: PostprocessSpec,
) -> Outcome:
    """Detections of the same images down to SCORE_FLOOR, in network pixels; `valid_hw` is (N, 2)."""
    total = missing = 0
    for a, b, (h, w) in zip(expected, came, valid_hw, strict=True):
        for one, other in ((a, b), (b, a)):
            found = _detect(one, (int(h), int(w)), spec)
            total += len(found)
            missing += len(_missing(found, other, (int(h), int(w)), tolerance, spec))
    outcome = Outcome.of(("unmatched", missing / max(total, 1), "<=", tolerance.unmatched))
    return replace(outcome, metrics={**outcome.metrics, "detections": total / 2})


def _detect(raw: RawOutputs, hw: tuple[int, int], spec: PostprocessSpec, **changes: Any) -> Detections:
    names = tuple(str(k) for k in range(raw.scores.shape[1]))
    floors = (SCORE_FLOOR,) * len(names)
    return postprocess(raw, Geometry(hw, hw), replace(spec, score_thresholds=floors, **changes), names)


def _missing(
    found: Detections, other: RawOutputs, hw: tuple[int, int], tolerance: Tolerance, spec: PostprocessSpec
) -> Detections:
    """Those of `found` that the other side lacks, and no near tie explains it.

    NMS and the cut to `max_detections` are the same code on both sides: what the other side has before them, and
    only lost in them, it lost to a nearly equal score.
    """
    left = found[_without_partner(found, _detect(other, hw, spec), tolerance)]
    left = left[left.scores > SCORE_FLOOR + 2 * tolerance.score]
    before_nms = _detect(other, hw, spec, nms_iou=1.0, max_detections=other.scores.size)
    return left[_without_partner(left, before_nms, tolerance)]


def _without_partner(found: Detections, others: Detections, tolerance: Tolerance) -> NDArray[np.bool_]:
    """(N,) True for rows of `found` with no partner in `others`, one to one."""
    iou = boxes.iou(found.xyxy, others.xyxy)  # (N, M)
    alike = found.class_ids[:, None] == others.class_ids
    alike &= np.abs(found.scores[:, None] - others.scores) <= tolerance.score
    alone = np.ones(len(found), bool)
    alone[greedy_pairs(np.where(alike & (iou >= tolerance.iou), 1 - iou, np.inf))[0]] = False
    return alone


def greedy_pairs(cost: Floats) -> Pairs:
    """(N, M) costs, infinite where a pair is not allowed -> rows and columns of the cheapest pairs, one to one."""
    cost, pairs = cost.copy(), []
    while cost.size and np.isfinite(cost).any():
        i, j = np.unravel_index(np.argmin(cost), cost.shape)
        pairs.append((i, j))
        cost[i, :] = cost[:, j] = np.inf
    rows, columns = np.asarray(pairs, np.int64).reshape(-1, 2).T
    return rows, columns


def _error(a: Floats, b: Floats, tolerance: Tolerance) -> float:
    """The tolerance's quantile of what exceeds the relative bound; compared with the absolute bound alone."""
    excess = np.abs(b - a) - tolerance.rtol * np.abs(a)
    return float(np.maximum(0, np.quantile(excess, tolerance.quantile))) if excess.size else 0.0


def _cosine(a: Floats, b: Floats) -> float:
    """Cosine of two arrays as vectors; 1 when there is nothing to compare."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norms if norms else float(np.array_equal(a, b))
