"""What becomes of the objects of air's val clips: found, taken for another class, boxed badly, or not boxed; by clip.

    python -m benchmarks.clips --bundle models/thermal_lite0.glmd    # then: python -m benchmarks.readme

Each picture of a clip has one labelled object. Of the boxes of any score with IoU 0.5, the best scored decides.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import conditions, write
from benchmarks.tables import Lines, table
from glmd_runtime import Detections, Detector
from glmd_runtime.boxes import iou
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE
from glmd_train.scores.misses import NEAR

BADLY, NOT_BOXED = "boxed badly", "not boxed"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    given = options.parse_args()
    with Detector(given.bundle, score_threshold=EVAL_SCORE) as detector:
        records = load_coco(given.data / "air" / "val.json", detector.class_names)
        clips = by_clip((record, detector.run(record.read())) for record in records)
        info = detector.info()
    command = f"python -m benchmarks.clips --bundle {given.bundle}"
    setup = {"batch": 1, "precision": info["precision"], "score_threshold": EVAL_SCORE, "clips": clips}
    print(write(f"clips_{given.bundle.stem}", {**conditions(command), **setup}))


def by_clip(samples: Iterable[tuple[Record, Detections]]) -> dict[str, dict[str, Any]]:
    """Clip -> its class, the median shorter side of its labels in frame pixels, and how many became what."""
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


def outcome(box: NDArray[np.float32], found: Detections) -> str:
    """The class that an object was found as, BADLY or NOT_BOXED."""
    if not len(found):
        return NOT_BOXED
    overlaps = iou(box[None], found.xyxy)[0]
    on_it = np.flatnonzero(overlaps >= 0.5)
    if len(on_it):
        return found.class_names[found.class_ids[on_it[found.scores[on_it].argmax()]]]
    return BADLY if overlaps.max() >= NEAR else NOT_BOXED


def lines(clips: dict[str, dict[str, Any]]) -> Lines:
    rows, right_of_all, all_of_all = [], 0, 0
    for clip, one in clips.items():
        became = dict(one["became"])
        total = sum(became.values())
        right, badly, nothing = (became.pop(key, 0) for key in (one["class"], BADLY, NOT_BOXED))
        others = ", ".join(f"{count} as {name}" for name, count in became.items())
        rows.append([clip, str(one["side"]), f"{right} of {total}", others, str(badly or ""), str(nothing or "")])
        right_of_all, all_of_all = right_of_all + right, all_of_all + total
    rows.append(["all", "", f"{right_of_all} of {all_of_all}", "", "", ""])
    return table(["clip", "label's shorter side, pixels", "found", "as another class", BADLY, NOT_BOXED], rows)


if __name__ == "__main__":
    main()
