"""AP and recall of an exported bundle on the validation sets, through `Detector.run`, as a user runs it.

    python -m benchmarks.accuracy --bundle models/thermal_lite0.glmd
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.common import conditions, write
from glmd_runtime import Detector
from glmd_train.data.coco import load_coco
from glmd_train.evaluate import EVAL_SCORE, evaluate
from glmd_train.scores.report import print_scores

SETS = ("hit_uav", "air", "dogs_people", "cheetah")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--backend", default="auto")
    given = options.parse_args()
    with Detector(given.bundle, backend=given.backend, score_threshold=EVAL_SCORE) as detector:
        names = detector.class_names
        sets = {name: load_coco(given.data / name / "val.json", names) for name in SETS}
        scores = {name: evaluate(detector.run, records, names) for name, records in sets.items()}
        info = detector.info()
    print_scores(scores)
    command = f"python -m benchmarks.accuracy --bundle {given.bundle} --backend {given.backend}"
    rows = {name: score.to_dict() for name, score in scores.items()}
    setup = {"batch": 1, "precision": info["precision"], "score_threshold": EVAL_SCORE, "engine": info, "sets": rows}
    print(write(f"accuracy_{given.bundle.stem}", {**conditions(command), **setup}))


if __name__ == "__main__":
    main()
