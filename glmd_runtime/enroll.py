"""One more class from a few boxes, without training: a linear discriminant on the features of the graph's proposals.

The network proposes about a hundred regions a frame and has a vector for each of them, whatever its classes are. Those
of regions on the given boxes are examples, those of all other regions of the same frames counter-examples; a linear
discriminant with a shrunk covariance tells both apart in closed form. What it says of each frame after it was fitted to
the others says how steep its score is, and where it is 0.5: where detections of these frames have the best F1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from glmd_runtime.boxes import iou, nms
from glmd_runtime.errors import BundleError, UsageError
from glmd_runtime.files.values import each, number, shown, text
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs

Floats = NDArray[np.floating[Any]]

# A region is an example if it overlaps a box by the first, or is a box's best and overlaps it by the second; one that
# overlaps every box by less than the second is a counter-example.
EXAMPLE_IOU, OTHER_IOU = 0.6, 0.3
HIT_IOU = 0.5  # a box of a left-out frame is found when a detection overlaps it by this much
SHRINKAGE = 0.6  # of the covariance towards a multiple of the identity: examples are fewer than dimensions
THRESHOLD = 0.5  # the score that stands for the best F1 over frames left out
MOST_DEVIATIONS = 4.0  # between both kinds' margins that a few frames can be believed; more would make scores 0 and 1
_TINY = 1e-12


class Regions(NamedTuple):
    """What the network proposes in one frame: R regions.

    boxes (R, 4) float32 xyxy in network pixels; features (R, D) float64 of length 1; wanted (n, 4), the user's boxes
    """

    boxes: Floats
    features: Floats
    wanted: Floats

    @property
    def examples(self) -> NDArray[np.bool_]:
        """(R,)"""
        overlaps = iou(self.boxes, self.wanted)  # (R, n)
        best = (overlaps == overlaps.max(axis=0, initial=OTHER_IOU)) & (overlaps > 0)  # of each box
        return np.asarray((best | (overlaps >= EXAMPLE_IOU)).any(axis=1))

    @property
    def others(self) -> NDArray[np.bool_]:
        """(R,) what lies beside every box; between both, regions are neither."""
        return np.asarray(iou(self.boxes, self.wanted).max(axis=1, initial=0.0) < OTHER_IOU)


@dataclass(frozen=True)
class EnrolledSpec:
    """What a manifest says of enrolled classes, E names and their score thresholds."""

    class_names: tuple[str, ...] = ()
    score_thresholds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "score_thresholds": list(self.score_thresholds)}

    @classmethod
    def from_dict(cls, values: Any) -> EnrolledSpec:
        """Raises: KeyError, TypeError or ValueError for values that `to_dict` does not give."""
        spec = cls(each(text, values["class_names"]), each(number, values["score_thresholds"], low=0, high=1))
        if len(spec.class_names) != len(spec.score_thresholds):
            raise ValueError(f"every enrolled class needs a threshold; got {values}")
        return spec

    def postprocess(self, spec: PostprocessSpec) -> PostprocessSpec:
        """A post-processing of K classes -> of K + E."""
        return replace(spec, score_thresholds=(*spec.score_thresholds, *self.score_thresholds))


@dataclass(frozen=True, eq=False)
class Enrolment:
    """E enrolled classes: score = sigmoid(weights @ features of length 1 + biases); weights (E, D), biases (E,)."""

    spec: EnrolledSpec
    weights: NDArray[np.float32]
    biases: NDArray[np.float32]

    def and_one(self, other: Enrolment) -> Enrolment:
        """Both one's classes, in this order."""
        names = (*self.spec.class_names, *other.spec.class_names)
        thresholds = (*self.spec.score_thresholds, *other.spec.score_thresholds)
        arrays = (np.concatenate([getattr(one, key) for one in (self, other)]) for key in ("weights", "biases"))
        return Enrolment(EnrolledSpec(names, thresholds), *arrays)

    def extend(self, raw: RawOutputs, spec: PostprocessSpec) -> RawOutputs:
        """Raw outputs of K classes -> of K + E, of which every region belongs to the side that is surer of it.

        A region's score of an enrolled class is 0 where a known class claims it or one that overlaps it by more than
        `nms_iou` with a higher score, and the other way round; a claim is a score above its threshold. So no object
        is found twice, under an old and a new name.
        Args: spec, with K + E thresholds.
        """
        known, thresholds = raw.scores, np.asarray(spec.score_thresholds, np.float32)
        enrolled = self.scores(raw)  # (R, E)
        enrolled *= np.arange(enrolled.shape[1]) == enrolled.argmax(axis=1)[:, None]  # of several the surest
        boxes = likely_boxes(raw)
        rivals = (iou(boxes, boxes) > spec.nms_iou) & raw.valid  # (R, R): column claims, row is disputed
        rivals |= np.eye(len(boxes), dtype=bool)
        k = known.shape[1]
        by_known, by_enrolled = _claims(known, thresholds[:k], rivals), _claims(enrolled, thresholds[k:], rivals)
        known = np.where(known < by_enrolled[:, None], 0, known)
        enrolled = np.where(enrolled <= by_known[:, None], 0, enrolled)
        repeated = np.repeat(boxes[:, None], enrolled.shape[1], axis=1)  # (R, E, 4)
        return replace(
            raw,
            boxes=np.concatenate([raw.boxes, repeated], axis=1),
            scores=np.concatenate([known, enrolled], axis=1).astype(np.float32),
        )

    def scores(self, raw: RawOutputs) -> Floats:
        """(R, E) of every region, before any claim of another class."""
        margins = unit_features(raw) @ self.weights.T.astype(np.float64) + self.biases
        return _sigmoid(margins)

    def to_bytes(self) -> bytes:
        """The content of enrolled.safetensors."""
        return save({"weights": np.ascontiguousarray(self.weights), "biases": np.ascontiguousarray(self.biases)})


