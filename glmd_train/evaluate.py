"""Average precision, recall and false alarms of anything that turns a frame into Detections: checkpoint or bundle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from glmd_runtime.boxes import iou, xyxy_to_xywh
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import preprocess
from glmd_train.checkpoint import Checkpoint
from glmd_train.data.coco import Record
from glmd_train.prototypes import calibrated_detections
from glmd_train.scores.intervals import Interval, ap_interval

Predict = Callable[[NDArray[Any]], Detections]
# AP counts every detection above this score (the published TEST threshold).
EVAL_SCORE = 0.05
# Recall and false alarms are counted at this score, so that models with other thresholds of their own compare.
RECALL_SCORE = 0.3
FIELDS = ("ap", "ap50", "ap75", "recall")


@dataclass(frozen=True)
class ClassScore:
    """One class of one data set: AP at IoU 0.5:0.95, 0.5, 0.75 and the recall (IoU 0.5) at score 0.3; 0..1."""

    ap: float
    ap50: float
    ap75: float
    recall: float
    objects: int


@dataclass(frozen=True)
class Score:
    """Scores by class; classes without an object in the data are left out of it and of the means.

    left_out   classes with objects in the data, of which the model has none: they count nowhere
    unscored   classes of the model without an object in the data
    interval   the mean AP with its 95% interval over the pictures, where it was asked for
    """

    classes: dict[str, ClassScore]
    left_out: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()
    interval: Interval | None = None

    def mean(self, field: str, names: Collection[str] | None = None) -> float:
        """Over all scored classes, or those of `names`; 0 without any."""
        rows = [getattr(row, field) for name, row in self.classes.items() if names is None or name in names]
        return float(np.mean(rows)) if rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        means = {field: round(self.mean(field), 4) for field in FIELDS}
        rows = {n: {k: round(v, 4) for k, v in vars(c).items()} for n, c in self.classes.items()}
        names = {"left_out": list(self.left_out), "unscored": list(self.unscored)}
        values: dict[str, Any] = {"mean": means, "classes": rows, **names}
        if self.interval:
            values["ap_interval"] = [round(bound, 4) for bound in (self.interval.low, self.interval.high)]
        return values


@dataclass(frozen=True)
class FalseAlarms:
    """Detections in `frames` pictures without an object: at the model's own score thresholds, and at score 0.3."""

    frames: int
    own: int
    fixed: int

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates; without a frame a rate is unknown, not 0."""
        rates = {
            f"{name}_per_1000": round(1000 * getattr(self, name) / self.frames, 2) if self.frames else None
            for name in ("own", "fixed")
        }
        return {**vars(self), **rates}


def torch_predict(checkpoint: Checkpoint, score_threshold: float = EVAL_SCORE, *, pcb: bool = True) -> Predict:
    """The checkpoint as a function frame -> Detections, with the pre- and post-processing of the device.

    pcb: calibrate the scores where the checkpoint holds prototypes.
    """
    spec = PostprocessSpec(
        (score_threshold,) * len(checkpoint.class_names), checkpoint.postprocess.nms_iou,
        checkpoint.postprocess.max_detections,
    )
    device = next(checkpoint.model.parameters()).device

    def predict(frame: NDArray[Any]) -> Detections:
        image, geometry = preprocess(frame, checkpoint.preprocess)
        valid_hw = torch.tensor([geometry.valid_hw], dtype=torch.float32, device=device)
        with torch.inference_mode():
            raw = checkpoint.model(torch.from_numpy(image)[None].to(device), valid_hw)
        arrays = RawOutputs(*(t[0].cpu().numpy() for t in (raw.boxes, raw.scores, raw.valid)))
        if pcb and checkpoint.pcb:
            return calibrated_detections(checkpoint, frame, arrays, geometry, spec)
        return postprocess(arrays, geometry, spec, checkpoint.class_names)

    return predict


def evaluate(
    predict: Predict, records: Iterable[Record], class_names: tuple[str, ...], *, interval: bool = False
) -> Score:
    """Run `predict` on every picture and score it against its labels; `iscrowd` boxes are ignore regions."""
    records = in_order(records)
    found = detect(predict, records)
    result = score(records, found, class_names)
    return replace(result, interval=ap_interval(records, found)) if interval else result


def in_order(records: Iterable[Record]) -> list[Record]:
    """By file, so that neither equal scores nor the draws of an interval depend on the order in the annotation file."""
    return sorted(records, key=lambda record: (str(record.path), record.image_id))


def detect(predict: Predict, records: Iterable[Record]) -> list[Detections]:
    """The detections of every picture, to be scored, or compared with another model's (`intervals.ap_difference`)."""
    return [predict(record.read()) for record in records]


