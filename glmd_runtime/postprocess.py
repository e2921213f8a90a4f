"""Raw network outputs of one image -> Detections in frame pixels. One numpy NMS serves every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import boxes as box_ops
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UsageError
from glmd_runtime.files.values import each, number, whole
from glmd_runtime.preprocess import Geometry


@dataclass(frozen=True)
class RawOutputs:
    """What the network says of one image, before thresholds.

    boxes     (R, K, 4) float32 xyxy in network pixels, one box a class for each proposal
    scores    (R, K) float32, softmax without the background column
    valid     (R,) bool, False for padded proposals
    features  (R, D) float32 pooled ROI vectors, or None
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None


RAW_OUTPUTS = tuple(field.name for field in fields(RawOutputs))


def split_outputs(outputs: Mapping[str, NDArray[Any] | None]) -> list[RawOutputs]:
    """A graph's outputs (N, ...) by name, with or without features -> those of each of the N images."""
    columns = {name: array for name in RAW_OUTPUTS if (array := outputs.get(name)) is not None}
    columns["valid"] = columns["valid"].astype(bool)
    return [RawOutputs(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class PostprocessSpec:
    """score_thresholds: one a class, a box is kept when its score is larger; nms_iou; max_detections a frame."""

    score_thresholds: tuple[float, ...]
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        if not np.isfinite([*self.score_thresholds, self.nms_iou]).all():
            raise ValueError(f"score_thresholds and nms_iou must be finite; got {self}")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "score_thresholds": list(self.score_thresholds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PostprocessSpec:
        """Raises: KeyError, TypeError or ValueError for values that `to_dict` does not give."""
        read = {
            "score_thresholds": each(number, values["score_thresholds"], low=0, high=1),
            "nms_iou": number(values["nms_iou"], 0, 1),
            "max_detections": whole(values["max_detections"], 1),
        }
        return cls(**{**values, **read})

    def with_threshold(self, score: float | None) -> PostprocessSpec:
        """One threshold for all classes; None for those that it has. Raises: UsageError for one outside of 0..1."""
        if score is None:
            return self
        if not 0 <= score <= 1:
            raise UsageError(f"score_threshold must be in 0..1; got {score}.")
        return replace(self, score_thresholds=(float(score),) * len(self.score_thresholds))


def postprocess(
    raw: RawOutputs, geometry: Geometry, spec: PostprocessSpec, class_names: tuple[str, ...]
) -> Detections:
    """Threshold, NMS within each class, best `max_detections`, boxes to frame pixels; best score first.

    Thresholds and order are those of GLMDNet (detectron2's fast_rcnn_inference): strictly larger than the threshold,
    NMS in network pixels, and only then are boxes mapped to the frame. What is no number is never a detection.
    """
    passed = (raw.scores > np.asarray(spec.score_thresholds, np.float32)) & raw.valid[:, None]  # (R, K)
    passed[passed] = np.isfinite(raw.scores[passed]) & np.isfinite(raw.boxes[passed]).all(axis=1)
    rows, class_ids = np.nonzero(passed)
    xyxy, scores = raw.boxes[rows, class_ids], raw.scores[rows, class_ids]
    kept = box_ops.nms_per_class(xyxy, scores, class_ids, spec.nms_iou)[: spec.max_detections]
    found = Detections(geometry.to_frame(xyxy[kept]), scores[kept], class_ids[kept], class_names)
    return found[box_ops.area(found.xyxy) > 0]