def _claims(scores: Floats, thresholds: NDArray[np.float32], rivals: NDArray[np.bool_]) -> Floats:
    """(R, C) scores -> (R,) the highest one above its threshold of each region and its rivals, else 0."""
    claims = np.where(scores > thresholds, scores, 0).max(axis=1, initial=0)  # (R,)
    return np.asarray(np.where(rivals, claims, 0).max(axis=1, initial=0))


def read_enrolment(content: bytes, path: Path, spec: EnrolledSpec, dimensions: int) -> Enrolment:
    """Of an enrolled.safetensors, which lies at `path`. Raises: BundleError for another content."""
    try:
        arrays = load(content)
        weights, biases = arrays["weights"], arrays["biases"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path} holds no enrolled classes: {error!r}. Enrol them again.") from error
    classes = len(spec.class_names)
    if weights.shape != (classes, dimensions) or biases.shape != (classes,):
        raise BundleError(
            f"{path} must hold weights ({classes}, {dimensions}) and biases ({classes},); got {weights.shape} and "
            f"{biases.shape}. Enrol them again."
        )
    if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
        raise BundleError(f"{path} holds weights or biases that are no numbers. Enrol the classes again.")
    return Enrolment(spec, weights.astype(np.float32), biases.astype(np.float32))


def check_examples(known: Sequence[str], name: str, frames: Sequence[Any], boxes: Sequence[Any]) -> None:
    """Raises: UsageError unless the name is a new one, and there are frames with boxes, a list of them each."""
    if not isinstance(name, str) or not name.strip() or name != shown(name) or name in known:
        raise UsageError(
            f"A new class needs a name other than {', '.join(known)}, without control characters; got {name!r}."
        )
    if not len(frames) or len(frames) != len(boxes):
        raise UsageError(
            f"Enrolling needs one frame or more, and of each its boxes; got {len(frames)} frames and boxes of "
            f"{len(boxes)}."
        )
    if not any(len(wanted) for wanted in boxes):
        raise UsageError(f"Enrolling needs a box of {name!r} in one frame or more; got none.")


