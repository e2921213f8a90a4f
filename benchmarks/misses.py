"""What becomes of the objects of air's val clips: found, taken for another class, boxed badly, or missed; by clip.

    python -m benchmarks.misses --bundle models/thermal_lite0.glmd    # and the table of docs/light_model.md

The best scored box with IoU 0.5 decides. Each clip shows one object, whose label is the box of every picture.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import conditions, write, write_tables
from benchmarks.tables import Lines, table
from glmd_runtime import Detections, Detector
from glmd_runtime.boxes import iou
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE

DOCUMENT = Path(__file__).parents[1] / "docs" / "light_model.md"
BADLY, MISSED = "boxed badly", "missed"
TOUCHES = 0.1  # IoU from which a box is a bad one, not of something else


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    given = options.parse_args()
    with Detector(given.bundle, score_threshold=EVAL_SCORE) as detector:
        records = load_coco(given.data / "air" / "val.json", detector.class_names)
        clips = by_clip((record, detector.run(record.read())) for record in records)
        info = detector.info()
    setup = {"batch": 1, "precision": info["precision"], "score_threshold": EVAL_SCORE, "clips": clips}
    print(write("misses", {**conditions(f"python -m benchmarks.misses --bundle {given.bundle}"), **setup}))
    write_tables(DOCUMENT, {"misses": lines(clips)})


def by_clip(samples: Iterable[tuple[Record, Detections]]) -> dict[str, dict[str, Any]]:
    """Clip -> its class, the median shorter side of its boxes in frame pixels, and how many became what."""
    became: dict[str, Counter[str]] = defaultdict(Counter)
    sides: dict[str, list[float]] = defaultdict(list)
    classes: dict[str, str] = {}
    for record, found in samples:
        clip = Path(record.path).stem.rpartition("_")[0]
        for box, label in zip(record.boxes, record.labels, strict=True):
            classes[clip] = found.class_names[label]
            became[clip][outcome(box, found)] += 1
            sides[clip].append(float(min(box[2:] - box[:2])))
    return {
        clip: {"class": classes[clip], "side": round(float(np.median(sides[clip])), 1), "became": dict(became[clip])}
        for clip in sorted(became)
    }


def outcome(box: np.ndarray[Any, Any], found: Detections) -> str:
    """The class that an object was found as, BADLY or MISSED."""
    if not len(found):
        return MISSED
    overlaps = iou(box[None], found.xyxy)[0]
    on_it = np.flatnonzero(overlaps >= 0.5)
    if len(on_it):
        return found.class_names[found.class_ids[on_it[found.scores[on_it].argmax()]]]
    return BADLY if overlaps.max() >= TOUCHES else MISSED


def lines(clips: dict[str, dict[str, Any]]) -> Lines:
    rows = []
    for clip, one in clips.items():
        became = dict(one["became"])
        right, badly, missed = (became.pop(key, 0) for key in (one["class"], BADLY, MISSED))
        others = ", ".join(f"{count} as {name}" for name, count in became.items())
        rows.append([clip, str(one["side"]), str(right), others, str(badly or ""), str(missed or "")])
    return table(["clip", "side, pixels", "found", "as another class", BADLY, MISSED], rows)


if __name__ == "__main__":
    main()
