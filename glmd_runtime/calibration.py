"""Prototypical calibration (PCB): an ImageNet classifier gives a second opinion on each detection.

Every class has a prototype, the mean of the classifier's logits over the class's support boxes. The score of a
detection is mixed with the cosine between its own logits and its class's prototype. numpy only; what computes logits is
`calibrator.Calibrator` on the device and `glmd_train.prototypes` in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from glmd_runtime.detections import Detections
from glmd_runtime.errors import BundleError
from glmd_runtime.files.values import each, number
from glmd_runtime.postprocess import PostprocessSpec

_TINY = 1e-12  # of a vector without length every cosine is 0


@dataclass(frozen=True)
class CalibrationSpec:
    """lower < score <= upper becomes alpha * score + (1 - alpha) * cosine; the defaults are the published ones.

    score_thresholds  for calibrated scores, in the place of the model's own, one a class; none: the model's own
    """

    alpha: float = 0.5
    lower: float = 0.05
    upper: float = 1.0
    score_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.lower <= self.upper <= 1):
            raise ValueError(f"alpha and lower <= upper must be in 0..1; got {self}")
        if not np.isfinite(self.score_thresholds).all():
            raise ValueError(f"score_thresholds must be finite; got {self.score_thresholds}")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "score_thresholds": list(self.score_thresholds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibrationSpec:
        """Raises: KeyError, TypeError or ValueError for values that `to_dict` does not give."""
        read = {key: number(values[key], 0, 1) for key in ("alpha", "lower", "upper")}
        return cls(**{**values, **read, "score_thresholds": each(number, values["score_thresholds"], low=0, high=1)})

    def postprocess(self, spec: PostprocessSpec) -> PostprocessSpec:
        """A model's own post-processing as it is with calibration."""
        return replace(spec, score_thresholds=self.score_thresholds or spec.score_thresholds)


def calibrate(
    scores: NDArray[np.float32],
    class_ids: NDArray[np.integer],
    logits: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    spec: CalibrationSpec,
) -> NDArray[np.float32]:
    """The published arithmetic, in any order of rows.

    Args: scores (N,); class_ids (N,); logits (N, D) of each detection's box; prototypes (K, D), a row of zeros for a
        class without support, whose scores stay as they are.
    Returns: (N,) in the same order. A negative cosine may make a score negative: nothing is cut here.
    """
    known = np.asarray(prototypes.any(axis=1))  # (K,)
    chosen = (scores > spec.lower) & (scores <= spec.upper) & known[class_ids]
    a, b = (np.asarray(rows, np.float64) for rows in (logits[chosen], prototypes[class_ids[chosen]]))  # (M, D)
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), _TINY)
    cosine = np.einsum("md,md->m", a, b) / lengths  # (M,)
    calibrated = np.array(scores, np.float32)
    calibrated[chosen] = spec.alpha * scores[chosen] + (1 - spec.alpha) * cosine
    return calibrated


@dataclass(frozen=True, eq=False)
class Calibration:
    """What is applied to detections: the numbers, and prototypes (K, D) float32, zeros for a class without support."""

    spec: CalibrationSpec
    prototypes: NDArray[np.float32]

    def candidates(self, spec: PostprocessSpec) -> PostprocessSpec:
        """What `postprocess` runs with before calibration: the threshold is `lower`, or what is below it in `spec`."""
        return replace(spec, score_thresholds=tuple(min(t, self.spec.lower) for t in spec.score_thresholds))

    def apply(self, found: Detections, logits: NDArray[np.float32], spec: PostprocessSpec) -> Detections:
        """Calibrated detections, best first, their scores cut to 0..1.

        The thresholds of `spec` are for calibrated scores. One that is not above `lower` took effect before, on the
        score as it was, and drops nothing more: so an evaluation above 0.05 keeps what the published one keeps.
        Args: found, of `postprocess` with `candidates(spec)`; logits (N, D) of its boxes.
        """
        scores = calibrate(found.scores, found.class_ids, logits, self.prototypes, self.spec)
        thresholds = np.asarray(spec.score_thresholds, np.float32)[found.class_ids]
        passed = np.isfinite(scores) & ((scores > thresholds) | (thresholds <= np.float32(self.spec.lower)))
        order = np.argsort(-scores, kind="stable")
        return replace(found, scores=np.clip(scores, 0, 1))[order[passed[order]]]


def prototypes_to_bytes(prototypes: NDArray[np.float32]) -> bytes:
    """The content of prototypes.safetensors."""
    return save({"prototypes": np.ascontiguousarray(prototypes, np.float32)})


def read_prototypes(content: bytes, path: Path, classes: int) -> NDArray[np.float32]:
    """(K, D) of a prototypes.safetensors, which lies at `path`. Raises: BundleError for another content."""
    try:
        prototypes = load(content)["prototypes"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path} holds no prototypes: {error!r}. Export the bundle again.") from error
    if prototypes.ndim != 2 or len(prototypes) != classes or not np.isfinite(prototypes).all():
        raise BundleError(
            f"{path} must hold finite prototypes of shape ({classes}, D); got {prototypes.shape}. Export it again."
        )
    return np.asarray(prototypes, np.float32)