def checked_boxes(boxes: Any, frame_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(n, 4) float32 boxes that lie in their frame, to a pixel; n may be 0. Raises: UsageError."""
    try:
        xyxy = np.asarray(boxes if len(boxes) else np.empty((0, 4)), np.float32)
    except (TypeError, ValueError):
        xyxy = np.empty(0, np.float32)
    h, w = frame_hw
    if xyxy.ndim == 2 and xyxy.shape[1] == 4:
        inside = (xyxy >= -1).all() and (xyxy <= np.array([w, h, w, h]) + 1).all()
        if inside and (xyxy[:, 2:] > xyxy[:, :2]).all():
            return xyxy
    raise UsageError(
        f"The boxes of a frame {w} pixels wide and {h} high are (n, 4) left, top, right, bottom in its pixels; got "
        f"{boxes!r}."
    )


def unit_features(raw: RawOutputs) -> Floats:
    """(R, D) float64 of length 1; zeros stay zeros."""
    features = np.asarray(raw.features, np.float64)
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY))


def likely_boxes(raw: RawOutputs) -> Floats:
    """(R, 4) one box a region, whatever is in it: that of the known class which is the likeliest."""
    return np.asarray(raw.boxes[np.arange(len(raw.boxes)), raw.scores.argmax(axis=1)])


def regions(raw: RawOutputs, wanted: Floats) -> Regions:
    """Args: wanted (n, 4) xyxy in network pixels."""
    return Regions(likely_boxes(raw)[raw.valid], unit_features(raw)[raw.valid], wanted)


def learn(name: str, frames: Sequence[Regions], nms_iou: float) -> Enrolment:
    """A class from the regions of some frames.

    Raises: UsageError when no region overlaps any box, or none lies beside them.
    """
    _check(frames)
    moments = [(_Moments.of(one.features[one.examples]), _Moments.of(one.features[one.others])) for one in frames]
    examples, others = (_Moments(*map(sum, zip(*side, strict=True))) for side in zip(*moments, strict=True))
    weights, bias = _fit(examples, others)
    pairs = [
        (one, _fit(examples - a, others - b))
        for one, (a, b) in zip(frames, moments, strict=True) if examples.number > a.number and others.number > b.number
    ]
    # Of a single frame nothing can be left out; its own regions then say how far apart both kinds are.
    pairs = pairs if len(pairs) > 1 else [(one, (weights, bias)) for one in frames]
    margins = [(one, one.features @ w + b) for one, (w, b) in pairs]
    slope = _slope(margins)
    cut = best_cut([(one, slope * values) for one, values in margins], nms_iou)
    scaled = np.asarray(slope * weights, np.float32)[None]
    return Enrolment(EnrolledSpec((name,), (THRESHOLD,)), scaled, np.asarray([slope * bias - cut], np.float32))


def _check(frames: Sequence[Regions]) -> None:
    if not any(one.examples.any() for one in frames):
        raise UsageError(
            f"The network proposes no region that overlaps a box by IoU {OTHER_IOU:g}, so that nothing can be learned"
            " from these. Give frames in which the object is larger or clearer, draw the boxes tightly, export with "
            "more --proposals, or teach it with glmd-train teach."
        )
    if not any(one.others.any() for one in frames):
        raise UsageError("Every region of these frames lies on a box. Give frames with something else around it.")


class _Moments(NamedTuple):
    """Of some vectors: how many, their sum (D,), and the sum of their outer products (D, D). Frames add up, and one is
    left out by subtracting it."""

    number: int
    total: Any
    squares: Any

    @classmethod
    def of(cls, features: Floats) -> _Moments:
        return cls(len(features), features.sum(axis=0), features.T @ features)

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def mean(self) -> Floats:
        return np.asarray(self.total / self.number)

    @property
    def scatter(self) -> Floats:
        """(D, D) the sum of outer products of what is apart from the mean."""
        return np.asarray(self.squares - self.number * np.outer(self.mean, self.mean))


def _fit(examples: _Moments, others: _Moments) -> tuple[Floats, float]:
    """Fisher's discriminant: weights (D,) and bias, whose margin is 0 halfway between both means."""
    covariance = (examples.scatter + others.scatter) / (examples.number + others.number)  # (D, D)
    size = max(float(np.trace(covariance)) / len(covariance), _TINY)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance))
    weights = np.linalg.solve(shrunk, examples.mean - others.mean)
    return weights, -float(weights @ (examples.mean + others.mean)) / 2


def _slope(margins: Sequence[tuple[Regions, Floats]]) -> float:
    """What makes differences of margins those of logits: both kinds' are taken for normals of one deviation."""
    a = np.concatenate([values[one.examples] for one, values in margins])
    b = np.concatenate([values[one.others] for one, values in margins])
    if not (len(a) and len(b)):
        return 1.0
    apart = max(float(a.mean() - b.mean()), _TINY)
    deviation = max(np.sqrt((a.var() + b.var()) / 2), apart / MOST_DEVIATIONS)
    return apart / float(deviation) ** 2


def best_cut(frames: Sequence[tuple[Regions, Floats]], nms_iou: float) -> float:
    """The logit above which detections have the best F1, halfway to the next; of equal cuts the highest.

    Args: frames, each with logits (R,) of its regions.
    Returns: 0 where no detection finds a box.
    """
    order = sorted((row for one, logits in frames for row in _hits(one, logits, nms_iou)), reverse=True)
    logits, hits = np.array([logit for logit, _ in order]), np.cumsum([hit for _, hit in order])
    if not len(order) or not hits[-1]:
        return 0.0
    objects = sum(len(one.wanted) for one, _ in frames)
    below = np.append(logits[1:], logits[-1] - 1)
    f1 = np.where(logits > below, 2 * hits / (np.arange(1, len(order) + 1) + objects), -1)  # between equals is no cut
    best = int(f1.argmax())
    return float(logits[best] + below[best]) / 2


def _hits(one: Regions, scores: Floats, nms_iou: float) -> list[tuple[float, bool]]:
    """(score or logit, whether it finds a box that no surer one found) of each detection of a frame."""
    kept = nms(np.asarray(one.boxes, np.float32), np.asarray(scores, np.float32), nms_iou)
    overlaps = iou(one.boxes[kept], one.wanted)  # (n, G)
    free, rows = np.ones(len(one.wanted), bool), []
    for score, overlap in zip(scores[kept], overlaps, strict=True):
        allowed = np.where(free, overlap, 0)
        hit = bool(allowed.size) and float(allowed.max()) >= HIT_IOU
        if hit:
            free[int(allowed.argmax())] = False
        rows.append((float(score), hit))
    return rows


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))  # without overflow
