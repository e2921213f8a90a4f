"""Prototypical calibration in PyTorch: prototypes from support pictures, and detections calibrated with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glmd_runtime.calibration import CalibrationSpec
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, check_frame, preprocess
from glmd_train.checkpoint import Checkpoint
from glmd_train.classifier import Classifier, rgb_of_images, rgb_of_picture
from glmd_train.data.coco import Record

Floats = NDArray[np.float32]


def build_prototypes(
    classifier: Classifier, records: Iterable[Record], classes: int, spec: PreprocessSpec
) -> Floats:
    """The mean logits of each class's support boxes.

    Args: records, with labels below `classes` = K; spec, the detector's.
    Returns: (K, D) float32, a row of zeros for a class without a box.
    Raises: DatasetError for an unreadable picture.
    """
    labels, logits = [np.zeros(0, np.int64)], [np.zeros((0, 1), np.float32)]
    for record in records:
        if len(record.boxes):
            labels.append(record.labels)
            logits.append(box_logits(classifier, spec, record.read(), record.boxes))
    width = max(rows.shape[1] for rows in logits)
    sums, counts = np.zeros((classes, width)), np.bincount(np.concatenate(labels), minlength=classes)
    for ids, rows in zip(labels[1:], logits[1:], strict=True):
        np.add.at(sums, ids, rows)
    return np.asarray(sums / np.maximum(counts, 1)[:, None], np.float32)


@torch.inference_mode()
def box_logits(classifier: Classifier, spec: PreprocessSpec, frame: NDArray[Any], xyxy: Floats) -> Floats:
    """(N, 4) boxes in frame pixels -> (N, D) logits.

    The classifier sees the detector's own network image, as it does on the device. With the published resize, which no
    device runs, it sees the frame as it is, as the published code has it.
    """
    if spec.resize == "published":
        check_frame(frame)
        rgb, boxes = rgb_of_picture(spec.intensity(frame)), np.asarray(xyxy, np.float32)
    else:
        image, geometry = preprocess(frame, spec)
        rgb, boxes = rgb_of_images(torch.from_numpy(image)[None], spec), geometry.to_image(xyxy)
    device = classifier.scale.device
    return classifier(rgb.to(device), [torch.from_numpy(boxes).to(device)]).cpu().numpy()


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