def score(records: list[Record], found: list[Detections], class_names: tuple[str, ...]) -> Score:
    """COCO average precision by class (faster-coco-eval), and recall at a fixed score."""
    counts = np.bincount(np.concatenate([np.zeros(0, int), *(r.labels for r in records)]), minlength=len(class_names))
    present = np.flatnonzero(counts)
    precisions = _average_precisions(records, found, present)
    classes = {class_names[c]: ClassScore(*precisions[c], _recall(records, found, c), int(counts[c])) for c in present}
    left_out = sorted({name for record in records for name in record.left_out})
    return Score(classes, tuple(left_out), tuple(name for name in class_names if name not in classes))


def is_empty(record: Record) -> bool:
    """No object of any class, the model's or another, and no ignore region."""
    return not (len(record.boxes) or len(record.ignore) or record.left_out)


def false_alarms(found: Iterable[Detections], thresholds: Sequence[float]) -> FalseAlarms:
    """Count the detections `found` in empty pictures.

    Args: found, one a picture, with every detection above the smallest of `thresholds`; thresholds, one a class.
    """
    own_thresholds, frames, own, fixed = np.asarray(thresholds, np.float32), 0, 0, 0
    for one in found:
        frames += 1
        own += int((one.scores > own_thresholds[one.class_ids]).sum())
        fixed += int((one.scores > np.float32(RECALL_SCORE)).sum())
    return FalseAlarms(frames, own, fixed)


def _average_precisions(
    records: list[Record], found: list[Detections], present: NDArray[np.int64]
) -> dict[int, tuple[float, float, float]]:
    truth = COCO(_truth(records, present))
    rows = [
        {"image_id": i, "category_id": int(c), "bbox": xywh.tolist(), "score": float(s)}
        for i, one in enumerate(found)
        for c, s, xywh in zip(one.class_ids, one.scores, xyxy_to_xywh(one.xyxy), strict=True)
        if c in present
    ]
    if not rows:
        return {int(c): (0.0, 0.0, 0.0) for c in present}
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
        run.params.catIds = [int(c) for c in present]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recalls, classes)
    values = {int(c): precision[:, :, i] for i, c in enumerate(present)}
    return {c: (_mean(p), _mean(p[0]), _mean(p[5])) for c, p in values.items()}


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else 0.0


def _truth(records: list[Record], present: NDArray[np.int64]) -> dict[str, Any]:
    """COCO dictionary; an ignore region is a crowd box of every class, because nothing in it counts for any class."""
    annotations: list[dict[str, Any]] = []
    for i, record in enumerate(records):
        rows = [(int(c), b, 0) for c, b in zip(record.labels, record.boxes, strict=True)]
        rows += [(int(c), b, 1) for b in record.ignore for c in present]
        for c, box, crowd in rows:
            x, y, w, h = xyxy_to_xywh(box)[0].tolist()
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": c, "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": crowd})
    images = [{"id": i, "height": r.hw[0], "width": r.hw[1]} for i, r in enumerate(records)]
    categories = [{"id": int(c), "name": str(c)} for c in present]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _recall(records: list[Record], found: list[Detections], class_id: int) -> float:
    """Part of the objects that a detection of their class with score >= 0.3 overlaps by IoU >= 0.5, one to one."""
    hits = objects = 0
    for record, one in zip(records, found, strict=True):
        boxes = record.boxes[record.labels == class_id]
        rows = one[(one.class_ids == class_id) & (one.scores >= RECALL_SCORE)]
        hits, objects = hits + int((match_greedily(rows.xyxy, boxes) >= 0).sum()), objects + len(boxes)
    return hits / max(1, objects)


def match_greedily(xyxy: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """(D, 4) detections, best first, (G, 4) objects -> (D,) the object that each takes (IoU >= 0.5), or -1.

    Each takes the one that it overlaps most of those that are still free.
    """
    overlaps = iou(xyxy, boxes)  # (D, G)
    taken = np.full(len(xyxy), -1, np.int64)
    for d, row in enumerate(overlaps):
        if row.size and row.max() >= 0.5:
            taken[d] = row.argmax()
            overlaps[:, taken[d]] = 0
    return taken
