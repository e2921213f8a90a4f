"""Average precision and recall of anything that turns a frame into Detections: a checkpoint or an exported bundle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
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
from glmd_train.intervals import Interval, ap_interval

Predict = Callable[[NDArray[Any]], Detections]
# AP counts every detection above this score (the published TEST threshold).
EVAL_SCORE = 0.05
RECALL_SCORE = 0.3


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
    interval   the mean AP with its 95% interval over the pictures, where it was asked for
    """

    classes: dict[str, ClassScore]
    left_out: tuple[str, ...] = ()
    interval: Interval | None = None

    def mean(self, field: str) -> float:
        return float(np.mean([getattr(c, field) for c in self.classes.values()])) if self.classes else 0.0

    def to_dict(self) -> dict[str, Any]:
        means = {field: round(self.mean(field), 4) for field in ("ap", "ap50", "ap75", "recall")}
        rows = {n: {k: round(v, 4) for k, v in vars(c).items()} for n, c in self.classes.items()}
        values: dict[str, Any] = {"mean": means, "classes": rows, "left_out": list(self.left_out)}
        if self.interval:
            values["ap_interval"] = [round(bound, 4) for bound in (self.interval.low, self.interval.high)]
        return values


def torch_predict(checkpoint: Checkpoint, score_threshold: float = EVAL_SCORE) -> Predict:
    """The checkpoint as a function frame -> Detections, with the pre- and post-processing of the device."""
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
        arrays = (t[0].cpu().numpy() for t in (raw.boxes, raw.scores, raw.valid))
        return postprocess(RawOutputs(*arrays), geometry, spec, checkpoint.class_names)

    return predict


def evaluate(
    predict: Predict, records: Iterable[Record], class_names: tuple[str, ...], *, interval: bool = False
) -> Score:
    """Run `predict` on every picture and score it against its labels; `iscrowd` boxes are ignore regions."""
    records = list(records)
    found = detect(predict, records)
    result = score(records, found, class_names)
    return replace(result, interval=ap_interval(records, found)) if interval else result


def detect(predict: Predict, records: Iterable[Record]) -> list[Detections]:
    """The detections of every picture, to be scored, or compared with another model's (`intervals.ap_difference`)."""
    return [predict(record.read()) for record in records]


def score(records: list[Record], found: list[Detections], class_names: tuple[str, ...]) -> Score:
    """COCO average precision by class (faster-coco-eval), and recall at a fixed score."""
    counts = np.bincount(np.concatenate([np.zeros(0, int), *(r.labels for r in records)]), minlength=len(class_names))
    present = np.flatnonzero(counts)
    precisions = _average_precisions(records, found, present)
    classes = {class_names[c]: ClassScore(*precisions[c], _recall(records, found, c), int(counts[c])) for c in present}
    return Score(classes, tuple(sorted({name for record in records for name in record.left_out})))


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
        hits, objects = hits + _matches(boxes, rows.xyxy), objects + len(boxes)
    return hits / max(1, objects)


def _matches(boxes: NDArray[np.float32], xyxy: NDArray[np.float32]) -> int:
    """Greedy one-to-one matches; xyxy come best score first."""
    overlaps = iou(xyxy, boxes)  # (D, N)
    count = 0
    for row in overlaps:
        if row.size and row.max() >= 0.5:
            overlaps[:, row.argmax()] = 0
            count += 1
    return count
