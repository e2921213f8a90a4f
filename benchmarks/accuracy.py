"""AP of an exported bundle on the validation sets, through `Detector.run`, as a user runs it, and what a score
threshold lets through: how many of the objects are found, and how many boxes are on no object.

    python -m benchmarks.accuracy --bundle models/thermal_lite0.glmd
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import conditions, write
from glmd_runtime import Detections, Detector
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE, detect, in_order, match_greedily, score
from glmd_train.scores.intervals import covered
from glmd_train.scores.report import print_scores

SETS = ("hit_uav", "air", "dogs_people", "cheetah")
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--backend", default="auto")
    given = options.parse_args()
    with Detector(given.bundle, backend=given.backend) as detector:
        names, info = detector.class_names, detector.info()
        detector.score_threshold = EVAL_SCORE
        sets = {name: in_order(load_coco(given.data / name / "val.json", names)) for name in SETS}
        found = {name: detect(detector.run, records) for name, records in sets.items()}
    scores = {name: score(records, found[name], names) for name, records in sets.items()}
    print_scores(scores)
    command = f"python -m benchmarks.accuracy --bundle {given.bundle} --backend {given.backend}"
    own = tuple(info["score_thresholds"].values())
    rows = {
        name: {**scores[name].to_dict(), "by_threshold": by_threshold(records, found[name], own)}
        for name, records in sets.items()
    }
    setup = {"batch": 1, "precision": info["precision"], "score_threshold": EVAL_SCORE, "engine": info, "sets": rows}
    print(write(f"accuracy_{given.bundle.stem}", {**conditions(command), **setup}))


def by_threshold(
    records: Sequence[Record], found: Sequence[Detections], own: Sequence[float]
) -> dict[str, dict[str, float]]:
    """By score threshold ("own": the bundle's, by class) the part of the objects that is found, the part of the boxes
    that is right, and how many boxes a frame are not."""
    objects = sum(len(record.labels) for record in records)
    rows = {}
    for name, limits in {"own": own, **{str(one): (one,) * len(own) for one in THRESHOLDS}}.items():
        right, wrong = true_and_false(records, found, limits)
        rows[name] = {
            "recall": round(right / objects, 4),
            "precision": round(right / max(1, right + wrong), 4),
            "wrong_a_frame": round(wrong / len(records), 2),
        }
    return rows


def true_and_false(
    records: Sequence[Record], found: Sequence[Detections], limits: Sequence[float]
) -> tuple[int, int]:
    """How many detections over their class's threshold are an object of it (IoU 0.5), and how many are none.

    What an ignore region covers by half is neither.
    """
    true = false = 0
    for record, one in zip(records, found, strict=True):
        for class_id, limit in enumerate(limits):
            mine = one[(one.class_ids == class_id) & (one.scores > limit)]
            hits = match_greedily(mine.xyxy, record.boxes[record.labels == class_id]) >= 0
            alarms = ~hits & (covered(mine.xyxy, record.ignore) < 0.5)
            true, false = true + int(np.sum(hits)), false + int(np.sum(alarms))
    return true, false


if __name__ == "__main__":
    main()
