"""Prototypical calibration in PyTorch: prototypes from support pictures, and detections calibrated with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glmd_runtime.calibration import Calibration, CalibrationSpec, calibrate
from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, checked_frame, preprocess
from glmd_train.checkpoint import Checkpoint
from glmd_train.classifier import Classifier, Pcb, rgb_of_images, rgb_of_picture
from glmd_train.data.coco import Record

Floats = NDArray[np.float32]


def add_pcb(checkpoint: Checkpoint, classifier: Classifier, support: Sequence[Record]) -> Checkpoint:
    """The checkpoint with prototypes of its support pictures, and the thresholds that go with calibrated scores.

    Raises: DatasetError for an unreadable picture, or when no picture has an object of the checkpoint's classes.
    """
    prototypes = build_prototypes(classifier, support, len(checkpoint.class_names), checkpoint.preprocess)
    with_own = replace(checkpoint, pcb=Pcb(classifier, Calibration(CalibrationSpec(), prototypes)))
    spec = CalibrationSpec(score_thresholds=matched_thresholds(with_own, support))
    return replace(checkpoint, pcb=Pcb(classifier, Calibration(spec, prototypes)))


def build_prototypes(classifier: Classifier, records: Iterable[Record], classes: int, spec: PreprocessSpec) -> Floats:
    """The mean logits of each class's support boxes.

    Args: records, with labels below `classes` = K; spec, the detector's.
    Returns: (K, D) float32, a row of zeros for a class without a box.
    Raises: DatasetError for an unreadable picture, or when there is no box at all.
    """
    with_boxes = [record for record in records if len(record.boxes)]
    if not with_boxes:
        raise DatasetError("The support pictures hold no object of the model's classes. Name other --support files.")
    labels = np.concatenate([record.labels for record in with_boxes])  # (N,)
    logits = np.concatenate([box_logits(classifier, spec, one.read(), one.boxes) for one in with_boxes])  # (N, D)
    of_class = np.arange(classes)[:, None] == labels  # (K, N)
    means = of_class @ logits.astype(np.float64) / np.maximum(of_class.sum(axis=1), 1)[:, None]
    return np.asarray(means, np.float32)


def matched_thresholds(checkpoint: Checkpoint, support: Sequence[Record]) -> tuple[float, ...]:
    """One threshold a class for calibrated scores: as many detections pass it in the support pictures as pass the
    model's own without calibration.

    Calibration lifts low scores, as cosines between logits are seldom small: with the thresholds of uncalibrated scores
    false alarms would multiply. A class without a prototype or without detections keeps its own.
    """
    assert checkpoint.pcb
    own, calibration = checkpoint.postprocess.score_thresholds, checkpoint.pcb.calibration
    found = [_before_and_after(checkpoint, record.read()) for record in support]
    ids, before, after = (np.concatenate(column) for column in zip(*found, strict=True))
    thresholds = list(own)
    for k in np.unique(ids):
        if calibration.prototypes[k].any():
            ranked = np.concatenate([[1.0], -np.sort(-after[ids == k]), [0.0]])
            passed = int((before[ids == k] > own[k]).sum())
            thresholds[k] = round(float(np.clip(ranked[passed : passed + 2].mean(), 0, 1)), 4)
    return tuple(thresholds)


def _before_and_after(checkpoint: Checkpoint, frame: NDArray[Any]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Class, score and calibrated score of each detection above `lower`."""
    assert checkpoint.pcb
    calibration = checkpoint.pcb.calibration
    raw, geometry = run_model(checkpoint, frame)
    found = postprocess(raw, geometry, calibration.candidates(checkpoint.postprocess), checkpoint.class_names)
    logits = box_logits(checkpoint.pcb.classifier, checkpoint.preprocess, frame, found.xyxy)
    after = calibrate(found.scores, found.class_ids, logits, calibration.prototypes, calibration.spec)
    return found.class_ids, found.scores, after


@torch.inference_mode()
def run_model(checkpoint: Checkpoint, frame: NDArray[Any]) -> tuple[RawOutputs, Geometry]:
    """The network's raw outputs of one frame."""
    image, geometry = preprocess(frame, checkpoint.preprocess)
    device = next(checkpoint.model.parameters()).device
    valid_hw = torch.tensor([geometry.valid_hw], dtype=torch.float32, device=device)
    raw = checkpoint.model(torch.from_numpy(image)[None].to(device), valid_hw)
    return RawOutputs(*(t[0].cpu().numpy() for t in (raw.boxes, raw.scores, raw.valid))), geometry


@torch.inference_mode()
def box_logits(classifier: Classifier, spec: PreprocessSpec, frame: NDArray[Any], xyxy: Floats) -> Floats:
    """(N, 4) boxes in frame pixels -> (N, D) logits.

    The classifier sees the detector's own network image, as it does on the device. With the published resize, which no
    device runs, it sees the frame as it is, as the published code has it.
    """
    if spec.resize == "published":
        picture = spec.intensity(checked_frame(frame))
        rgb, boxes = rgb_of_picture(picture), np.asarray(xyxy, np.float32)
    else:
        image, geometry = preprocess(frame, spec)
        rgb, boxes = rgb_of_images(torch.from_numpy(image)[None], spec), geometry.to_image(xyxy)
    device = classifier.scale.device
    return classifier(rgb.to(device), [torch.from_numpy(boxes).to(device)]).cpu().numpy()


def calibrated_frame(checkpoint: Checkpoint, frame: NDArray[Any], threshold: float) -> Detections:
    """What the calibrated checkpoint finds in a frame above one threshold for all classes."""
    raw, geometry = run_model(checkpoint, frame)
    spec = checkpoint.postprocess.with_threshold(threshold)
    return calibrated_detections(checkpoint, frame, raw, geometry, spec)


def calibrated_detections(
    checkpoint: Checkpoint, frame: NDArray[Any], raw: RawOutputs, geometry: Geometry, spec: PostprocessSpec
) -> Detections:
    """`postprocess` with prototypical calibration, as a Detector does it with the exported graphs.

    Args: checkpoint, with `pcb`; frame, and the raw outputs and geometry that came of it; spec, its thresholds are for
        calibrated scores.
    Returns: detections in frame pixels, best calibrated score first.
    """
    assert checkpoint.pcb
    calibration = checkpoint.pcb.calibration
    found = postprocess(raw, geometry, calibration.candidates(spec), checkpoint.class_names)
    logits = box_logits(checkpoint.pcb.classifier, checkpoint.preprocess, frame, found.xyxy)
    return calibration.apply(found, logits, spec)
