"""How well score thresholds that were chosen on some pictures do on others: F1 of the shipped bundle on halves of the
val lists, with thresholds chosen on the other halves. Frames of one clip or flight are in one half, as names tell them.

    python -m benchmarks.thresholds --bundle models/thermal_lite0.glmd
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import SETS
from benchmarks.common import conditions, write
from benchmarks.tables import Lines, table
from glmd_runtime import Detections, Detector
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import RECALL_SCORE, detect
from glmd_train.lesson.thresholds import LOWEST, USUAL, HeldOut, best_f1, choose, held_out

DRAWS = 100
Classes = Mapping[str, HeldOut]
ByClass = dict[str, float]


def each(classes: Classes) -> ByClass:
    return {name: best_f1(rows) or RECALL_SCORE for name, rows in classes.items()}


def together(classes: Classes) -> ByClass:
    return dict.fromkeys(classes, best_f1(*classes.values()) or RECALL_SCORE)


def chosen(classes: Classes) -> ByClass:
    picks = choose(classes, dict.fromkeys(classes, ()), 0, (RECALL_SCORE,) * len(classes))
    return {name: pick.threshold for name, pick in picks.items()}


WAYS: dict[str, Callable[[Classes], ByClass]] = {
    f"{RECALL_SCORE:g} for all": lambda classes: dict.fromkeys(classes, RECALL_SCORE),
    f"{USUAL:g} for all": lambda classes: dict.fromkeys(classes, USUAL),
    "each class's best F1": each,
    "the best mean F1, for all": together, "between the two, as `glmd-train thresholds` does": chosen,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    given = options.parse_args()
    with Detector(given.bundle, score_threshold=LOWEST) as detector:
        names, info = detector.class_names, detector.info()
        sets = {name: load_coco(given.data / name / "val.json", names) for name in SETS}
        found = {name: detect(detector.run, records) for name, records in sets.items()}
    rng = np.random.default_rng(0)
    rows = [f1_of_ways(sets, found, names, rng) for _ in range(DRAWS)]
    means = {way: {name: mean_over(rows, way, name) for name in names} for way in WAYS}
    setup = {"batch": 1, "precision": info["precision"], "draws": DRAWS, "f1": means}
    print(write(f"thresholds_{given.bundle.stem}",
                {**conditions(f"python -m benchmarks.thresholds --bundle {given.bundle}"), **setup}))
    print("\n".join(lines(means)))


def f1_of_ways(
    sets: Mapping[str, Sequence[Record]], found: Mapping[str, Sequence[Detections]], names: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, ByClass]:
    """F1 by way and class on one draw of halves; a class without objects in the second half is left out."""
    halves = {name: first_half(records, rng) for name, records in sets.items()}
    tried, tested = ({
        name: of_class(sets, found, i, {key: half == side for key, half in halves.items()})
        for i, name in enumerate(names)
    } for side in (True, False))
    return {
        way: {name: f1(tested[name], limit) for name, limit in limits(tried).items() if tested[name].objects}
        for way, limits in WAYS.items()
    }


def first_half(records: Sequence[Record], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(N,) whether a picture is in the first half; scenes are not divided."""
    scenes = np.asarray([scene_of(record.path) for record in records])
    kinds = np.unique(scenes)
    return np.isin(scenes, rng.permutation(kinds)[: len(kinds) // 2])


def scene_of(path: Path) -> str:
    """What is before the frame's number: a clip of air or cheetah, flights of HIT-UAV with equal settings."""
    before = path.stem.rpartition("_")[0]
    scenes = {"air": before, "hit_uav": before, "cheetah": path.stem.partition("_mov")[0]}
    return scenes.get(path.parents[1].name, path.stem)


def of_class(
    sets: Mapping[str, Sequence[Record]], found: Mapping[str, Sequence[Detections]], class_id: int,
    half: Mapping[str, np.ndarray[Any, Any]],
) -> HeldOut:
    """One class in the halves of the lists that have it."""
    with_it = [name for name, records in sets.items() if any((one.labels == class_id).any() for one in records)]
    records, detections = (
        [one for name in with_it for one in compress(rows[name], half[name])] for rows in (sets, found)
    )
    return held_out(records, detections, class_id)


def f1(rows: HeldOut, threshold: float) -> float:
    passed = rows.scores > threshold
    return float(2 * rows.hit[passed].sum() / (rows.objects + passed.sum()))


def mean_over(rows: Sequence[dict[str, ByClass]], way: str, name: str) -> float:
    return round(100 * float(np.mean([row[way][name] for row in rows if name in row[way]])), 1)


def lines(means: Mapping[str, Mapping[str, float]]) -> Lines:
    names = list(next(iter(means.values())))
    return table(["threshold", *names, "mean"], [
        [way, *(f"{row[name]:.1f}" for name in names), f"{np.mean(list(row.values())):.1f}"]
        for way, row in means.items()
    ])


if __name__ == "__main__":
    main()
