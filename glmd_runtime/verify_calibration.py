"""PCB against PyTorch's answers in the bundle: the classifier's logits, and the scores calibrated with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import backends, boxes
from glmd_runtime.bundle import PCB_MODEL, PCB_REFERENCE, Bundle
from glmd_runtime.calibration import Calibration
from glmd_runtime.calibrator import Calibrator, readers
from glmd_runtime.comparison import (
    SCORE_FLOOR,
    TOLERANCES,
    Outcome,
    Tolerance,
    array_checks,
    array_spread,
    greedy_pairs,
)
from glmd_runtime.detections import Detections
from glmd_runtime.files.arrays import read_npz
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry
from glmd_runtime.verify_report import VerifyRow

LOGITS, CALIBRATED = "logits", "calibrated"
_UNPAIRED = 0.1  # near ties may take another box; whether all is found again is what the row "detections" judges


@dataclass(frozen=True, eq=False)
class PcbReference:
    """PyTorch's detections before calibration in the bundle's reference frames, image by image, and their logits.

    counts  (N,) detections of each image, P in all
    boxes   (P, 4) float32 network pixels; logits (P, D) float32
    """

    counts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    logits: NDArray[np.float32]

    def split(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """(P, ...) -> one array an image."""
        return np.split(rows, np.cumsum(self.counts)[:-1])

    def to_bytes(self) -> bytes:
        """The content of pcb_reference.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, images: int) -> PcbReference:
        """Raises: ValueError or TypeError for another content than `to_bytes` gives, or of another number of images."""
        reference = cls(**read_npz(content))
        reference.check(images)
        return reference

    def check(self, images: int) -> None:
        """Raises: ValueError unless there is a count for each image, and so many boxes and logits."""
        rows = len(self.boxes) if self.boxes.ndim else 0
        logits = self.logits.shape[-1] if self.logits.ndim else 0
        expected = {"counts": ((images,), "<i8"), "boxes": ((rows, 4), "<f4"), "logits": ((rows, logits), "<f4")}
        came = {name: (array.shape, array.dtype.str) for name, array in vars(self).items()}
        if came != expected or (self.counts < 0).any() or sum(self.counts.tolist()) != rows:
            raise ValueError(f"{PCB_REFERENCE} must hold {expected}, and count each box once; got {came}.")


def verify_calibration(bundle: Bundle, backend: str | None = None) -> list[VerifyRow]:
    """Two rows, logits and calibrated scores, of each backend that reads pcb.onnx, or of one; none without PCB.

    Args: backend, a detector's; nothing is said of one that leaves PCB to another.
    """
    if bundle.manifest.calibration is None:
        return []
    rows = []
    for name in readers():
        if backend in (None, name):
            rows += _rows(bundle, name)
    return rows


def _rows(bundle: Bundle, name: str) -> list[VerifyRow]:
    if why := backends.why_not(name):
        return [VerifyRow(PCB_MODEL, name, "fp32", stage, "not_run", why) for stage in (LOGITS, CALIBRATED)]
    try:
        outcomes = _outcomes(bundle, name)
    except Exception as error:  # whatever a library raises while it loads or runs is no answer
        outcomes = [Outcome({}, f"{str(error).strip()} Export the checkpoint again", "failed")] * 2
    stages = zip((LOGITS, CALIBRATED), outcomes, strict=True)
    return [VerifyRow(PCB_MODEL, name, "fp32", stage, one.status, one.reason, one.metrics) for stage, one in stages]


def _outcomes(bundle: Bundle, name: str) -> list[Outcome]:
    """The graph is given PyTorch's own boxes."""
    pcb = PcbReference.from_bytes(bundle.read(PCB_REFERENCE), len(bundle.reference))
    reference, tolerance = bundle.reference, TOLERANCES["fp32"]
    calibrator = Calibrator(bundle, name)
    try:
        came = calibrator.logits(reference.images, pcb.split(pcb.boxes))
    finally:
        calibrator.close()
    calibration, spec = calibrator.calibration, everything(bundle.manifest.postprocess)
    found = candidates(calibration, reference.raw_outputs, reference.valid_hw, spec)
    expected, calibrated = (
        [calibration.apply(one, rows, spec) for one, rows in zip(found, logits, strict=True)]
        for logits in (pcb.split(pcb.logits), came)
    )
    return [_compare_logits(pcb.logits, np.concatenate(came)), compare_calibrated(expected, calibrated, tolerance)]


def _compare_logits(a: NDArray[np.float32], b: NDArray[np.float32]) -> Outcome:
    tolerance = TOLERANCES["fp32"]
    scale = max(1.0, float(np.sqrt(np.mean(np.square(a)))) if a.size else 1.0)  # rounding grows with what was summed
    checks = array_checks(LOGITS, a / scale, b / scale, tolerance.score_atol, tolerance)
    return Outcome.of(*checks, **array_spread(LOGITS, a / scale, b / scale))


def compare_calibrated(expected: Sequence[Detections], came: Sequence[Detections], tolerance: Tolerance) -> Outcome:
    """Calibrated detections of the same images, paired by class and overlap: how far scores are apart."""
    apart = np.concatenate([np.zeros(0), *(_apart(a, b, tolerance) for a, b in zip(expected, came, strict=True))])
    found = sum(map(len, expected))
    error = float(np.quantile(apart, tolerance.quantile)) if len(apart) else 0.0
    return Outcome.of(
        ("unpaired", 1 - len(apart) / max(found, 1) if found else 0.0, "<=", max(_UNPAIRED, tolerance.unpaired)),
        ("score_error", error, "<=", tolerance.score),
        detections=found,
    )


def _apart(a: Detections, b: Detections, tolerance: Tolerance) -> NDArray[np.float32]:
    iou = boxes.iou(a.xyxy, b.xyxy)  # (N, M)
    alike = (a.class_ids[:, None] == b.class_ids) & (iou >= tolerance.iou)
    first, second = greedy_pairs(np.where(alike, 1 - iou, np.inf))
    return np.asarray(np.abs(a.scores[first] - b.scores[second]), np.float32)


def candidates(
    calibration: Calibration, raws: Sequence[RawOutputs], valid_hw: NDArray[np.float32], spec: PostprocessSpec
) -> list[Detections]:
    """Detections before calibration, in network pixels."""
    names, first = tuple(map(str, range(len(spec.score_thresholds)))), calibration.candidates(spec)
    return [postprocess(raw, in_place(hw), first, names) for raw, hw in zip(raws, valid_hw, strict=True)]


def in_place(valid_hw: NDArray[np.float32]) -> Geometry:
    """The geometry that leaves boxes in network pixels."""
    h, w = (int(side) for side in valid_hw)
    return Geometry((h, w), (h, w))


def everything(spec: PostprocessSpec) -> PostprocessSpec:
    """Thresholds by which nothing is left out after calibration."""
    return replace(spec, score_thresholds=(SCORE_FLOOR,) * len(spec.score_thresholds))
